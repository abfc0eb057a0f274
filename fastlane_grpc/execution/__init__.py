"""One execution from its claim to its outcome, on one host."""

from fastlane_grpc.execution.backend_runner import BackendRunner, callers_trace
from fastlane_grpc.execution.closing import Step
from fastlane_grpc.execution.host import Host
from fastlane_grpc.execution.removed_host import RemovedHostRunner
from fastlane_grpc.execution.sweeper import Sweeper
from fastlane_grpc.execution.usage import UsageSampler

__all__ = ["BackendRunner", "Host", "RemovedHostRunner", "Step", "Sweeper", "UsageSampler", "callers_trace"]
