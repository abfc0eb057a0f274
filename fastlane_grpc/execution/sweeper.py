"""The sweeper of a host: a thread that removes left-over containers of finished executions while the host is up."""

import threading

import structlog

from fastlane_grpc.errors import DiskFull, ServerStopping, StoreFailed
from fastlane_grpc.execution.backend_runner import BackendRunner
from fastlane_grpc.execution.host import Host
from fastlane_grpc.runner import HostDown
from fastlane_grpc.supervisor import ALONE, Supervisor

# Pause between two sweeps. A sweep removes containers that could not be removed at their end.
SWEEP_SECONDS = 600.0

log = structlog.get_logger(__name__)


class Sweeper:
    """A thread that sweeps when it is woken, and every SWEEP_SECONDS, while the host is up."""

    def __init__(self, runner: BackendRunner, host: Host, supervisor: Supervisor = ALONE) -> None:
        self._runner = runner
        self._host = host
        self._wake = threading.Event()
        self._closing = False
        self._thread = supervisor.thread(f"sweep-{host.name}", self._run, restart=True)

    def start(self) -> None:
        self._thread.start()

    def wake(self) -> None:
        """Sweep soon, as the host may be up again."""
        self._wake.set()

    def close(self) -> None:
        """Stop sweeping, without waiting for a thread that waits for its engine."""
        self._closing = True
        self._wake.set()

    def _run(self) -> None:
        while not self._closing:
            self._wake.wait(SWEEP_SECONDS)
            self._wake.clear()
            if self._closing or not self._host.up:
                continue
            try:
                self._runner.sweep()
            except ServerStopping:
                return
            except (HostDown, DiskFull, StoreFailed) as error:
                log.info("left-over containers are removed later", reason=str(error))
