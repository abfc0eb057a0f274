"""The gRPC methods of the contract. Each passes its request to the call of the same name in `api/`."""

from typing import TypeAlias

import grpc

from fastlane_grpc.api import Calls
from fastlane_grpc.api.log_encoding import ProtobufEncoding
from fastlane_grpc.trust import PEER
from fastlane_grpc.v1 import fastlane_pb2 as pb

# The encoding of events that are serialised by protobuf itself.
PROTOBUF = ("protobuf", pb.WatchJobsResponse.SerializeToString)

Context: TypeAlias = "grpc.aio.ServicerContext[object, object]"


class JobServicer:
    """fastlane.v1.JobService"""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls

    async def EnqueueJob(self, request: pb.EnqueueJobRequest, context: Context) -> pb.EnqueueJobResponse:
        return await self._calls.enqueue_job(request, caller_address=PEER.get().address)

    async def GetJob(self, request: pb.GetJobRequest, context: Context) -> pb.GetJobResponse:
        return await self._calls.get_job(request)

    async def StopJob(self, request: pb.StopJobRequest, context: Context) -> pb.StopJobResponse:
        return await self._calls.stop_job(request)

    async def ListJobs(self, request: pb.ListJobsRequest, context: Context) -> pb.ListJobsResponse:
        return await self._calls.list_jobs(request)

    async def WatchJobs(self, request: pb.WatchJobsRequest, context: Context) -> None:
        await self._calls.watch_jobs(request, PROTOBUF, context.write)

    async def RetryJob(self, request: pb.RetryJobRequest, context: Context) -> pb.RetryJobResponse:
        return await self._calls.retry_job(request)

    async def ReplaceJob(self, request: pb.ReplaceJobRequest, context: Context) -> pb.ReplaceJobResponse:
        return await self._calls.replace_job(request, caller_address=PEER.get().address)

    async def PauseSchedule(self, request: pb.PauseScheduleRequest, context: Context) -> pb.PauseScheduleResponse:
        return await self._calls.pause_schedule(request)

    async def ResumeSchedule(self, request: pb.ResumeScheduleRequest, context: Context) -> pb.ResumeScheduleResponse:
        return await self._calls.resume_schedule(request)

    async def PreviewSchedule(self, request: pb.PreviewScheduleRequest, context: Context) -> pb.PreviewScheduleResponse:
        return await self._calls.preview_schedule(request)

    async def StreamJobLogs(self, request: pb.StreamJobLogsRequest, context: Context) -> None:
        await self._calls.stream_job_logs(request, ProtobufEncoding(), context.write)

    async def BatchEnqueueJobs(
        self, request: pb.BatchEnqueueJobsRequest, context: Context
    ) -> pb.BatchEnqueueJobsResponse:
        return await self._calls.batch_enqueue_jobs(request, caller_address=PEER.get().address)

    async def BatchStopJobs(self, request: pb.BatchStopJobsRequest, context: Context) -> pb.BatchStopJobsResponse:
        return await self._calls.batch_stop_jobs(request)

    async def BatchRetryJobs(self, request: pb.BatchRetryJobsRequest, context: Context) -> pb.BatchRetryJobsResponse:
        return await self._calls.batch_retry_jobs(request)

    async def UploadInput(self, request: pb.UploadInputRequest, context: Context) -> pb.UploadInputResponse:
        return await self._calls.upload_input(request)


class ExecutionServicer:
    """fastlane.v1.ExecutionService"""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls

    async def GetExecution(self, request: pb.GetExecutionRequest, context: Context) -> pb.GetExecutionResponse:
        return await self._calls.get_execution(request)

    async def ListExecutions(self, request: pb.ListExecutionsRequest, context: Context) -> pb.ListExecutionsResponse:
        return await self._calls.list_executions(request)

    async def StopExecution(self, request: pb.StopExecutionRequest, context: Context) -> pb.StopExecutionResponse:
        return await self._calls.stop_execution(request)

    async def ReadOutputs(self, request: pb.ReadOutputsRequest, context: Context) -> pb.ReadOutputsResponse:
        return await self._calls.read_outputs(request)

    async def ListOutputs(self, request: pb.ListOutputsRequest, context: Context) -> pb.ListOutputsResponse:
        return await self._calls.list_outputs(request)

    async def StreamExecutionLogs(self, request: pb.StreamExecutionLogsRequest, context: Context) -> None:
        await self._calls.stream_execution_logs(request, ProtobufEncoding(), context.write)


class TaskServicer:
    """fastlane.v1.TaskService"""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls

    async def GetTask(self, request: pb.GetTaskRequest, context: Context) -> pb.GetTaskResponse:
        return await self._calls.get_task(request)

    async def ListTasks(self, request: pb.ListTasksRequest, context: Context) -> pb.ListTasksResponse:
        return await self._calls.list_tasks(request)

    async def UpdateTask(self, request: pb.UpdateTaskRequest, context: Context) -> pb.UpdateTaskResponse:
        return await self._calls.update_task(request)


class HostServicer:
    """fastlane.v1.HostService"""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls

    async def ListHosts(self, request: pb.ListHostsRequest, context: Context) -> pb.ListHostsResponse:
        return await self._calls.list_hosts(request)

    async def DrainHost(self, request: pb.DrainHostRequest, context: Context) -> pb.DrainHostResponse:
        return await self._calls.drain_host(request)

    async def ResumeHost(self, request: pb.ResumeHostRequest, context: Context) -> pb.ResumeHostResponse:
        return await self._calls.resume_host(request)


class NotificationServicer:
    """fastlane.v1.NotificationService"""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls

    async def ListDeliveries(self, request: pb.ListDeliveriesRequest, context: Context) -> pb.ListDeliveriesResponse:
        return await self._calls.list_deliveries(request)

    async def RedeliverNotification(
        self, request: pb.RedeliverNotificationRequest, context: Context
    ) -> pb.RedeliverNotificationResponse:
        return await self._calls.redeliver_notification(request)


class ServerServicer:
    """fastlane.v1.ServerService"""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls

    async def GetServerInfo(self, request: pb.GetServerInfoRequest, context: Context) -> pb.GetServerInfoResponse:
        return await self._calls.get_server_info(request)

    async def Prune(self, request: pb.PruneRequest, context: Context) -> pb.PruneResponse:
        return await self._calls.prune(request)

    async def ListAuditEntries(
        self, request: pb.ListAuditEntriesRequest, context: Context
    ) -> pb.ListAuditEntriesResponse:
        return await self._calls.list_audit_entries(request)
