"""The record of a call in flight: what the access log and the slow-call log tell of it.

A call has a record only while one of these logs is on. Nothing of a body is kept but the names of what the call is
about."""

from contextvars import ContextVar
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

# Names of this many characters are told; a request that is not checked yet may have longer ones.
_MOST_CHARACTERS = 200
# The fields of requests and responses that name what a call is about.
_IDS = ("task_id", "job_id", "execution_id", "request_id", "host")


@dataclass(slots=True)
class CallRecord:
    """A call of a door, `grpc` or `http`. `peer`: the address of its client, as gRPC writes it.

    `method`: the method of the contract; of other calls the name of the path. `path`: the verb and the pattern of the
    path, of HTTP alone. `trace`: a name that the client, or a proxy before it, has given to the call."""

    door: str
    method: str
    peer: str
    path: str = ""
    caller: str = ""
    trace: str = ""
    is_stream: bool = False
    start_seconds: float = field(default_factory=perf_counter)
    bytes_sent: int = 0
    # What the call is about, by the name of the field.
    ids: dict[str, str] = field(default_factory=dict)
    # Seconds that it has waited, by what it has waited for.
    waits: dict[str, float] = field(default_factory=dict)

    def note(self, message: Any) -> None:
        """Note what a request or a response is about."""
        for name in _IDS:
            self._note(name, getattr(message, name, ""))
        job = getattr(message, "job", None)
        execution = getattr(message, "execution", None) or getattr(job, "execution", None)
        self._note("job_id", getattr(job, "id", ""))
        self._note("execution_id", getattr(execution, "id", ""))
        for each in (job, execution):
            for name in _IDS:
                self._note(name, getattr(each, name, ""))

    def note_wait(self, what: str, seconds: float) -> None:
        """Note that the call has waited."""
        self.waits[what] = self.waits.get(what, 0.0) + seconds

    def _note(self, name: str, value: object) -> None:
        if value and isinstance(value, str):
            self.ids.setdefault(name, value[:_MOST_CHARACTERS])


# The call that runs in this task; None: no log wants it.
CALL: ContextVar[CallRecord | None] = ContextVar("call", default=None)


def note(message: Any) -> None:
    """Note what a request or a response of the call in this task is about, if a log wants it."""
    if (record := CALL.get()) is not None:
        record.note(message)
