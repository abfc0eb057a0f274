"""The calls of the contract: each converts its request, makes one call of the service, and converts the result.

A transport reads the request by `RequestParser`, makes the call, and looks errors up in `error_table`."""

from collections.abc import Callable, Iterator
from importlib.metadata import version

from google.protobuf.descriptor import MethodDescriptor

from fastlane_grpc.api import batch, converters, notification_converters, times
from fastlane_grpc.api.audit import audited, writes
from fastlane_grpc.api.inputs import Upload
from fastlane_grpc.api.log_stream import Send, StreamEncoding
from fastlane_grpc.api.page_response import write_page
from fastlane_grpc.api.service import Service
from fastlane_grpc.api.visibility import visible_only
from fastlane_grpc.api.watch_encoding import WatchMessages
from fastlane_grpc.model import Job, Task, utc_now
from fastlane_grpc.trust import PERMISSIONS
from fastlane_grpc.v1 import fastlane_pb2 as pb

# Beyond the first release; GetServerInfo names them.
FEATURES = (
    *("audit", "batches", "cron", "inputs", "job-logs", "limits", "notifications", "outputs", "retries", "stdin"),
    "watch",
)

# What is stored means nothing until a job names it, and that is in the audit.
NOT_AUDITED = frozenset({"UploadInput"})


class Calls:
    """All calls, by the names of their methods in snake case. Lives on the loop."""

    def __init__(self, service: Service, *, limited: bool = False) -> None:
        """`limited`: callers may be limited to some tasks; see `visibility`."""
        self._service = service
        for method in _methods():
            name = "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in method.name).lstrip("_")
            if writes(method) and method.name not in NOT_AUDITED:
                setattr(self, name, audited(getattr(self, name), method, service.settings.secret_names.mask))
            if limited:
                setattr(self, name, visible_only(getattr(self, name), PERMISSIONS[method.name], service.reads))

    # ---- JobService

    async def enqueue_job(self, request: pb.EnqueueJobRequest, *, caller_address: str) -> pb.EnqueueJobResponse:
        job, existing = await self._service.enqueue(*converters.read_enqueue(request, caller_address))
        return pb.EnqueueJobResponse(job=self._job(job, self._service.waiting), existing=existing)

    async def get_job(self, request: pb.GetJobRequest) -> pb.GetJobResponse:
        job, waiting = await self._service.job(request.job_id)
        return pb.GetJobResponse(job=self._job(job, lambda execution: waiting))

    async def stop_job(self, request: pb.StopJobRequest) -> pb.StopJobResponse:
        grace, violations = converters.read_grace(request)
        job = await self._service.stop(request.job_id, note=request.note, grace=grace, conversion_violations=violations)
        return pb.StopJobResponse(job=self._job(job, self._service.waiting))

    async def list_jobs(self, request: pb.ListJobsRequest) -> pb.ListJobsResponse:
        page = await self._service.jobs(*converters.read_job_query(request))
        waiting = self._service.waiting_of_each()
        response, secret_names = pb.ListJobsResponse(), self._service.settings.secret_names
        response.next_page_token = await write_page(
            response.jobs, page, lambda message, job: converters.write_job(message, job, waiting, secret_names)
        )
        return response

    async def watch_jobs(
        self,
        request: pb.WatchJobsRequest,
        encoding: tuple[str, Callable[[pb.WatchJobsResponse], bytes]],
        send: Send,
    ) -> None:
        """Pass each message of the stream to `send`. `encoding`: its name, and the function that encodes a message.
        Changes are encoded once for all watchers whose encodings have the same name."""
        secret_names = self._service.settings.secret_names

        def write(message: pb.Job, job: Job) -> None:
            converters.write_job(message, job, self._service.waiting, secret_names)

        messages = WatchMessages(*encoding, self._service.instance, write)
        await self._service.watch(*converters.read_watch(request), messages, send)

    async def retry_job(self, request: pb.RetryJobRequest) -> pb.RetryJobResponse:
        job, existing = await self._service.retry(request.job_id, request.request_id)
        return pb.RetryJobResponse(job=self._job(job, self._service.waiting), existing=existing)

    async def replace_job(self, request: pb.ReplaceJobRequest, *, caller_address: str) -> pb.ReplaceJobResponse:
        job, created = await self._service.replace(*converters.read_replace(request, caller_address))
        return pb.ReplaceJobResponse(job=self._job(job, self._service.waiting), created=created)

    async def pause_schedule(self, request: pb.PauseScheduleRequest) -> pb.PauseScheduleResponse:
        job = await self._service.pause_schedule(request.job_id)
        return pb.PauseScheduleResponse(job=self._job(job, self._service.waiting))

    async def resume_schedule(self, request: pb.ResumeScheduleRequest) -> pb.ResumeScheduleResponse:
        job = await self._service.resume_schedule(request.job_id)
        return pb.ResumeScheduleResponse(job=self._job(job, self._service.waiting))

    async def preview_schedule(self, request: pb.PreviewScheduleRequest) -> pb.PreviewScheduleResponse:
        ticks, description = self._service.preview(*converters.read_preview(request))
        response = pb.PreviewScheduleResponse(description=description)
        for tick in ticks:
            times.write_time(response.times.add(), tick)
        return response

    async def stream_job_logs(self, request: pb.StreamJobLogsRequest, encoding: StreamEncoding, send: Send) -> None:
        """Pass each message of the stream, encoded, to `send`."""
        await self._service.job_log(*converters.read_job_log_request(request), encoding, send)

    async def batch_enqueue_jobs(
        self, request: pb.BatchEnqueueJobsRequest, *, caller_address: str
    ) -> pb.BatchEnqueueJobsResponse:
        return await batch.enqueue_jobs(self._service, request, caller_address)

    async def batch_stop_jobs(self, request: pb.BatchStopJobsRequest) -> pb.BatchStopJobsResponse:
        return await batch.stop_jobs(self._service, request)

    async def batch_retry_jobs(self, request: pb.BatchRetryJobsRequest) -> pb.BatchRetryJobsResponse:
        return await batch.retry_jobs(self._service, request)

    async def upload_input(self, request: pb.UploadInputRequest) -> pb.UploadInputResponse:
        received_bytes, complete = await self._service.upload_input(
            Upload(request.sha256, request.size_bytes, request.offset, request.data)
        )
        return pb.UploadInputResponse(received_bytes=received_bytes, complete=complete)

    # ---- ExecutionService

    async def get_execution(self, request: pb.GetExecutionRequest) -> pb.GetExecutionResponse:
        execution, waiting = await self._service.execution(request.execution_id)
        return pb.GetExecutionResponse(execution=converters.execution(execution, waiting))

    async def list_executions(self, request: pb.ListExecutionsRequest) -> pb.ListExecutionsResponse:
        page = await self._service.executions(*converters.read_execution_query(request), with_usage=request.with_usage)
        waiting = self._service.waiting_of_each()
        response = pb.ListExecutionsResponse()
        response.next_page_token = await write_page(
            response.executions,
            page,
            lambda message, execution: converters.write_execution(message, execution, waiting(execution)),
        )
        return response

    async def read_outputs(self, request: pb.ReadOutputsRequest) -> pb.ReadOutputsResponse:
        data, outputs = await self._service.read_outputs(request.execution_id, request.offset, request.max_bytes)
        return pb.ReadOutputsResponse(data=data, size_bytes=outputs.size_bytes, sha256=outputs.sha256)

    async def list_outputs(self, request: pb.ListOutputsRequest) -> pb.ListOutputsResponse:
        page = await self._service.output_entries(converters.read_outputs_query(request))
        response = pb.ListOutputsResponse()
        response.next_page_token = await write_page(response.entries, page, converters.write_output_entry)
        return response

    async def stop_execution(self, request: pb.StopExecutionRequest) -> pb.StopExecutionResponse:
        grace, violations = converters.read_grace(request)
        execution = await self._service.stop_execution(
            request.execution_id, note=request.note, grace=grace, conversion_violations=violations
        )
        return pb.StopExecutionResponse(execution=converters.execution(execution, self._service.waiting(execution)))

    async def stream_execution_logs(
        self, request: pb.StreamExecutionLogsRequest, encoding: StreamEncoding, send: Send
    ) -> None:
        """Pass each message of the stream, encoded, to `send`. Most messages were encoded once for all readers."""
        await self._service.log(*converters.read_log_request(request), encoding, send)

    # ---- TaskService

    async def get_task(self, request: pb.GetTaskRequest) -> pb.GetTaskResponse:
        return pb.GetTaskResponse(task=self._task(await self._service.task(request.task_id)))

    async def list_tasks(self, request: pb.ListTasksRequest) -> pb.ListTasksResponse:
        page = await self._service.tasks(converters.read_task_query(request))
        response = pb.ListTasksResponse()
        response.next_page_token = await write_page(
            response.tasks, page, lambda message, task: message.CopyFrom(self._task(task))
        )
        return response

    async def update_task(self, request: pb.UpdateTaskRequest) -> pb.UpdateTaskResponse:
        task = await self._service.update_task(request.task_id, *converters.read_task_limits(request))
        return pb.UpdateTaskResponse(task=self._task(task))

    # ---- HostService

    async def list_hosts(self, request: pb.ListHostsRequest) -> pb.ListHostsResponse:
        return pb.ListHostsResponse(hosts=[converters.host(each) for each in self._service.hosts()])

    async def drain_host(self, request: pb.DrainHostRequest) -> pb.DrainHostResponse:
        return pb.DrainHostResponse(host=converters.host(await self._service.drain_host(request.host, request.note)))

    async def resume_host(self, request: pb.ResumeHostRequest) -> pb.ResumeHostResponse:
        return pb.ResumeHostResponse(host=converters.host(await self._service.resume_host(request.host)))

    # ---- NotificationService

    async def list_deliveries(self, request: pb.ListDeliveriesRequest) -> pb.ListDeliveriesResponse:
        page = await self._service.deliveries(*notification_converters.read_delivery_query(request))
        response, secret_names = pb.ListDeliveriesResponse(), self._service.settings.secret_names
        response.next_page_token = await write_page(
            response.deliveries,
            page,
            lambda message, delivery: notification_converters.write_delivery(message, delivery, secret_names),
        )
        return response

    async def redeliver_notification(
        self, request: pb.RedeliverNotificationRequest
    ) -> pb.RedeliverNotificationResponse:
        response = pb.RedeliverNotificationResponse()
        delivery = await self._service.redeliver(request.delivery_id)
        notification_converters.write_delivery(response.delivery, delivery, self._service.settings.secret_names)
        return response

    # ---- ServerService

    async def get_server_info(self, request: pb.GetServerInfoRequest) -> pb.GetServerInfoResponse:
        settings = self._service.settings
        return pb.GetServerInfoResponse(
            version=version("fastlane-grpc"),
            start_time=times.timestamp(self._service.start_time),
            time=times.timestamp(utc_now()),
            max_running=settings.max_running,
            max_timeout=times.duration(settings.max_timeout),
            default_timeout=times.duration(settings.default_timeout),
            max_log_bytes=settings.max_log_bytes,
            max_request_bytes=settings.max_request_bytes,
            max_streams=settings.max_streams,
            max_waiting=settings.max_waiting,
            keep_logs=times.duration(settings.keep_logs),
            keep_jobs=times.duration(settings.keep_jobs),
            default_history=settings.default_history,
            max_input_bytes=settings.max_input_bytes,
            max_output_bytes=settings.max_output_bytes,
            features=FEATURES,
        )

    async def list_audit_entries(self, request: pb.ListAuditEntriesRequest) -> pb.ListAuditEntriesResponse:
        page = await self._service.audit_entries(converters.read_audit_query(request))
        response = pb.ListAuditEntriesResponse()
        response.next_page_token = await write_page(response.entries, page, converters.write_audit_entry)
        return response

    async def prune(self, request: pb.PruneRequest) -> pb.PruneResponse:
        return converters.pruned(await self._service.prune(*converters.read_prune(request)))

    def _task(self, task: Task) -> pb.TaskSummary:
        return converters.task(task, self._service.settings.secret_names)

    def _job(self, job: Job, waiting: converters.WaitingOf) -> pb.Job:
        return converters.job(job, waiting, self._service.settings.secret_names)


def _methods() -> Iterator[MethodDescriptor]:
    for service in pb.DESCRIPTOR.services_by_name.values():
        yield from service.methods
