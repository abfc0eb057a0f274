"""The meeting point of captures in pods and the calls of their relays, both by the directory of a record.

A capture leaves here what its relay is to hand over to the recorder, and finds here the call that carries its signals.
Any thread may use it.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

# An order in the place of a signal: to keep the recorder from its beginning.
REVOKE = 0


@dataclass(frozen=True, slots=True)
class JobFiles:
    """Files that a job gets at its start. `read_secrets` returns the content of its file of secrets, read anew, and
    `inputs` the archive of its inputs in blocks.

    `is_of_pod` says whether the token of a service account belongs to the pod of the job, which alone gets them.
    """

    read_secrets: Callable[[], bytes] | None = None
    is_of_pod: Callable[[str], bool] = lambda account: True
    stdin: Path | None = None
    inputs: Callable[[], Iterator[bytes]] | None = None


class RelayCall(Protocol):
    """The call of a relay that is connected."""

    def order(self, number: int) -> bool:
        """Send a signal to the recorder, or REVOKE. False: it is not certain that it is obeyed. Waits for seconds."""

    def end(self) -> None:
        """Break off the call, as its record is closed. Does not wait."""


class RelayCalls:
    """The files of jobs that are about to start, and the calls of relays."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._files: dict[Path, JobFiles] = {}
        self._calls: dict[Path, RelayCall] = {}

    def offer_secrets(
        self, directory: Path, read: Callable[[], bytes], is_of_pod: Callable[[str], bool] = lambda account: True
    ) -> None:
        """Keep the way to a job's secrets, until `withdraw`. The secrets themselves are not kept."""
        with self._lock:
            files = self._files.get(directory, JobFiles())
            self._files[directory] = replace(files, read_secrets=read, is_of_pod=is_of_pod)

    def offer_stdin(
        self, directory: Path, content: Path, is_of_pod: Callable[[str], bool] = lambda account: True
    ) -> None:
        """Keep the file of a job's standard input, until `withdraw`."""
        with self._lock:
            files = self._files.get(directory, JobFiles())
            self._files[directory] = replace(files, stdin=content, is_of_pod=is_of_pod)

    def offer_inputs(
        self,
        directory: Path,
        archive: Callable[[], Iterator[bytes]],
        is_of_pod: Callable[[str], bool] = lambda account: True,
    ) -> None:
        """Keep the way to the archive of a job's inputs, until `withdraw`."""
        with self._lock:
            files = self._files.get(directory, JobFiles())
            self._files[directory] = replace(files, inputs=archive, is_of_pod=is_of_pod)

    def withdraw(self, directory: Path) -> None:
        """Forget the files of a job."""
        with self._lock:
            self._files.pop(directory, None)

    def files(self, directory: Path) -> JobFiles:
        """Return the files of a job, as far as they are known here."""
        with self._lock:
            return self._files.get(directory, JobFiles())

    @contextmanager
    def connected(self, directory: Path, call: RelayCall) -> Iterator[None]:
        """Let signals go by this call, within the context."""
        with self._lock:
            self._calls[directory] = call
        try:
            yield
        finally:
            with self._lock:
                if self._calls.get(directory) is call:
                    del self._calls[directory]

    def order(self, directory: Path, number: int) -> bool:
        """Send an order to a recorder by its relay. False: no relay is connected, or it is not certain."""
        call = self._call(directory)
        return call is not None and call.order(number)

    def end(self, directory: Path) -> None:
        """Break off the call of a relay, if it is connected. Its record is closed."""
        if call := self._call(directory):
            call.end()

    def _call(self, directory: Path) -> RelayCall | None:
        with self._lock:
            return self._calls.get(directory)


relay_calls = RelayCalls()
