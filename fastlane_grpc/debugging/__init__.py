"""The inside of a running server, written to one file for a bug report, also while its loop hangs."""

from fastlane_grpc.debugging.dump import DebugDump, block_signals
from fastlane_grpc.debugging.recent_lines import RecentLines
from fastlane_grpc.debugging.request import DumpFailed, requested_dump

__all__ = ["DebugDump", "DumpFailed", "RecentLines", "block_signals", "requested_dump"]
