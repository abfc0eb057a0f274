"""The asyncio client: the same methods as the blocking one, to be awaited, and tails and lists to be iterated with
`async for`."""

import asyncio
import weakref
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import BinaryIO, Self, TypeVar, Unpack

import grpc

from fastlane_grpc.client import channel, outputs, requests
from fastlane_grpc.client.async_tail import AsyncTail
from fastlane_grpc.client.async_watch import AsyncWatch
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
from fastlane_grpc.client.tls import FilePath, credentials
from fastlane_grpc.client.watch_progress import WatchProgress
from fastlane_grpc.v1 import fastlane_pb2 as pb
from fastlane_grpc.v1 import fastlane_pb2_grpc as pb_grpc

_Request = TypeVar("_Request")
_Response = TypeVar("_Response")
_Asks = TypeVar("_Asks", bound=AsksForPages)
_Page = TypeVar("_Page", bound=Page)


class AsyncClient:
    """The asyncio client, with the methods of `Client`: make, use and close it on one event loop.

    `address` may be a channel of your own, of `grpc.aio`, which stays yours to close.
    """

    def __init__(
        self,
        address: str | grpc.aio.Channel,
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
        self._own_channel = channel.asynchronous(address, backoff, secure) if isinstance(address, str) else None
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
        self._tails: weakref.WeakSet[AsyncTail | AsyncWatch] = weakref.WeakSet()

    # ---- jobs

    async def enqueue(self, task_id: str, image: str, command: str = "", **options: Unpack[JobOptions]) -> pb.Job:
        """The job that is kept, with its first execution. The options are those of `JobOptions`."""
        return (await self._call(self._jobs.EnqueueJob, requests.enqueue(task_id, image, command, **options))).job

    async def enqueue_many(self, requests: Iterable[pb.EnqueueJobRequest]) -> AsyncIterator[EnqueueResult]:
        """Enqueue any number of jobs, up to 1 000 in one call, and return what became of each, in order. The next call
        is made when the results of the last one were taken.

        `job_request` makes a request. A call that was cut is repeated if each of its requests has a request_id."""
        for batch in batches(requests):
            async for result in self._enqueue_batch(batch):
                yield result

    async def enqueue_array(
        self, size: int, task_id: str, image: str, command: str = "", **options: Unpack[JobOptions]
    ) -> Sequence[EnqueueResult]:
        """Enqueue `size` jobs of one spec, at most 1 000. Their containers have FASTLANE_ARRAY_INDEX, from 0, and
        FASTLANE_ARRAY_SIZE. The options are those of `JobOptions`."""
        request = requests.enqueue_array(size, task_id, image, command, **options)
        return tuple(results(await self._call(self._jobs.BatchEnqueueJobs, request)))

    async def job(self, job_id: str) -> pb.Job:
        """The job as it is now, with its current execution. NotFound."""
        return (await self._call(self._jobs.GetJob, requests.get_job(job_id))).job

    async def jobs(self, **filter: Unpack[JobFilter]) -> AsyncIterator[pb.Job]:  # noqa: A002
        """Jobs, newest first; a page is fetched when it is needed, to the last one."""
        async for page in self._pages(self._jobs.ListJobs, requests.jobs(**filter)):
            for job in page.jobs:
                yield job

    async def stop(self, job_id: str, note: str = "", grace: Duration | None = None) -> pb.Job:
        """Ends the job: its signal, then `grace` (the job's own if not given), then a kill. Answers as soon as that is
        on its way."""
        return (await self._call(self._jobs.StopJob, requests.stop_job(job_id, note, grace))).job

    def watch(
        self,
        task_id: str = "",
        job_ids: Iterable[str] = (),
        labels: Mapping[str, str] = requests.NO_LABELS,
        cursor: str = "",
        **options: Unpack[WatchOptions],
    ) -> AsyncWatch:
        """Jobs and their changes: all that match and are not final, then every change, without end.

        What is left empty does not filter. With `job_ids`, final jobs are told as well. With the `cursor` of an earlier
        watch, it goes on after the last event of that. The options are those of `WatchOptions`."""
        request = requests.watch(task_id, job_ids, labels, cursor, **options)
        progress = WatchProgress(request, self._backoff, requests.give_up_seconds(options))
        watch = AsyncWatch(self._jobs.WatchJobs, progress, requests.silence_seconds(options))
        self._tails.add(watch)
        return watch

    async def retry_job(self, job_id: str, request_id: str | None = None) -> pb.Job:
        """Starts one more run of a final job, now. The same `request_id` starts nothing more; by default one is made
        for the call."""
        return (await self._call(self._jobs.RetryJob, requests.retry_job(job_id, request_id))).job

    async def replace_job(
        self, job_id: str, task_id: str, image: str, command: str = "", etag: str = "", **options: Unpack[JobOptions]
    ) -> pb.Job:
        """Creates the job under this id, or replaces its spec: all options that are not given get their defaults. With
        an `etag`, only if the job has it still: EtagMismatch. `request_id` and `validate_only` have no effect."""
        request = requests.replace_job(job_id, task_id, image, command, etag, **options)
        return (await self._call(self._jobs.ReplaceJob, request)).job

    async def pause_schedule(self, job_id: str) -> pb.Job:
        """Stops the ticks of the job's schedule, until `resume_schedule`."""
        return (await self._call(self._jobs.PauseSchedule, requests.pause_schedule(job_id))).job

    async def resume_schedule(self, job_id: str) -> pb.Job:
        """Continues a paused schedule with its next tick."""
        return (await self._call(self._jobs.ResumeSchedule, requests.resume_schedule(job_id))).job

    async def preview_schedule(
        self, cron: Cron | str, count: int = 0, from_time: datetime | None = None
    ) -> pb.PreviewScheduleResponse:
        """The next ticks of a schedule, `count` of them (10), after `from_time` (now), and the schedule in words."""
        request = requests.preview_schedule(cron, count, from_time)
        return await self._call(self._jobs.PreviewSchedule, request)

    async def upload(self, content: BinaryIO) -> str:
        """Stores a content for inputs of jobs, and returns its SHA-256 for `Input`. What the server has is not sent
        again, so that an upload which was cut goes on. `content` is read twice, by a thread. An empty one cannot be
        stored."""
        parts = await asyncio.to_thread(Parts, content)
        while not parts.note(await self._call(self._jobs.UploadInput, await asyncio.to_thread(parts.next))):
            pass
        return parts.sha256

    async def stop_many(
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
            add_stopped(total, await self._call(self._jobs.BatchStopJobs, request))
            if validate_only or not total.more:
                return total

    async def retry_many(
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
            add_retried(total, await self._call(self._jobs.BatchRetryJobs, request))
            if validate_only or not total.more:
                return total
            request.until_time.CopyFrom(total.until_time)

    # ---- executions

    async def execution(self, execution_id: str) -> pb.Execution:
        """The execution as it is now. NotFound."""
        return (await self._call(self._executions.GetExecution, requests.get_execution(execution_id))).execution

    async def executions(self, **filter: Unpack[ExecutionFilter]) -> AsyncIterator[pb.Execution]:  # noqa: A002
        """Executions, newest first; a page is fetched when it is needed, to the last one."""
        async for page in self._pages(self._executions.ListExecutions, requests.executions(**filter)):
            for execution in page.executions:
                yield execution

    async def read_outputs(self, execution_id: str, file: BinaryIO) -> None:
        """Writes the archive of an execution's outputs to a file, part by part, by a thread, and checks its checksum.
        `unpack_outputs` unpacks it. NotFound: it has none. OutputsDamaged."""
        parts = outputs.Parts(execution_id, file)
        while not await asyncio.to_thread(parts.note, await self._call(self._executions.ReadOutputs, parts.next())):
            pass

    async def outputs(self, execution_id: str) -> AsyncIterator[pb.OutputEntry]:
        """The files, directories and links of an execution's outputs, without their contents. NotFound."""
        async for page in self._pages(self._executions.ListOutputs, requests.list_outputs(execution_id)):
            for entry in page.entries:
                yield entry

    async def stop_execution(self, execution_id: str, note: str = "", grace: Duration | None = None) -> pb.Execution:
        """Stop one execution, as `stop` does with a job."""
        request = requests.stop_execution(execution_id, note, grace)
        return (await self._call(self._executions.StopExecution, request)).execution

    def tail(
        self,
        execution_id: str,
        cursor: str = "",
        sources: Iterable[Source] = (),
        **options: Unpack[ExecutionTailOptions],
    ) -> AsyncTail:
        """The output of an execution after `cursor`, and what comes, to its end. Before the start, while it runs, after
        it.

        `sources`: which, all if empty. A cursor wins over `tail_lines`, `since` and `start_line`. The options are
        those of `ExecutionTailOptions`."""
        request = requests.tail(execution_id, cursor, sources, **options)
        progress = Progress(request, self._backoff, requests.give_up_seconds(options))
        tail = AsyncTail(self._executions.StreamExecutionLogs, progress, requests.silence_seconds(options))
        self._tails.add(tail)
        return tail

    def tail_job(
        self, job_id: str, cursor: str = "", sources: Iterable[Source] = (), **options: Unpack[TailOptions]
    ) -> AsyncTail:
        """The output of a job's executions, one after another, to the end of the job: retries and later runs follow by
        themselves. `ExecutionStart` comes before each execution, `JobEnd` at the end.

        It starts at `cursor`, which may be one of `tail`; else where `tail_lines` or `since` say; else at the first
        attempt of the newest run. The options are those of `TailOptions`."""
        request = requests.tail_job(job_id, cursor, sources, **options)
        progress = Progress(request, self._backoff, requests.give_up_seconds(options))
        tail = AsyncTail(self._jobs.StreamJobLogs, progress, requests.silence_seconds(options))
        self._tails.add(tail)
        return tail

    # ---- tasks, hosts, the server

    async def task(self, task_id: str) -> pb.TaskSummary:
        """The task, with the number of its jobs. NotFound: no job of it is kept."""
        return (await self._call(self._tasks.GetTask, requests.get_task(task_id))).task

    async def tasks(self, *, page_size: int = 0) -> AsyncIterator[pb.TaskSummary]:
        """Tasks, by name; a page is fetched when it is needed, to the last one."""
        async for page in self._pages(self._tasks.ListTasks, pb.ListTasksRequest(page_size=page_size)):
            for task in page.tasks:
                yield task

    async def update_task(
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
        return (await self._call(self._tasks.UpdateTask, request)).task

    async def deliveries(self, **filter: Unpack[DeliveryFilter]) -> AsyncIterator[pb.Delivery]:  # noqa: A002
        """Notifications of receivers, newest first; a page is fetched when it is needed, to the last one."""
        async for page in self._pages(self._notifications.ListDeliveries, requests.deliveries(**filter)):
            for delivery in page.deliveries:
                yield delivery

    async def audit_entries(self, **filter: Unpack[AuditFilter]) -> AsyncIterator[pb.AuditEntry]:  # noqa: A002
        """Calls that changed something, newest first; a page is fetched when it is needed, to the last one."""
        async for page in self._pages(self._server.ListAuditEntries, requests.audit_entries(**filter)):
            for entry in page.entries:
                yield entry

    async def redeliver(self, delivery_id: str) -> pb.Delivery:
        """Delivers a notification once more, under the same id. NotFound."""
        return (await self._call(self._notifications.RedeliverNotification, requests.redeliver(delivery_id))).delivery

    async def hosts(self) -> Sequence[pb.EngineHost]:
        """The engines that containers run on, in the order of the server's configuration."""
        return tuple((await self._call(self._hosts.ListHosts, pb.ListHostsRequest())).hosts)

    async def drain_host(self, host: str, note: str = "") -> pb.EngineHost:
        """Assigns no further executions to a host; running ones go on. Kept over restarts of the server. NotFound."""
        return (await self._call(self._hosts.DrainHost, requests.drain_host(host, note))).host

    async def resume_host(self, host: str) -> pb.EngineHost:
        """Assigns executions to a drained host again, and closes its circuit. NotFound."""
        return (await self._call(self._hosts.ResumeHost, requests.resume_host(host))).host

    async def server_info(self) -> pb.GetServerInfoResponse:
        """Version and limits of the server."""
        return await self._call(self._server.GetServerInfo, pb.GetServerInfoRequest())

    async def prune(
        self, older_than: timedelta, *, logs_only: bool = False, task_id: str = "", validate_only: bool = False
    ) -> pb.PruneResponse:
        """Deletes jobs, or only their logs, that ended longer ago than `older_than`; calls until no more are left.
        Answers the sum.

        `validate_only` counts and deletes nothing, in one call: where `more` is set in its answer, there are more than
        it counted."""
        request = requests.prune(older_than, logs_only=logs_only, task_id=task_id, validate_only=validate_only)
        total = pb.PruneResponse()
        while True:
            add_pruned(total, await self._call(self._server.Prune, request))
            if validate_only or not total.more:
                return total

    # ---- the end

    async def close(self) -> None:
        """Ends all tails, all watches and the connection."""
        for tail in list(self._tails):
            await tail.close()
        if self._own_channel is not None:
            await self._own_channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _pages(
        self, method: "grpc.aio.UnaryUnaryMultiCallable[_Asks, _Page]", request: _Asks
    ) -> AsyncIterator[_Page]:
        while True:
            page = await self._call(method, request)
            yield page
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    async def _enqueue_batch(self, batch: pb.BatchEnqueueJobsRequest) -> AsyncIterator[EnqueueResult]:
        try:
            response = await self._call(self._jobs.BatchEnqueueJobs, batch, repeatable=is_repeatable(batch))
        except Error as error:
            if not is_too_large(error):
                raise
            if len(batch.requests) == 1:
                yield EnqueueResult(error=error)
                return
            parts = halves(batch)
        else:
            for result in results(response):
                yield result
            return
        for part in parts:
            async for result in self._enqueue_batch(part):
                yield result

    async def _call(
        self,
        method: "grpc.aio.UnaryUnaryMultiCallable[_Request, _Response]",
        request: _Request,
        *,
        repeatable: bool = True,
    ) -> _Response:
        """Every call that is `repeatable` may be sent twice: the second one changes nothing. Others are repeated only
        if the server says that they changed nothing."""
        tries = Retries(self._timeout_seconds, self._retry_seconds, self._backoff)
        while True:
            try:
                return await method(request, timeout=tries.left_seconds)
            except grpc.aio.AioRpcError as failure:
                error = error_of(failure)
                if (pause_seconds := tries.pause_seconds(error)) is None or not (repeatable or error.reason):
                    raise error from failure
            await asyncio.sleep(pause_seconds)
