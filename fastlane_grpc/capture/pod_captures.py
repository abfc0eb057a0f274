"""The ways of capture of a cluster, by the relay and by the kubelet.

New executions use the way that is set. Each execution keeps the way with which it began.
"""

from collections.abc import Callable, Mapping
from pathlib import Path

from fastlane_grpc.backend import capture_of
from fastlane_grpc.capture.capture import Capture, Captures
from fastlane_grpc.model import Execution


class PodCaptures:
    """Implements Captures for a host whose setting `capture` may be changed while executions run."""

    def __init__(self, ways: Mapping[str, Captures], present: str) -> None:
        """`ways`: all ways of capture by their names. `present`: the name of the way of new executions."""
        self._ways = ways
        self._present = ways[present]

    @property
    def reason(self) -> str:
        return self._present.reason

    @property
    def in_use(self) -> str:
        return self._present.in_use

    def determine(self) -> None:
        self._present.determine()

    def for_new(self, directory: Path, execution_id: str, log_line: Callable[[str], None]) -> Capture:
        return self._present.for_new(directory, execution_id, log_line)

    def for_existing(self, directory: Path, execution: Execution, log_line: Callable[[str], None]) -> Capture:
        way = self._ways.get(capture_of(execution.handle), self._present)
        return way.for_existing(directory, execution, log_line)
