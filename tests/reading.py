"""A reader of one log over the wire, on a thread of its own, and all that it was given."""

import threading
from collections.abc import Callable

from fastlane_grpc.client import Client, Disconnected, End, Event, Gap, Output, StateChange
from fastlane_grpc.v1 import fastlane_pb2 as pb

SECONDS = 120


class Reader:
    """Follows an execution to its end. The client itself raises LogInconsistent where a byte comes twice, or is left
    out without a gap."""

    def __init__(self, client: Client, execution_id: str, **how: object) -> None:
        self.execution_id = execution_id
        self.data = {pb.SOURCE_STDOUT: bytearray(), pb.SOURCE_STDERR: bytearray(), pb.SOURCE_SYSTEM: bytearray()}
        self.chunks = 0
        self.gaps: list[Gap] = []
        self.changes: list[StateChange] = []
        self.cuts = 0
        self._client = client
        self._tail = client.tail(execution_id, **{"heartbeat": 1, **how})  # type: ignore[arg-type]
        self._end: End | None = None
        self._error: BaseException | None = None
        self._over = False
        self._came = threading.Condition()
        threading.Thread(target=self._read, daemon=True).start()

    @property
    def stdout(self) -> bytes:
        return bytes(self.data[pb.SOURCE_STDOUT])

    @property
    def stderr(self) -> bytes:
        return bytes(self.data[pb.SOURCE_STDERR])

    @property
    def system(self) -> str:
        return self.data[pb.SOURCE_SYSTEM].decode()

    @property
    def states(self) -> list[int]:
        """Each state that was told of, in order."""
        return [change.state for change in self.changes]

    def wait_for(self, true: Callable[[], bool]) -> None:
        """Until it is true of what was given so far."""
        with self._came:
            self._came.wait_for(lambda: self._over or true(), SECONDS)
            self._raise()
            assert true(), f"it did not come: {self.states}, {self.stdout[-200:]!r}, {self.system[-500:]!r}"

    def wait_for_state(self, state: int) -> None:
        self.wait_for(lambda: state in self.states)

    def wait_for_output(self, content: bytes) -> None:
        self.wait_for(lambda: content in self.data[pb.SOURCE_STDOUT])

    def end(self) -> End:
        with self._came:
            self._came.wait_for(lambda: self._over, SECONDS)
            self._raise()
            assert self._end is not None, "the log did not end"
            return self._end

    def totals(self, source: int = pb.SOURCE_STDOUT) -> pb.LogTotals:
        """What the end said of the source."""
        return next((totals for totals in self.end().totals if totals.source == source), pb.LogTotals())

    def execution(self) -> pb.Execution:
        return self._client.execution(self.execution_id)

    def _raise(self) -> None:
        if self._error:
            raise self._error

    def _read(self) -> None:
        try:
            for events in self._tail.batches():
                with self._came:
                    for event in events:
                        self._take(event)
                    self._came.notify_all()
        except BaseException as error:
            self._error = error
        with self._came:
            self._over = True
            self._came.notify_all()

    def _take(self, event: Event) -> None:
        match event:
            case Output():
                self.data[pb.Source.ValueType(event.source)] += event.data
                self.chunks += 1
            case Gap():
                self.gaps.append(event)
            case StateChange():
                self.changes.append(event)
            case Disconnected():
                self.cuts += 1
            case End():
                self._end = event


def run(client: Client, image: str, *words: str, **spec: object) -> Reader:
    """Runs a job to its end."""
    job = client.enqueue("run", image, args=words, **spec)  # type: ignore[arg-type]
    reader = Reader(client, job.execution.id)
    reader.end()
    return reader


def outcome(reader: Reader) -> pb.Outcome:
    found = reader.end().outcome
    assert found is not None
    return found
