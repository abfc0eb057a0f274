"""The only room that knows Docker: runs one execution from its claim to its outcome, on one host, and captures what it prints."""

from fastlane_grpc.runner.captures import Captures
from fastlane_grpc.runner.gone import GoneRunner
from fastlane_grpc.runner.host import Host
from fastlane_grpc.runner.orders import HostDown, Leave, Orders, Runner, StopOrder
from fastlane_grpc.runner.passage import Step
from fastlane_grpc.runner.run import DockerRunner
from fastlane_grpc.runner.sweeper import Sweeper

__all__ = ["Captures", "DockerRunner", "GoneRunner", "Host", "HostDown", "Leave", "Orders", "Runner", "Step", "StopOrder", "Sweeper"]
