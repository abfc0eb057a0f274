"""The blocking client: enqueue a job, look at it, stop it, follow its output. A tail never repeats a byte and never drops one in silence.

Calls are tried again while the server cannot be reached; an enqueue always carries a `request_id`, so that this makes no second job.
"""

import itertools
import queue
import random
import threading
import time
import uuid
import weakref
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, NoReturn, Self, TypeAlias, TypeVar, cast

import grpc
from google.protobuf import duration_pb2
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

from fastlane_grpc.v1 import fastlane_pb2, fastlane_pb2_grpc

Duration: TypeAlias = timedelta | float
"""A time span; a bare number is seconds."""

STDOUT = fastlane_pb2.SOURCE_STDOUT
STDERR = fastlane_pb2.SOURCE_STDERR
SYSTEM = fastlane_pb2.SOURCE_SYSTEM

_Request = TypeVar("_Request")
_Response = TypeVar("_Response")
_NONE: Mapping[str, str] = MappingProxyType({})
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


# ---------------------------------------------------------------------------------------------------------------- what goes wrong


class Error(Exception):
    """A call that failed. `reason` is a name of `fastlane.v1.ErrorReason` without its prefix, `metadata` says which one it is about.

    Where the answer is not the server's (the network's, a proxy's, this client's own finding) `reason` is empty.
    """

    def __init__(
        self,
        message: str,
        *,
        code: grpc.StatusCode = grpc.StatusCode.UNKNOWN,
        reason: str = "",
        metadata: Mapping[str, str] = _NONE,
        retry_seconds: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = code
        self.reason = reason
        self.metadata = metadata
        self.retry_seconds = retry_seconds

    @property
    def passing(self) -> bool:
        """The same call may succeed later."""
        return self.retry_seconds is not None or (not self.reason and self.code in _CUTS)


class NotFound(Error):
    """There is no task, job or execution of that id."""


class InvalidRequest(Error):
    """Fields of the request cannot be as they are: `violations` has each with what is wrong with it."""

    violations: Sequence[tuple[str, str]] = ()


class UnknownField(Error):
    """The server is older than this client and does not know a field that was set, or the call itself."""


class RequestIdReused(Error):
    """The request_id came with another request before; `metadata["job_id"]` is the job it made."""


class CursorRefused(Error):
    """The cursor is none, is of another execution, or lies beyond the end of the log."""


class Exhausted(Error):
    """The server has no room: the disk or the queue is full, or too many streams are open."""


class ServerUnavailable(Error):
    """The server does not answer, or is going down, or cannot use its data directory."""


class ServerDefect(Error):
    """A defect of the server; the message carries an id that is in its log."""


class LogInconsistent(Error):
    """What a tail received cannot be right: bytes twice, bytes missing without a gap, or other bytes than were written."""


_BY_REASON: Mapping[str, type[Error]] = {
    "INVALID_FIELD": InvalidRequest,
    "UNKNOWN_FIELD": UnknownField,
    "CURSOR_INVALID": CursorRefused,
    "CURSOR_OF_ANOTHER_EXECUTION": CursorRefused,
    "CURSOR_AHEAD": CursorRefused,
    "PAGE_TOKEN_INVALID": InvalidRequest,
    "TASK_NOT_FOUND": NotFound,
    "JOB_NOT_FOUND": NotFound,
    "EXECUTION_NOT_FOUND": NotFound,
    "REQUEST_ID_REUSED": RequestIdReused,
    "QUEUE_FULL": Exhausted,
    "DISK_FULL": Exhausted,
    "TOO_MANY_STREAMS": Exhausted,
    "SERVER_STOPPING": ServerUnavailable,
    "STORE_FAILED": ServerUnavailable,
    "DEFECT": ServerDefect,
}

# For an answer without a reason, or with one that this client does not know yet.
_BY_CODE: Mapping[grpc.StatusCode, type[Error]] = {
    grpc.StatusCode.NOT_FOUND: NotFound,
    grpc.StatusCode.INVALID_ARGUMENT: InvalidRequest,
    grpc.StatusCode.UNIMPLEMENTED: UnknownField,
    grpc.StatusCode.RESOURCE_EXHAUSTED: Exhausted,
    grpc.StatusCode.UNAVAILABLE: ServerUnavailable,
    grpc.StatusCode.DEADLINE_EXCEEDED: ServerUnavailable,
}

# What the network and proxies answer in the server's place when they cut: the server's own errors have a reason.
_CUTS = {
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.ABORTED,
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.UNKNOWN,
}


# ---------------------------------------------------------------------------------------------------------------- what a tail yields


class Output(NamedTuple):
    """Bytes of one source that were received together. `text` is set in place of `data` where text was asked for."""

    # A tuple because it is made for every chunk of a flood: a frozen dataclass takes twice the time.
    source: int
    offset: int
    data: bytes
    text: str
    time_ns: int
    sequence: int

    @property
    def time(self) -> datetime:
        return _EPOCH + timedelta(microseconds=self.time_ns // 1000)


@dataclass(frozen=True, slots=True)
class Gap:
    """Bytes that cannot be had, from `offset` on; None where nobody knows how many. `cause` is a `fastlane.v1.LogGap.Cause`."""

    source: int
    offset: int
    missing_bytes: int | None
    cause: int


@dataclass(frozen=True, slots=True)
class StateChange:
    """The state of the execution: once at the begin, then at each change."""

    state: int
    waiting: fastlane_pb2.Waiting | None
    time: datetime


@dataclass(frozen=True, slots=True)
class Disconnected:
    """The stream was cut, or could not be opened again, `seconds` after the cut. The tail goes on by itself when it is asked for more."""

    error: Error
    seconds: float


@dataclass(frozen=True, slots=True)
class Reconnected:
    """The stream is back, `seconds` after the cut, at the very byte where it was cut."""

    seconds: float


@dataclass(frozen=True, slots=True)
class End:
    """The end: nothing follows. `exit_status` is what a program that stands for this execution should exit with."""

    sealed: bool
    state: int
    outcome: fastlane_pb2.Outcome | None
    totals: Sequence[fastlane_pb2.LogTotals]
    exit_status: int


Event: TypeAlias = Output | Gap | StateChange | Disconnected | Reconnected | End


# ---------------------------------------------------------------------------------------------------------------- the client


@dataclass(frozen=True, slots=True)
class Backoff:
    """Pauses between tries: each twice as long as the one before, up to a half taken off at random so that not all come back at once."""

    first_seconds: float = 0.1
    longest_seconds: float = 5.0

    def pause_seconds(self, failures: int, asked_seconds: float | None) -> float:
        """The pause after `failures` earlier ones, on top of what the server asked for."""
        longest = min(self.first_seconds * (1 << min(failures, 30)), self.longest_seconds)
        return (asked_seconds or 0.0) + longest * random.uniform(0.5, 1.0)


class Client:
    """A server at `address`, as "127.0.0.1:7020", or behind a channel of your own (TLS, interceptors), which stays yours to close.

    A call may take `timeout` in all. While the server cannot be reached it is tried again for `retry_for` (as long as `timeout` if not
    given). All methods may be called from any thread; each tail belongs to one.
    """

    def __init__(
        self, address: str | grpc.Channel, *, timeout: Duration = 30.0, retry_for: Duration | None = None, backoff: Backoff = Backoff()
    ) -> None:
        self._timeout_seconds = _seconds(timeout)
        self._retry_seconds = self._timeout_seconds if retry_for is None else _seconds(retry_for)
        self._backoff = backoff
        self._own_channel = grpc.insecure_channel(address, options=_options(address, backoff)) if isinstance(address, str) else None
        channel = self._own_channel or address
        assert not isinstance(channel, str)
        self._jobs = fastlane_pb2_grpc.JobServiceStub(channel)
        self._executions = fastlane_pb2_grpc.ExecutionServiceStub(channel)
        self._server = fastlane_pb2_grpc.ServerServiceStub(channel)
        self._tails: weakref.WeakSet[Tail] = weakref.WeakSet()

    def enqueue(
        self,
        task_id: str,
        image: str,
        command: str = "",
        *,
        args: Sequence[str] = (),
        envs: Mapping[str, str] = _NONE,
        entrypoint: Sequence[str] = (),
        working_dir: str = "",
        user: str = "",
        timeout: Duration | None = None,
        pull_policy: Literal["missing", "always", "never"] | None = None,
        memory_bytes: int = 0,
        cpus: float = 0.0,
        pids: int = 0,
        network: str = "",
        read_only_root: bool = False,
        stop_signal: str = "",
        stop_grace: Duration | None = None,
        priority: int = 0,
        labels: Mapping[str, str] = _NONE,
        metadata: dict[str, Any] | None = None,
        request_id: str | None = None,
        validate_only: bool = False,
    ) -> fastlane_pb2.Job:
        """The job that is kept, with its first execution. What the arguments mean is said at `JobSpec` in the contract.

        With a `request_id` of your own the same request answers the same job even after your program was started anew; without one, one
        is made for this call. `validate_only` checks everything and keeps nothing.
        """
        spec = fastlane_pb2.JobSpec(
            image=image,
            command=command,
            args=args,
            envs=envs,
            entrypoint=entrypoint,
            working_dir=working_dir,
            user=user,
            timeout=_optional_duration(timeout),
            pull_policy=_pull_policy(pull_policy),
            network=network,
            read_only_root=read_only_root,
            stop_signal=stop_signal,
            stop_grace=_optional_duration(stop_grace),
            priority=priority,
            labels=labels,
        )
        if memory_bytes or cpus or pids:
            spec.limits.CopyFrom(fastlane_pb2.Limits(memory_bytes=memory_bytes, cpus=cpus, pids=pids))
        if metadata is not None:
            spec.metadata.SetInParent()
            spec.metadata.update(metadata)
        request = fastlane_pb2.EnqueueJobRequest(
            task_id=task_id, spec=spec, request_id=request_id or str(uuid.uuid4()), validate_only=validate_only
        )
        return self._call(self._jobs.EnqueueJob, request).job

    def job(self, job_id: str) -> fastlane_pb2.Job:
        """The job as it is now, with its newest execution."""
        return self._call(self._jobs.GetJob, fastlane_pb2.GetJobRequest(job_id=job_id)).job

    def execution(self, execution_id: str) -> fastlane_pb2.Execution:
        """The execution as it is now."""
        return self._call(self._executions.GetExecution, fastlane_pb2.GetExecutionRequest(execution_id=execution_id)).execution

    def stop(self, job_id: str, note: str = "", grace: Duration | None = None) -> fastlane_pb2.Job:
        """Ends the job: its signal, then `grace` (the job's own if not given), then a kill. Answers as soon as that is on its way."""
        request = fastlane_pb2.StopJobRequest(job_id=job_id, note=note, grace=_optional_duration(grace))
        return self._call(self._jobs.StopJob, request).job

    def server_info(self) -> fastlane_pb2.GetServerInfoResponse:
        """Version and limits of the server."""
        return self._call(self._server.GetServerInfo, fastlane_pb2.GetServerInfoRequest())

    def tail(
        self,
        execution_id: str,
        cursor: str = "",
        sources: Iterable[fastlane_pb2.Source.ValueType] = (),
        *,
        follow: bool = True,
        text: bool = False,
        heartbeat: Duration | None = None,
        give_up_after: Duration | None = None,
    ) -> "Tail":
        """The output of an execution after `cursor`, and with `follow` what comes, to its end. Before the start, while it runs, after it.

        `sources`: which, all if empty. `text` asks for lossy text in place of bytes, which cannot be checked. The server gives a sign of
        life after each `heartbeat` (10 s) of silence; three missing ones are a cut. `give_up_after`: raises the error once the server was
        away for so long; never, if not given.
        """
        request = fastlane_pb2.StreamExecutionLogsRequest(
            execution_id=execution_id,
            cursor=cursor,
            sources=sources,
            follow=follow,
            text=text,
            heartbeat_interval=_optional_duration(heartbeat),
        )
        silence_seconds = 3 * (_DEFAULT_HEARTBEAT_SECONDS if heartbeat is None else _seconds(heartbeat))
        give_up_seconds = None if give_up_after is None else _seconds(give_up_after)
        tail = Tail(self._executions.StreamExecutionLogs, request, self._backoff, silence_seconds, give_up_seconds)
        self._tails.add(tail)
        return tail

    def close(self) -> None:
        """Ends all tails and the connection."""
        for tail in list(self._tails):
            tail.close()
        if self._own_channel is not None:
            self._own_channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _call(self, method: "grpc.UnaryUnaryMultiCallable[_Request, _Response]", request: _Request) -> _Response:
        """Every call here may be sent twice: the second one changes nothing."""
        begin = time.monotonic()
        for failures in itertools.count():
            left_seconds = self._timeout_seconds - (time.monotonic() - begin)
            try:
                return method(request, timeout=max(left_seconds, 0.001))
            except grpc.RpcError as failure:
                error = _error(failure)
                pause_seconds = self._backoff.pause_seconds(failures, error.retry_seconds)
                if not error.passing or time.monotonic() - begin + pause_seconds > min(self._retry_seconds, self._timeout_seconds):
                    raise error from failure
            time.sleep(pause_seconds)
        raise AssertionError("the loop above has no end")


# ---------------------------------------------------------------------------------------------------------------- the tail


class Tail(Iterator[Event]):
    """Iterates over the output of one execution and finishes after `End`. A cut is mended by itself, without a byte twice or missing.

    Raises LogInconsistent where what came cannot be right: offsets are checked at every chunk, checksums at the end. Leaving it (`close`,
    `with`, the last reference gone) cancels the call; after `close`, which any thread may call, it finishes without an `End`.
    """

    def __init__(
        self,
        method: "grpc.UnaryStreamMultiCallable[fastlane_pb2.StreamExecutionLogsRequest, fastlane_pb2.StreamExecutionLogsResponse]",
        request: fastlane_pb2.StreamExecutionLogsRequest,
        backoff: Backoff,
        silence_seconds: float,
        give_up_seconds: float | None,
    ) -> None:
        self._method = method
        self._request = request
        self._backoff = backoff
        self._give_up_seconds = give_up_seconds
        self._watch = _Watch(silence_seconds)
        self._ledger = _Ledger(request)
        self._closed = threading.Event()
        self._over = False
        self._call: grpc._CallIterator[fastlane_pb2.StreamExecutionLogsResponse] | None = None
        self._failures = 0
        self._pause_seconds = 0.0
        self._cut_at: float | None = None
        self._state: fastlane_pb2.LogState | None = None
        # Events of the last message that were not handed out yet, the next one last; and the point after that message.
        self._ahead: list[Event] = []
        self._received_cursor = request.cursor
        self._cursor = request.cursor

    @property
    def cursor(self) -> str:
        """The point after the last message of which everything was handed out: pass it to `Client.tail` to go on from there.

        A message may hold several chunks. To keep a cursor that says exactly what was dealt with, read by `batches`.
        """
        return self._cursor

    def __next__(self) -> Event:
        if not self._ahead:
            self._ahead = self._read()
            self._ahead.reverse()
            if not self._ahead:
                raise StopIteration
        event = self._ahead.pop()
        if not self._ahead:
            self._cursor = self._received_cursor
        return event

    def batches(self) -> Iterator[Sequence[Event]]:
        """The events of one message at a time, for programs that write them together; `cursor` is the point after the batch."""
        while events := self._ahead[::-1] or self._read():
            self._ahead = []
            self._cursor = self._received_cursor
            yield events

    def close(self) -> None:
        self._over = True
        self._closed.set()
        self._watch.stop()
        if (call := self._call) is not None:
            self._call = None
            call.cancel()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        # This may run in the middle of anything, even of the interpreter's end. No lock may be taken: the call is left to the watch.
        self._watch.stop()

    def _read(self) -> list[Event]:
        """The events of the next message that has any, or one notice about the connection; nothing once it is over."""
        while not self._over:
            received = self._receive()
            if self._closed.is_set():
                break
            if isinstance(received, Error):
                return [self._disconnected(received)]
            events = self._connected()
            self._unfold(received, events)
            if events:
                return events
        self.close()
        return []

    def _receive(self) -> fastlane_pb2.StreamExecutionLogsResponse | Error:
        call = self._call or self._open()
        if self._closed.is_set():
            call.cancel()
        self._watch.waits(call)
        try:
            return next(call)
        except StopIteration:
            return _cut("the stream ended before its end")
        except grpc.RpcError as failure:
            # The failure is the call itself: with the way it was raised it would keep itself, and this tail, from being collected.
            failure.__traceback__ = None
            if self._watch.cancelled is call:
                return _cut(f"nothing came for {self._watch.silence_seconds:g} s, not even a heartbeat")
            return _error(failure)
        except BaseException:
            # Ctrl-C, say. A call that was left while it waited cannot be read again: whoever goes on gets a new one.
            call.cancel()
            self._call = None
            self._pause_seconds = 0.0
            raise
        finally:
            self._watch.rests()

    def _open(self) -> "grpc._CallIterator[fastlane_pb2.StreamExecutionLogsResponse]":
        self._closed.wait(self._pause_seconds)
        self._request.cursor = self._received_cursor
        self._call = self._method(self._request)
        return self._call

    def _connected(self) -> list[Event]:
        if self._cut_at is not None:
            away_seconds = time.monotonic() - self._cut_at
            self._cut_at = None
            return [Reconnected(away_seconds)]
        # Only the second message of a call shows that it works: the first is sent before anything is read.
        self._failures = 0
        return []

    def _disconnected(self, error: Error) -> Disconnected:
        self._call = None
        now = time.monotonic()
        if self._cut_at is None:
            self._cut_at = now
        away_seconds = now - self._cut_at
        if not error.passing or (self._give_up_seconds is not None and away_seconds >= self._give_up_seconds):
            self.close()
            raise error
        self._pause_seconds = self._backoff.pause_seconds(self._failures, error.retry_seconds)
        self._failures += 1
        return Disconnected(error, away_seconds)

    def _unfold(self, message: fastlane_pb2.StreamExecutionLogsResponse, events: list[Event]) -> None:
        """Adds what the message holds to `events`, checked."""
        self._received_cursor = message.cursor
        try:
            if message.chunks:
                self._ledger.outputs(message.chunks, events)
            match message.WhichOneof("event"):
                case "gap":
                    events.append(self._ledger.gap(message.gap))
                case "state":
                    # Each call begins with it; it is news only where it changed.
                    if message.state != self._state:
                        self._state = message.state
                        events.append(_state_change(message.state))
                case "end":
                    self._ledger.end(message.end)
                    events.append(_end(message.end))
                    self._over = True
        except LogInconsistent:
            self.close()
            raise


class _Ledger:
    """What a tail received of each source: finds bytes that come twice, are missing, or are not those that were written."""

    def __init__(self, request: fastlane_pb2.StreamExecutionLogsRequest) -> None:
        self._execution_id = request.execution_id
        self._text = request.text
        self._asked = set(request.sources) or {STDOUT, STDERR, SYSTEM}
        self._from_first_byte = not request.cursor
        self._places: dict[int, _Place] = {}

    def outputs(self, chunks: Iterable[fastlane_pb2.LogChunk], events: list[Event]) -> None:
        # The hot path: of a flood of short lines every one comes through here.
        crc32 = zlib.crc32
        text_mode = self._text
        for chunk in chunks:
            source = chunk.source
            offset = chunk.offset
            data = chunk.data
            received_time = chunk.time
            place = self._places.get(source) or self._begin(source)
            if offset != place.offset:
                self._expect(place, source, offset)
            place.offset = offset + len(data)
            if place.crc32 is not None:
                place.crc32 = crc32(data, place.crc32)
            time_ns = received_time.seconds * 1_000_000_000 + received_time.nanos
            events.append(Output(source, offset, data, chunk.text if text_mode else "", time_ns, chunk.sequence))

    def gap(self, gap: fastlane_pb2.LogGap) -> Gap:
        place = self._places.get(gap.source) or self._begin(gap.source)
        self._expect(place, gap.source, gap.offset)
        missing_bytes = gap.missing_bytes if gap.HasField("missing_bytes") else None
        place.offset = gap.offset + (missing_bytes or 0)
        place.crc32 = None
        return Gap(gap.source, gap.offset, missing_bytes, gap.cause)

    def end(self, end: fastlane_pb2.LogEnd) -> None:
        if not end.sealed or self._text:
            return
        totals_of = {totals.source: totals for totals in end.totals}
        for source in self._asked:
            place = self._places.get(source) or self._begin(source)
            totals = totals_of.get(source, fastlane_pb2.LogTotals())
            if place.offset is not None and place.offset != totals.bytes:
                self._fail(source, f"it ended at byte {place.offset}, and the server says that it has {totals.bytes}")
            if place.crc32 is not None and totals.HasField("crc32") and place.crc32 != totals.crc32:
                self._fail(source, f"its checksum is {place.crc32:08x} here and {totals.crc32:08x} at the server")

    def _begin(self, source: int) -> "_Place":
        """The first byte is known to be 0 only where there was no cursor: a cursor says nothing to a client."""
        self._places[source] = place = _Place(0, 0) if self._from_first_byte else _Place(None, None)
        return place

    def _expect(self, place: "_Place", source: int, offset: int) -> None:
        # How many bytes a text was made from is not known: there, offsets may leap, but never go back.
        expected = place.offset
        if expected is None or offset == expected or (self._text and offset > expected):
            return
        self._fail(source, f"byte {offset} came where byte {expected} was due")

    def _fail(self, source: int, finding: str) -> NoReturn:
        name = fastlane_pb2.Source.Name(source) if source in fastlane_pb2.Source.values() else f"source {source}"  # type: ignore[arg-type]
        raise LogInconsistent(
            f"the log of execution {self._execution_id} cannot be right, {name.removeprefix('SOURCE_').lower()}: {finding}"
        )


@dataclass(slots=True)
class _Place:
    """Offset of the next byte, and the checksum of all before it; None where that cannot be known."""

    offset: int | None
    crc32: int | None


class _Watch:
    """Cancels a call on which somebody waits while nothing comes, or whose tail is gone. Time in which nobody waits, because the output is
    being dealt with, does not count. It knows the call and not the tail: a tail that is dropped is collected, and the thread ends."""

    def __init__(self, silence_seconds: float) -> None:
        self.silence_seconds = silence_seconds
        self.cancelled: grpc.Call | None = None
        self._call: grpc.Call | None = None
        self._waiting: tuple[grpc.Call, float] | None = None
        # The one kind of queue that a finalizer may put into, whatever it interrupts.
        self._orders: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def waits(self, call: grpc.Call) -> None:
        self._call = call
        self._waiting = (call, time.monotonic())
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="fastlane-tail-watch", daemon=True)
            self._thread.start()

    def rests(self) -> None:
        self._waiting = None

    def stop(self) -> None:
        self._orders.put(None)

    def _run(self) -> None:
        while not self._stopped():
            # One read: the call and its time belong together, whatever the other thread does meanwhile.
            waiting = self._waiting
            if waiting is not None and time.monotonic() - waiting[1] >= self.silence_seconds:
                self.cancelled = waiting[0]
                waiting[0].cancel()
        if self._call is not None:
            self._call.cancel()
            self._call = None

    def _stopped(self) -> bool:
        """After as long as the call may still be silent."""
        waiting = self._waiting
        waited_seconds = 0.0 if waiting is None else time.monotonic() - waiting[1]
        try:
            # A tenth at least: a call that was just cancelled is still waited for.
            self._orders.get(timeout=max(self.silence_seconds - waited_seconds, self.silence_seconds / 10))
        except queue.Empty:
            return False
        return True


# ---------------------------------------------------------------------------------------------------------------- wire and values

_DEFAULT_HEARTBEAT_SECONDS = 10.0
_LOOPBACK = ("127.", "localhost:", "[::1]:")


def _options(address: str, backoff: Backoff) -> list[tuple[str, int]]:
    options = [
        # An answer has at most 3 MiB.
        ("grpc.max_receive_message_length", 4 << 20),
        # Finds a peer that is gone below HTTP/2 while a call is open. Servers refuse pings on idle connections.
        ("grpc.keepalive_time_ms", 30_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        ("grpc.keepalive_permit_without_calls", 0),
        # gRPC's own pauses between connects grow to 2 minutes, through which ours would only see the last failure again.
        ("grpc.initial_reconnect_backoff_ms", int(backoff.first_seconds * 1000)),
        ("grpc.max_reconnect_backoff_ms", int(backoff.longest_seconds * 1000)),
        # How long one connect may take.
        ("grpc.min_reconnect_backoff_ms", 5_000),
    ]
    if address.startswith(_LOOPBACK):
        # `http_proxy` in the environment would otherwise send even this through the proxy.
        options.append(("grpc.enable_http_proxy", 0))
    return options


def _seconds(duration: Duration) -> float:
    return duration.total_seconds() if isinstance(duration, timedelta) else float(duration)


def _optional_duration(duration: Duration | None) -> duration_pb2.Duration | None:
    if duration is None:
        return None
    message = duration_pb2.Duration()
    if isinstance(duration, timedelta):
        message.FromTimedelta(duration)
    else:
        message.FromNanoseconds(round(duration * 1_000_000_000))
    return message


def _pull_policy(policy: str | None) -> fastlane_pb2.JobSpec.PullPolicy.ValueType:
    return fastlane_pb2.JobSpec.PullPolicy.Value(f"PULL_POLICY_{(policy or 'unspecified').upper()}")


def _state_change(state: fastlane_pb2.LogState) -> StateChange:
    return StateChange(state.state, state.waiting if state.HasField("waiting") else None, state.time.ToDatetime(UTC))


def _end(end: fastlane_pb2.LogEnd) -> End:
    return End(end.sealed, end.state, end.outcome if end.HasField("outcome") else None, tuple(end.totals), end.exit_status)


def _cut(message: str) -> Error:
    return ServerUnavailable(message, code=grpc.StatusCode.UNAVAILABLE)


def _error(failure: grpc.RpcError) -> Error:
    code = failure.code()
    status = _rich_status(cast(Iterable[tuple[str, str | bytes]], failure.trailing_metadata() or ()))
    info = error_details_pb2.ErrorInfo()
    bad_request = error_details_pb2.BadRequest()
    retry = error_details_pb2.RetryInfo()
    retry_seconds = None
    for detail in status.details:
        for known in (info, bad_request, retry):
            detail.Unpack(known)
    retry_seconds = retry.retry_delay.ToTimedelta().total_seconds() if retry.HasField("retry_delay") else None
    if info.domain != "fastlane":
        info.Clear()
    kind = _BY_REASON.get(info.reason) or _BY_CODE.get(code, Error)
    message = status.message or failure.details() or code.name
    error = kind(message, code=code, reason=info.reason, metadata=dict(info.metadata), retry_seconds=retry_seconds)
    if isinstance(error, InvalidRequest):
        error.violations = tuple((violation.field, violation.description) for violation in bad_request.field_violations)
    return error


def _rich_status(trailers: Iterable[tuple[str, str | bytes]]) -> status_pb2.Status:
    """What the server said beyond code and message; empty where it was not the server that answered."""
    for key, value in trailers:
        if key == "grpc-status-details-bin" and isinstance(value, bytes):
            try:
                return status_pb2.Status.FromString(value)
            except DecodeError:
                break
    return status_pb2.Status()
