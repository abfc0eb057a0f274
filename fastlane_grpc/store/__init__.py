"""Tasks, jobs and executions on disk. What was answered is committed and synced; it survives whatever is killed."""

from fastlane_grpc.store.pending import Pending
from fastlane_grpc.store.store import Store

__all__ = ["Pending", "Store"]
