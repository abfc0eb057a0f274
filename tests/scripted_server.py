"""A server of the contract without a harness behind it: it holds logs that a test wrote, and cuts, lies or falls silent
where it is told."""

# ruff: noqa: N802 -- the names of a servicer's methods are those of the contract.

import random
import threading
import zlib
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, NoReturn, TypeAlias

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2

from fastlane_grpc.v1 import fastlane_pb2 as pb
from fastlane_grpc.v1 import fastlane_pb2_grpc


@dataclass(frozen=True)
class Piece:
    """Bytes of one source, or, with `missing`, a gap: of so many bytes, of unknown size where negative; or a change of
    state. `message` is sent as it is, with its cursor: of a server that is newer than its clients."""

    source: int = 0
    data: bytes = b""
    missing: int = 0
    state: int = 0
    waiting: pb.Waiting | None = None
    message: bytes = b""

    @property
    def size(self) -> int:
        return max(len(self.data) + self.missing, 0)


Entry: TypeAlias = pb.LogChunk | pb.LogGap | pb.LogState | pb.StreamExecutionLogsResponse


@dataclass(frozen=True)
class Cut:
    """How a call ends after so many messages."""

    after_messages: int
    how: str


@dataclass(frozen=True)
class Log:
    """An execution's log and how it is served."""

    pieces: Sequence[Piece] = ()
    # What is sent in place of `pieces`, from which the totals are taken: a lie.
    served: Sequence[Piece] | None = None
    state: int = pb.STATE_SUCCEEDED
    exit_status: int = 0
    outcome: pb.Outcome = field(default_factory=pb.Outcome)
    sealed: bool = True
    chunk_bytes: int = 1 << 16
    chunks_per_message: int = 4
    cut_anew: bool = False
    heartbeats_before_end: int = 0
    heartbeat_seconds: float = 0.02
    heeds_stop: bool = True
    # The cursor at which a reader begins that asks for the last lines, or for what came since a time.
    begin: str = "0.0"
    first_state: int = pb.STATE_RUNNING

    def data(self, source: int) -> bytes:
        return b"".join(piece.data for piece in self.pieces if piece.source == source)

    def totals(self) -> Iterator[pb.LogTotals]:
        for source in sorted({piece.source for piece in self.pieces if piece.source}):
            mine = [piece for piece in self.pieces if piece.source == source]
            totals = pb.LogTotals(
                source=source,
                bytes=sum(each.size for each in mine),
                missing_bytes=sum(max(each.missing, 0) for each in mine),
            )
            if not any(piece.missing for piece in mine):
                totals.crc32 = zlib.crc32(self.data(source))
            yield totals


class ScriptedServer(
    fastlane_pb2_grpc.JobServiceServicer,
    fastlane_pb2_grpc.ExecutionServiceServicer,
    fastlane_pb2_grpc.TaskServiceServicer,
    fastlane_pb2_grpc.HostServiceServicer,
    fastlane_pb2_grpc.ServerServiceServicer,
):
    """Serves on a free port of loopback, or on `address`. Waits of a test end by `event(name)`: the server sets it when
    that happened."""

    def __init__(self, address: str = "127.0.0.1:0") -> None:
        self.logs: dict[str, Log] = {}
        self.cuts: deque[Cut] = deque()
        self.refusals: deque[tuple[grpc.StatusCode, str, dict[str, Any]]] = deque()
        self.requests: list[Any] = []
        # The header of each call, in the order of `requests`.
        self.authorizations: list[str | bytes] = []
        # What lists answer, and what is looked for by its id beside "job-1" and the executions of `logs`.
        self.jobs: list[pb.Job] = []
        self.executions: list[pb.Execution] = []
        self.tasks: list[pb.TaskSummary] = []
        self.hosts: list[pb.EngineHost] = []
        # An empty page comes before each page of a list, as a server answers that found nothing in the work that it
        # does for a page.
        self.empty_pages = False
        self.prunings: deque[pb.PruneResponse] = deque()
        # Executions whose log was streamed to its end.
        self._ended: set[str] = set()
        self.randomness = random.Random(7)
        self._events: dict[str, threading.Event] = {}
        self._events_lock = threading.Lock()
        self._server = grpc.server(ThreadPoolExecutor(16))
        fastlane_pb2_grpc.add_JobServiceServicer_to_server(self, self._server)
        fastlane_pb2_grpc.add_ExecutionServiceServicer_to_server(self, self._server)
        fastlane_pb2_grpc.add_TaskServiceServicer_to_server(self, self._server)
        fastlane_pb2_grpc.add_HostServiceServicer_to_server(self, self._server)
        fastlane_pb2_grpc.add_ServerServiceServicer_to_server(self, self._server)
        self.address = f"127.0.0.1:{self._server.add_insecure_port(address)}"
        self._server.start()

    def stop(self) -> None:
        self._server.stop(None).wait()

    def event(self, name: str) -> threading.Event:
        with self._events_lock:
            return self._events.setdefault(name, threading.Event())

    def received(self, kind: type[Any]) -> list[Any]:
        return [request for request in self.requests if isinstance(request, kind)]

    # ------------------------------------------------------------------------------------------------------------ calls

    def EnqueueJob(self, request: pb.EnqueueJobRequest, context: grpc.ServicerContext) -> pb.EnqueueJobResponse:
        self._note(request, context)
        return pb.EnqueueJobResponse(job=self._job("job-1", request.task_id, request.spec))

    def BatchEnqueueJobs(
        self, request: pb.BatchEnqueueJobsRequest, context: grpc.ServicerContext
    ) -> pb.BatchEnqueueJobsResponse:
        self._note(request, context)
        requests = request.requests or [request.array.request] * request.array.size
        enqueued = [pb.EnqueueJobResponse(job=self._job("job-1", each.task_id, each.spec)) for each in requests]
        return pb.BatchEnqueueJobsResponse(
            results=[pb.BatchEnqueueJobsResponse.Result(enqueued=each) for each in enqueued]
        )

    def BatchStopJobs(
        self, request: pb.BatchStopJobsRequest, context: grpc.ServicerContext
    ) -> pb.BatchStopJobsResponse:
        self._note(request, context)
        # Two calls, as if more than a thousand had matched.
        return pb.BatchStopJobsResponse(stopped=7, more=len(self.received(pb.BatchStopJobsRequest)) == 1)

    def GetJob(self, request: pb.GetJobRequest, context: grpc.ServicerContext) -> pb.GetJobResponse:
        self._note(request, context)
        return pb.GetJobResponse(job=self._found_job(request.job_id, context))

    def ListJobs(self, request: pb.ListJobsRequest, context: grpc.ServicerContext) -> pb.ListJobsResponse:
        self._note(request, context)
        found = [
            job for job in self.jobs if job.id.startswith(request.id_prefix) and request.task_id in {"", job.task_id}
        ]
        jobs, token = self._page([job for job in found if not request.states or job.state in request.states], request)
        return pb.ListJobsResponse(jobs=jobs, next_page_token=token)

    def StopJob(self, request: pb.StopJobRequest, context: grpc.ServicerContext) -> pb.StopJobResponse:
        self._note(request, context)
        job = self._found_job(request.job_id, context)
        self.event("stopped").set()
        return pb.StopJobResponse(job=job)

    def GetExecution(self, request: pb.GetExecutionRequest, context: grpc.ServicerContext) -> pb.GetExecutionResponse:
        self._note(request, context)
        return pb.GetExecutionResponse(execution=self._found_execution(request.execution_id, context))

    def ListExecutions(
        self, request: pb.ListExecutionsRequest, context: grpc.ServicerContext
    ) -> pb.ListExecutionsResponse:
        self._note(request, context)
        found = [
            each
            for each in self.executions
            if each.id.startswith(request.id_prefix)
            and request.job_id in {"", each.job_id}
            and request.host in {"", each.host}
        ]
        executions, token = self._page(found, request)
        return pb.ListExecutionsResponse(executions=executions, next_page_token=token)

    def StopExecution(
        self, request: pb.StopExecutionRequest, context: grpc.ServicerContext
    ) -> pb.StopExecutionResponse:
        self._note(request, context)
        execution = self._found_execution(request.execution_id, context)
        self.event("stopped").set()
        return pb.StopExecutionResponse(execution=execution)

    def GetTask(self, request: pb.GetTaskRequest, context: grpc.ServicerContext) -> pb.GetTaskResponse:
        self._note(request, context)
        found = [task for task in self.tasks if task.id == request.task_id]
        if not found:
            message = f"there is no task {request.task_id!r}"
            refuse(context, grpc.StatusCode.NOT_FOUND, "TASK_NOT_FOUND", message, task_id=request.task_id)
        return pb.GetTaskResponse(task=found[0])

    def ListTasks(self, request: pb.ListTasksRequest, context: grpc.ServicerContext) -> pb.ListTasksResponse:
        self._note(request, context)
        tasks, token = self._page(self.tasks, request)
        return pb.ListTasksResponse(tasks=tasks, next_page_token=token)

    def UpdateTask(self, request: pb.UpdateTaskRequest, context: grpc.ServicerContext) -> pb.UpdateTaskResponse:
        self._note(request, context)
        return pb.UpdateTaskResponse(task=pb.TaskSummary(id=request.task_id, max_running=request.max_running))

    def ListHosts(self, request: pb.ListHostsRequest, context: grpc.ServicerContext) -> pb.ListHostsResponse:
        self._note(request, context)
        return pb.ListHostsResponse(hosts=self.hosts)

    def Prune(self, request: pb.PruneRequest, context: grpc.ServicerContext) -> pb.PruneResponse:
        self._note(request, context)
        return self.prunings.popleft()

    def GetServerInfo(
        self, request: pb.GetServerInfoRequest, context: grpc.ServicerContext
    ) -> pb.GetServerInfoResponse:
        self._note(request, context)
        return pb.GetServerInfoResponse(version="9.9.9")

    def StreamExecutionLogs(
        self, request: pb.StreamExecutionLogsRequest, context: grpc.ServicerContext
    ) -> Iterator[pb.StreamExecutionLogsResponse]:
        context.add_callback(self.event("stream over").set)
        self._note(request, context)
        log = self.logs.get(request.execution_id)
        if log is None:
            self._no_execution(request.execution_id, context)
        cut = self.cuts.popleft() if self.cuts else Cut(-1, "")
        for count, message in enumerate(self._messages(log, request)):
            if count == cut.after_messages:
                self._cut(cut.how, context)
                return
            yield message

    def StreamJobLogs(
        self, request: pb.StreamJobLogsRequest, context: grpc.ServicerContext
    ) -> Iterator[pb.StreamJobLogsResponse]:
        context.add_callback(self.event("stream over").set)
        self._note(request, context)
        job = self._found_job(request.job_id, context)
        log = self.logs.get(job.execution.id)
        if log is None:
            self._no_execution(job.execution.id, context)
        cut = self.cuts.popleft() if self.cuts else Cut(-1, "")
        # The fields of both requests have the same numbers.
        same = pb.StreamExecutionLogsRequest.FromString(request.SerializeToString())
        for count, message in enumerate(self._of_job(job, log, same)):
            # The start of the execution is no message that a cut counts, unless it cuts before all of them.
            if cut.how and count == (cut.after_messages + 1 if cut.after_messages else 0):
                self._cut(cut.how, context)
                return
            yield message

    def _of_job(
        self, job: pb.Job, log: Log, request: pb.StreamExecutionLogsRequest
    ) -> Iterator[pb.StreamJobLogsResponse]:
        start = pb.JobLogExecution(execution=job.execution, max_attempts=1)
        start.execution.attempt = start.execution.run = 1
        yield pb.StreamJobLogsResponse(cursor=request.cursor or "0.0", execution=start)
        for message in self._messages(log, request):
            yield pb.StreamJobLogsResponse.FromString(message.SerializeToString())
        self._ended.add(job.execution.id)
        ended = self._followed_job() if job.id == "job-1" else job
        end = pb.JobLogEnd(job=ended, exit_status=log.exit_status)
        yield pb.StreamJobLogsResponse(cursor=message.cursor, job_end=end)

    # ---------------------------------------------------------------------------------------------------------- the log

    def _messages(self, log: Log, request: pb.StreamExecutionLogsRequest) -> Iterator[pb.StreamExecutionLogsResponse]:
        asks_where = request.HasField("tail_lines") or request.HasField("since_time")
        cursor = request.cursor or (log.begin if asks_where else "0.0")
        yield pb.StreamExecutionLogsResponse(cursor=cursor, state=pb.LogState(state=log.first_state))
        chunks: list[pb.LogChunk] = []
        for entry, after in self._entries(log, request, cursor):
            if isinstance(entry, pb.LogChunk):
                chunks.append(entry)
            if chunks and (not isinstance(entry, pb.LogChunk) or len(chunks) == log.chunks_per_message):
                yield pb.StreamExecutionLogsResponse(
                    cursor=after if isinstance(entry, pb.LogChunk) else cursor, chunks=chunks
                )
                chunks = []
            if isinstance(entry, pb.LogGap):
                yield pb.StreamExecutionLogsResponse(cursor=after, gap=entry)
            if isinstance(entry, pb.LogState):
                yield pb.StreamExecutionLogsResponse(cursor=after, state=entry)
            if isinstance(entry, pb.StreamExecutionLogsResponse):
                entry.cursor = after
                yield entry
            cursor = after
        if chunks:
            yield pb.StreamExecutionLogsResponse(cursor=cursor, chunks=chunks)
        yield from self._until_end(log, cursor)
        yield pb.StreamExecutionLogsResponse(cursor=cursor, state=pb.LogState(state=log.state))
        end = pb.LogEnd(sealed=log.sealed, state=log.state, totals=log.totals(), exit_status=log.exit_status)
        if log.sealed:
            end.outcome.CopyFrom(log.outcome)
        yield pb.StreamExecutionLogsResponse(cursor=cursor, end=end)

    def _entries(self, log: Log, request: pb.StreamExecutionLogsRequest, cursor: str) -> Iterator[tuple[Entry, str]]:
        """Chunks, gaps and states after the cursor, each with the cursor after it. A cursor is the piece and the bytes
        of it."""
        begin_piece, begin_byte = (int(part) for part in cursor.split("."))
        offsets = dict.fromkeys((0, 1, 2, 3), 0)
        for number, piece in enumerate(log.pieces if log.served is None else log.served):
            offset = offsets[piece.source]
            offsets[piece.source] += piece.size
            if number < begin_piece or (request.sources and piece.source not in {0, *request.sources}):
                continue
            if piece.message:
                yield pb.StreamExecutionLogsResponse.FromString(piece.message), f"{number + 1}.0"
            if piece.state:
                yield pb.LogState(state=piece.state, waiting=piece.waiting), f"{number + 1}.0"
            if piece.missing:
                missing_bytes = piece.missing if piece.missing > 0 else None
                yield (
                    pb.LogGap(
                        source=piece.source, offset=offset, missing_bytes=missing_bytes, cause=pb.LogGap.CAUSE_ENGINE
                    ),
                    f"{number + 1}.0",
                )
                continue
            place = begin_byte if number == begin_piece else 0
            while place < len(piece.data):
                size = self.randomness.randint(1, log.chunk_bytes) if log.cut_anew else log.chunk_bytes
                data = piece.data[place : place + size]
                chunk = pb.LogChunk(source=piece.source, offset=offset + place, data=data, sequence=number + 1)
                chunk.time.FromNanoseconds(1_700_000_000_123_456_789 + number)
                if request.text:
                    chunk.text, chunk.data = data.decode(errors="replace"), b""
                place += len(data)
                yield chunk, f"{number + 1}.0" if place == len(piece.data) else f"{number}.{place}"

    def _until_end(self, log: Log, cursor: str) -> Iterator[pb.StreamExecutionLogsResponse]:
        """For a log that is to end late: heartbeats, until so many were sent or the job is stopped."""
        for count in range(1, log.heartbeats_before_end + 1):
            yield pb.StreamExecutionLogsResponse(cursor=cursor, heartbeat=pb.LogHeartbeat())
            self.event(f"heartbeat {count}").set()
            if self.event("stopped" if log.heeds_stop else "released").wait(log.heartbeat_seconds):
                break

    # -------------------------------------------------------------------------------------------------- what goes wrong

    def _cut(self, how: str, context: grpc.ServicerContext) -> None:
        if how == "ok":
            return
        elif how == "reset":
            context.cancel()
        elif how == "silence":
            gone = threading.Event()
            context.add_callback(gone.set)
            gone.wait()
        elif how == "stopping":
            refuse(
                context, grpc.StatusCode.UNAVAILABLE, "SERVER_STOPPING", "the server is going down", retry_seconds=0.001
            )
        elif how == "away":
            refuse(
                context, grpc.StatusCode.UNAVAILABLE, "SERVER_STOPPING", "the server is going down", retry_seconds=1.1
            )
        elif how == "streams":
            refuse(
                context,
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                "TOO_MANY_STREAMS",
                "as many as allowed",
                retry_seconds=0.001,
            )
        else:
            context.abort(grpc.StatusCode[how.upper()], f"cut: {how}")

    def _note(self, request: Any, context: grpc.ServicerContext) -> None:
        self.requests.append(request)
        self.authorizations.append(dict(context.invocation_metadata()).get("authorization", ""))
        if self.refusals:
            code, reason, more = self.refusals.popleft()
            refuse(context, code, reason, more.pop("message", reason), **more)

    def _page(self, items: Sequence[Any], request: Any) -> tuple[Sequence[Any], str]:
        """A token is the place that the next page begins at, with a mark once the empty page before it was sent."""
        begin = int(request.page_token.rstrip("!") or 0)
        if self.empty_pages and not request.page_token.endswith("!"):
            return [], f"{begin}!"
        end = begin + (request.page_size or 50)
        return items[begin:end], str(end) if end < len(items) else ""

    def _found_job(self, job_id: str, context: grpc.ServicerContext) -> pb.Job:
        found = [job for job in [*self.jobs, self._followed_job()] if job.id == job_id]
        if not found:
            refuse(context, grpc.StatusCode.NOT_FOUND, "JOB_NOT_FOUND", f"there is no job {job_id!r}", job_id=job_id)
        return found[0]

    def _followed_job(self) -> pb.Job:
        """The job of "execution-1", which ends when that has been followed to its end."""
        job = self._job("job-1", "task", pb.JobSpec())
        log = self.logs.get("execution-1")
        over = self.event("stream over").is_set() or "execution-1" in self._ended
        if log is not None and log.sealed and over:
            job.state = pb.State.ValueType(log.state)
            job.outcome.CopyFrom(log.outcome)
            if log.exit_status and log.state == pb.STATE_FAILED and log.exit_status != _NO_CONTAINER_STATUS:
                job.outcome.exit_code = log.exit_status
        return job

    def _found_execution(self, execution_id: str, context: grpc.ServicerContext) -> pb.Execution:
        known = [*self.executions, *(pb.Execution(id=each, job_id="job-1") for each in self.logs)]
        found = [execution for execution in known if execution.id == execution_id]
        if not found:
            self._no_execution(execution_id, context)
        return found[0]

    def _no_execution(self, execution_id: str, context: grpc.ServicerContext) -> NoReturn:
        message = f"there is no execution {execution_id!r}"
        refuse(context, grpc.StatusCode.NOT_FOUND, "EXECUTION_NOT_FOUND", message, execution_id=execution_id)

    def _job(self, job_id: str, task_id: str, spec: pb.JobSpec) -> pb.Job:
        return pb.Job(
            id=job_id,
            task_id=task_id,
            spec=spec,
            state=pb.STATE_QUEUED,
            execution=pb.Execution(id="execution-1", job_id=job_id),
        )


_NO_CONTAINER_STATUS = 125
CUTS = (
    *("ok", "reset", "stopping", "streams", "unavailable", "internal", "unknown", "deadline_exceeded", "cancelled"),
    "resource_exhausted",
)


def refuse(
    context: grpc.ServicerContext,
    code: grpc.StatusCode,
    reason: str,
    message: str,
    *,
    retry_seconds: float | None = None,
    violations: Sequence[tuple[str, str]] = (),
    details: bytes | None = None,
    **metadata: str,
) -> NoReturn:
    """Ends the call with an error as the contract says; without a reason, as a proxy would; with `details` that are
    none."""
    if details is not None:
        context.set_trailing_metadata((("grpc-status-details-bin", details),))
    if not reason:
        context.abort(code, message)
    status = status_pb2.Status(code=code_pb2.Code.Value(code.name), message=message)
    status.details.append(_any(error_details_pb2.ErrorInfo(domain="fastlane", reason=reason, metadata=metadata)))
    if violations:
        bad_request = error_details_pb2.BadRequest()
        for violated, description in violations:
            bad_request.field_violations.add(field=violated, description=description)
        status.details.append(_any(bad_request))
    if retry_seconds is not None:
        delay = duration_pb2.Duration()
        delay.FromNanoseconds(round(retry_seconds * 1e9))
        status.details.append(_any(error_details_pb2.RetryInfo(retry_delay=delay)))
    context.set_trailing_metadata((("grpc-status-details-bin", status.SerializeToString()),))
    context.abort(code, message)


def _any(message: Any) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(message)
    return packed
