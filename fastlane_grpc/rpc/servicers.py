"""The calls of the contract. Each reads its request, makes one call of the service, and writes the answer."""

from importlib.metadata import version
from typing import TypeAlias

import grpc

from fastlane_grpc.model import Job, utc_now
from fastlane_grpc.rpc import converters
from fastlane_grpc.rpc.log_encoding import ProtobufEncoding
from fastlane_grpc.rpc.pages import fitting
from fastlane_grpc.service import Service
from fastlane_grpc.v1 import fastlane_pb2 as pb

Context: TypeAlias = "grpc.aio.ServicerContext[object, object]"


class JobServicer:
    """fastlane.v1.JobService"""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def EnqueueJob(self, request: pb.EnqueueJobRequest, context: Context) -> pb.EnqueueJobResponse:
        job, existing = await self._service.enqueue(*converters.read_enqueue(request, context.peer()))
        return pb.EnqueueJobResponse(job=self._answer(job, self._service.waiting), existing=existing)

    async def GetJob(self, request: pb.GetJobRequest, context: Context) -> pb.GetJobResponse:
        job, waiting = await self._service.job(request.job_id)
        return pb.GetJobResponse(job=self._answer(job, lambda execution: waiting))

    async def StopJob(self, request: pb.StopJobRequest, context: Context) -> pb.StopJobResponse:
        grace, malformed = converters.read_grace(request)
        job = await self._service.stop(request.job_id, note=request.note, grace=grace, malformed=malformed)
        return pb.StopJobResponse(job=self._answer(job, self._service.waiting))

    async def ListJobs(self, request: pb.ListJobsRequest, context: Context) -> pb.ListJobsResponse:
        listed = await self._service.jobs(*converters.read_job_query(request))
        jobs, token = await fitting(listed, lambda job: self._answer(job, self._service.waiting))
        return pb.ListJobsResponse(jobs=jobs, next_page_token=token)

    def _answer(self, job: Job, waiting: converters.WaitingOf) -> pb.Job:
        return converters.job(job, waiting, self._service.settings.secret_names)


class ExecutionServicer:
    """fastlane.v1.ExecutionService"""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def GetExecution(self, request: pb.GetExecutionRequest, context: Context) -> pb.GetExecutionResponse:
        execution, waiting = await self._service.execution(request.execution_id)
        return pb.GetExecutionResponse(execution=converters.execution(execution, waiting))

    async def ListExecutions(self, request: pb.ListExecutionsRequest, context: Context) -> pb.ListExecutionsResponse:
        listed = await self._service.executions(*converters.read_execution_query(request))
        executions, token = await fitting(
            listed, lambda execution: converters.execution(execution, self._service.waiting(execution))
        )
        return pb.ListExecutionsResponse(executions=executions, next_page_token=token)

    async def StopExecution(self, request: pb.StopExecutionRequest, context: Context) -> pb.StopExecutionResponse:
        grace, malformed = converters.read_grace(request)
        execution = await self._service.stop_execution(
            request.execution_id, note=request.note, grace=grace, malformed=malformed
        )
        return pb.StopExecutionResponse(execution=converters.execution(execution, self._service.waiting(execution)))

    async def StreamExecutionLogs(self, request: pb.StreamExecutionLogsRequest, context: Context) -> None:
        """Writes serialised messages: most of them were serialised once for all readers."""
        await self._service.log(*converters.read_log_request(request), ProtobufEncoding(), context.write)


class TaskServicer:
    """fastlane.v1.TaskService"""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def GetTask(self, request: pb.GetTaskRequest, context: Context) -> pb.GetTaskResponse:
        return pb.GetTaskResponse(task=converters.task(await self._service.task(request.task_id)))

    async def ListTasks(self, request: pb.ListTasksRequest, context: Context) -> pb.ListTasksResponse:
        listed = await self._service.tasks(converters.read_task_query(request))
        tasks, token = await fitting(listed, converters.task)
        return pb.ListTasksResponse(tasks=tasks, next_page_token=token)


class HostServicer:
    """fastlane.v1.HostService"""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def ListHosts(self, request: pb.ListHostsRequest, context: Context) -> pb.ListHostsResponse:
        return pb.ListHostsResponse(hosts=[converters.host(each) for each in self._service.hosts()])


class ServerServicer:
    """fastlane.v1.ServerService"""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def GetServerInfo(self, request: pb.GetServerInfoRequest, context: Context) -> pb.GetServerInfoResponse:
        settings = self._service.settings
        return pb.GetServerInfoResponse(
            version=version("fastlane-grpc"),
            start_time=converters.timestamp(self._service.start_time),
            time=converters.timestamp(utc_now()),
            max_running=settings.max_running,
            max_timeout=converters.duration(settings.max_timeout),
            default_timeout=converters.duration(settings.default_timeout),
            max_log_bytes=settings.max_log_bytes,
            max_request_bytes=settings.max_request_bytes,
            max_streams=settings.max_streams,
            max_waiting=settings.max_waiting,
            keep_logs=converters.duration(settings.keep_logs),
            keep_jobs=converters.duration(settings.keep_jobs),
        )

    async def Prune(self, request: pb.PruneRequest, context: Context) -> pb.PruneResponse:
        return converters.pruned(await self._service.prune(*converters.read_prune(request)))
