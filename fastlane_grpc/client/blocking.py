"""The blocking client: every call of the contract, typed, tried again while the server cannot be reached.

An enqueue always carries a `request_id`, so that trying it again makes no second job.
"""

import time
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from typing import BinaryIO, Self, TypeVar, Unpack

import grpc

from fastlane_grpc.client import channel, outputs, requests
from fastlane_grpc.client.batches import EnqueueResult, batches, halves, is_repeatable, is_too_large, results
from fastlane_grpc.client.errors import Error, error_of
from fastlane_grpc.client.inputs import Parts
from fastlane_grpc.client.policies import Cron, Duration, Mail, Webhook
from fastlane_grpc.client.progress import Progress
from fastlane_grpc.client.requests import (
    AuditFilter,
    DeliveryFilter,
    ExecutionFilter,
    ExecutionTailOptions,
    JobFilter,
    JobOptions,
    JobSelection,
    Source,
    TailOptions,
    WatchOptions,
)
from fastlane_grpc.client.responses import AsksForPages, Page, add_pruned, add_retried, add_stopped
from fastlane_grpc.client.retries import DEFAULT_BACKOFF, Backoff, Retries
from fastlane_grpc.client.tail import Tail
from fastlane_grpc.client.tls import FilePath, credentials
from fastlane_grpc.client.watch import Watch
from fastlane_grpc.client.watch_progress import WatchProgress
from fastlane_grpc.v1 import fastlane_pb2 as pb
from fastlane_grpc.v1 import fastlane_pb2_grpc as pb_grpc

_Request = TypeVar("_Request")
_Response = TypeVar("_Response")
_Asks = TypeVar("_Asks", bound=AsksForPages)
_Page = TypeVar("_Page", bound=Page)


class Client:
    """A server at `address`, as "127.0.0.1:7020", or behind a channel of your own (interceptors), which stays yours to
    close.

    With `tls_ca`, a file of authorities in PEM or "system", the connection is encrypted and the server's certificate
    checked. `tls_cert` and `tls_key` are the files of the client's own certificate. TlsFailed.
    Each call has the `token`, if the server requires one: Unauthenticated, PermissionDenied. A `token_file` is read
    anew for each call. With `traceparent` and `tracestate`, of W3C Trace Context, jobs belong to that trace. A program
    with OpenTelemetry's instrumentation of gRPC needs neither.

    A call may take `timeout` in all. While the server cannot be reached it is tried again for `retry_for` (as long as
    `timeout` if not given). All methods may be called from any thread; each tail, and each list while it is read,
    belongs to one."""

    def __init__(
        self,
        address: str | grpc.Channel,
        *,
        timeout: Duration = 30.0,
        retry_for: Duration | None = None,
        backoff: Backoff = DEFAULT_BACKOFF,
        tls_ca: FilePath | None = None,
        tls_cert: FilePath | None = None,
        tls_key: FilePath | None = None,
        token: str = "",
        token_file: FilePath | None = None,
        traceparent: str = "",
        tracestate: str = "",
    ) -> None:
        self._timeout_seconds = requests.seconds(timeout)
        self._retry_seconds = self._timeout_seconds if retry_for is None else requests.seconds(retry_for, "retry_for")
        self._backoff = backoff
        secure = credentials(tls_ca, tls_cert, tls_key)
        self._own_channel = channel.blocking(address, backoff, secure) if isinstance(address, str) else None
        line = self._own_channel or address
        assert not isinstance(line, str)
        line = channel.with_metadata(
            line, token=token, token_file=token_file, traceparent=traceparent, tracestate=tracestate
        )
        self._jobs = pb_grpc.JobServiceStub(line)
        self._executions = pb_grpc.ExecutionServiceStub(line)
        self._tasks = pb_grpc.TaskServiceStub(line)
        self._hosts = pb_grpc.HostServiceStub(line)
        self._notifications = pb_grpc.NotificationServiceStub(line)
        self._server = pb_grpc.ServerServiceStub(line)
        self._tails: weakref.WeakSet[Tail | Watch] = weakref.WeakSet()

    # ---- jobs

    def enqueue(self, task_id: str, image: str, command: str = "", **options: Unpack[JobOptions]) -> pb.Job:
        """The job that is kept, with its first execution. The options are those of `JobOptions`."""
        return self._call(self._jobs.EnqueueJob, requests.enqueue(task_id, image, command, **options)).job

    def enqueue_many(self, requests: Iterable[pb.EnqueueJobRequest]) -> Iterator[EnqueueResult]:
        """Enqueue any number of jobs, up to 1 000 in one call, and return what became of each, in order. The next call
        is made when the results of the last one were taken.

        `job_request` makes a request. A call that was cut is repeated if each of its requests has a request_id."""
        for batch in batches(requests):
            yield from self._enqueue_batch(batch)

    def enqueue_array(
        self, size: int, task_id: str, image: str, command: str = "", **options: Unpack[JobOptions]
    ) -> Sequence[EnqueueResult]:
        """Enqueue `size` jobs of one spec, at most 1 000. Their containers have FASTLANE_ARRAY_INDEX, from 0, and
        FASTLANE_ARRAY_SIZE. The options are those of `JobOptions`."""
        request = requests.enqueue_array(size, task_id, image, command, **options)
        return tuple(results(self._call(self._jobs.BatchEnqueueJobs, request)))

    def job(self, job_id: str) -> pb.Job:
        """The job as it is now, with its current execution. NotFound."""
        return self._call(self._jobs.GetJob, requests.get_job(job_id)).job

    def jobs(self, **filter: Unpack[JobFilter]) -> Iterator[pb.Job]:  # noqa: A002
        """Jobs, newest first; a page is fetched when it is needed, to the last one."""
        for page in self._pages(self._jobs.ListJobs, requests.jobs(**filter)):
            yield from page.jobs

    def stop(self, job_id: str, note: str = "", grace: Duration | None = None) -> pb.Job:
        """Ends the job: its signal, then `grace` (the job's own if not given), then a kill. Answers as soon as that is
        on its way."""
        return self._call(self._jobs.StopJob, requests.stop_job(job_id, note, grace)).job

    def watch(
        self,
        task_id: str = "",
        job_ids: Iterable[str] = (),
        labels: Mapping[str, str] = requests.NO_LABELS,
        cursor: str = "",
        **options: Unpack[WatchOptions],
    ) -> Watch:
        """Jobs and their changes: all that match and are not final, then every change, without end.

        What is left empty does not filter. With `job_ids`, final jobs are told as well. With the `cursor` of an earlier
        watch, it goes on after the last event of that. The options are those of `WatchOptions`."""
        request = requests.watch(task_id, job_ids, labels, cursor, **options)
        progress = WatchProgress(request, self._backoff, requests.give_up_seconds(options))
        watch = Watch(self._jobs.WatchJobs, progress, requests.silence_seconds(options))
        self._tails.add(watch)
        return watch

    def retry_job(self, job_id: str, request_id: str | None = None) -> pb.Job:
        """Starts one more run of a final job, now. The same `request_id` starts nothing more; by default one is made
        for the call."""
        return self._call(self._jobs.RetryJob, requests.retry_job(job_id, request_id)).job

    def replace_job(
        self, job_id: str, task_id: str, image: str, command: str = "", etag: str = "", **options: Unpack[JobOptions]
    ) -> pb.Job:
        """Creates the job under this id, or replaces its spec: all options that are not given get their defaults. With
        an `etag`, only if the job has it still: EtagMismatch. `request_id` and `validate_only` have no effect."""
        request = requests.replace_job(job_id, task_id, image, command, etag, **options)
        return self._call(self._jobs.ReplaceJob, request).job

    def pause_schedule(self, job_id: str) -> pb.Job:
        """Stops the ticks of the job's schedule, until `resume_schedule`."""
        return self._call(self._jobs.PauseSchedule, requests.pause_schedule(job_id)).job

    def resume_schedule(self, job_id: str) -> pb.Job:
        """Continues a paused schedule with its next tick."""
        return self._call(self._jobs.ResumeSchedule, requests.resume_schedule(job_id)).job

    def preview_schedule(
        self, cron: Cron | str, count: int = 0, from_time: datetime | None = None
    ) -> pb.PreviewScheduleResponse:
        """The next ticks of a schedule, `count` of them (10), after `from_time` (now), and the schedule in words."""
        request = requests.preview_schedule(cron, count, from_time)
        return self._call(self._jobs.PreviewSchedule, request)

    def upload(self, content: BinaryIO) -> str:
        """Stores a content for inputs of jobs, and returns its SHA-256 for `Input`. What the server has is not sent
        again, so that an upload which was cut goes on. `content` is read twice. An empty one cannot be stored."""
        parts = Parts(content)
        while not parts.note(self._call(self._jobs.UploadInput, parts.next())):
            pass
        return parts.sha256

    def stop_many(
        self,
        note: str = "",
        grace: Duration | None = None,
        *,
        validate_only: bool = False,
        **filter: Unpack[JobSelection],  # noqa: A002
    ) -> pb.BatchStopJobsResponse:
        """Stops the jobs that match, as `stop` does, oldest first; calls until no more are left. Answers the sum.

        `validate_only` counts and stops nothing, in one call: where `more` is set in its answer, there are more than it
        counted."""
        request = requests.stop_jobs(note, grace, validate_only=validate_only, **filter)
        total = pb.BatchStopJobsResponse()
        while True:
            add_stopped(total, self._call(self._jobs.BatchStopJobs, request))
            if validate_only or not total.more:
                return total

    def retry_many(
        self,
        *,
        validate_only: bool = False,
        **filter: Unpack[JobSelection],  # noqa: A002
    ) -> pb.BatchRetryJobsResponse:
        """Starts one more run of the final jobs that match, as `retry_job` does; calls until no more are left. Without
        `states`: of those that failed, timed out or were lost. Answers the sum; a job is retried once, however fast it
        fails again.

        `validate_only` counts and retries nothing, in one call: where `more` is set in its answer, there are more than
        it counted."""
        request = requests.retry_jobs(validate_only=validate_only, **filter)
        total = pb.BatchRetryJobsResponse()
        while True:
            add_retried(total, self._call(self._jobs.BatchRetryJobs, request))
            if validate_only or not total.more:
                return total
            request.until_time.CopyFrom(total.until_time)

    # ---- executions

    def execution(self, execution_id: str) -> pb.Execution:
        """The execution as it is now. NotFound."""
        return self._call(self._executions.GetExecution, requests.get_execution(execution_id)).execution

    def executions(self, **filter: Unpack[ExecutionFilter]) -> Iterator[pb.Execution]:  # noqa: A002
        """Executions, newest first; a page is fetched when it is needed, to the last one."""
        for page in self._pages(self._executions.ListExecutions, requests.executions(**filter)):
            yield from page.executions

    def read_outputs(self, execution_id: str, file: BinaryIO) -> None:
        """Writes the archive of an execution's outputs to a file, part by part, and checks its checksum.
        `unpack_outputs` unpacks it. NotFound: it has none. OutputsDamaged."""
        parts = outputs.Parts(execution_id, file)
        while not parts.note(self._call(self._executions.ReadOutputs, parts.next())):
            pass

    def outputs(self, execution_id: str) -> Iterator[pb.OutputEntry]:
        """The files, directories and links of an execution's outputs, without their contents. NotFound."""
        for page in self._pages(self._executions.ListOutputs, requests.list_outputs(execution_id)):
            yield from page.entries

    def stop_execution(self, execution_id: str, note: str = "", grace: Duration | None = None) -> pb.Execution:
        """Stop one execution, as `stop` does with a job."""
        return self._call(self._executions.StopExecution, requests.stop_execution(execution_id, note, grace)).execution

    def tail(
        self,
        execution_id: str,
        cursor: str = "",
        sources: Iterable[Source] = (),
        **options: Unpack[ExecutionTailOptions],
    ) -> Tail:
        """The output of an execution after `cursor`, and what comes, to its end. Before the start, while it runs, after
        it.

        `sources`: which, all if empty. A cursor wins over `tail_lines`, `since` and `start_line`. The options are
        those of `ExecutionTailOptions`."""
        request = requests.tail(execution_id, cursor, sources, **options)
        progress = Progress(request, self._backoff, requests.give_up_seconds(options))
        tail = Tail(self._executions.StreamExecutionLogs, progress, requests.silence_seconds(options))
        self._tails.add(tail)
        return tail

    def tail_job(
        self, job_id: str, cursor: str = "", sources: Iterable[Source] = (), **options: Unpack[TailOptions]
    ) -> Tail:
        """The output of a job's executions, one after another, to the end of the job: retries and later runs follow by
        themselves. `ExecutionStart` comes before each execution, `JobEnd` at the end.

        It starts at `cursor`, which may be one of `tail`; else where `tail_lines` or `since` say; else at the first
        attempt of the newest run. The options are those of `TailOptions`."""
        request = requests.tail_job(job_id, cursor, sources, **options)
        progress = Progress(request, self._backoff, requests.give_up_seconds(options))
        tail = Tail(self._jobs.StreamJobLogs, progress, requests.silence_seconds(options))
        self._tails.add(tail)
        return tail

    # ---- tasks, hosts, the server

    def task(self, task_id: str) -> pb.TaskSummary:
        """The task, with the number of its jobs. NotFound: no job of it is kept."""
        return self._call(self._tasks.GetTask, requests.get_task(task_id)).task

    def tasks(self, *, page_size: int = 0) -> Iterator[pb.TaskSummary]:
        """Tasks, by name; a page is fetched when it is needed, to the last one."""
        for page in self._pages(self._tasks.ListTasks, pb.ListTasksRequest(page_size=page_size)):
            yield from page.tasks

    def update_task(
        self,
        task_id: str,
        *,
        max_running: int | None = None,
        paused: bool | None = None,
        max_starts: int | None = None,
        rate_window: Duration | None = None,
        notifications: Sequence[Webhook | Mail] | None = None,
    ) -> pb.TaskSummary:
        """Sets limits of a task, which need not have jobs; what is None stays as it is. Zero: no limit.

        `max_starts` and `rate_window` go together. Running executions are not stopped. `notifications` are those of
        the task's jobs that have none of their own."""
        request = requests.update_task(
            task_id,
            max_running=max_running,
            paused=paused,
            max_starts=max_starts,
            rate_window=rate_window,
            notifications=notifications,
        )
        return self._call(self._tasks.UpdateTask, request).task

    def deliveries(self, **filter: Unpack[DeliveryFilter]) -> Iterator[pb.Delivery]:  # noqa: A002
        """Notifications of receivers, newest first; a page is fetched when it is needed, to the last one."""
        for page in self._pages(self._notifications.ListDeliveries, requests.deliveries(**filter)):
            yield from page.deliveries

    def audit_entries(self, **filter: Unpack[AuditFilter]) -> Iterator[pb.AuditEntry]:  # noqa: A002
        """Calls that changed something, newest first; a page is fetched when it is needed, to the last one."""
        for page in self._pages(self._server.ListAuditEntries, requests.audit_entries(**filter)):
            yield from page.entries

    def redeliver(self, delivery_id: str) -> pb.Delivery:
        """Delivers a notification once more, under the same id. NotFound."""
        return self._call(self._notifications.RedeliverNotification, requests.redeliver(delivery_id)).delivery

    def hosts(self) -> Sequence[pb.EngineHost]:
        """The engines that containers run on, in the order of the server's configuration."""
        return tuple(self._call(self._hosts.ListHosts, pb.ListHostsRequest()).hosts)

    def drain_host(self, host: str, note: str = "") -> pb.EngineHost:
        """Assigns no further executions to a host; running ones go on. Kept over restarts of the server. NotFound."""
        return self._call(self._hosts.DrainHost, requests.drain_host(host, note)).host

    def resume_host(self, host: str) -> pb.EngineHost:
        """Assigns executions to a drained host again, and closes its circuit. NotFound."""
        return self._call(self._hosts.ResumeHost, requests.resume_host(host)).host

    def server_info(self) -> pb.GetServerInfoResponse:
        """Version and limits of the server."""
        return self._call(self._server.GetServerInfo, pb.GetServerInfoRequest())

    def prune(
        self, older_than: timedelta, *, logs_only: bool = False, task_id: str = "", validate_only: bool = False
    ) -> pb.PruneResponse:
        """Deletes jobs, or only their logs, that ended longer ago than `older_than`; calls until no more are left.
        Answers the sum.

        `validate_only` counts and deletes nothing, in one call: where `more` is set in its answer, there are more than
        it counted."""
        request = requests.prune(older_than, logs_only=logs_only, task_id=task_id, validate_only=validate_only)
        total = pb.PruneResponse()
        while True:
            add_pruned(total, self._call(self._server.Prune, request))
            if validate_only or not total.more:
                return total

    # ---- the end

    def close(self) -> None:
        """Ends all tails, all watches and the connection."""
        for tail in list(self._tails):
            tail.close()
        if self._own_channel is not None:
            self._own_channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _pages(self, method: "grpc.UnaryUnaryMultiCallable[_Asks, _Page]", request: _Asks) -> Iterator[_Page]:
        while True:
            page = self._call(method, request)
            yield page
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    def _enqueue_batch(self, batch: pb.BatchEnqueueJobsRequest) -> Iterator[EnqueueResult]:
        try:
            response = self._call(self._jobs.BatchEnqueueJobs, batch, repeatable=is_repeatable(batch))
        except Error as error:
            if not is_too_large(error):
                raise
            if len(batch.requests) == 1:
                yield EnqueueResult(error=error)
                return
            parts = halves(batch)
        else:
            yield from results(response)
            return
        for part in parts:
            yield from self._enqueue_batch(part)

    def _call(
        self,
        method: "grpc.UnaryUnaryMultiCallable[_Request, _Response]",
        request: _Request,
        *,
        repeatable: bool = True,
    ) -> _Response:
        """Every call that is `repeatable` may be sent twice: the second one changes nothing. Others are repeated only
        if the server says that they changed nothing."""
        tries = Retries(self._timeout_seconds, self._retry_seconds, self._backoff)
        while True:
            try:
                return method(request, timeout=tries.left_seconds)
            except grpc.RpcError as failure:
                error = error_of(failure)
                if (pause_seconds := tries.pause_seconds(error)) is None or not (repeatable or error.reason):
                    raise error from failure
            time.sleep(pause_seconds)
