"""The one table of permissions: the role that each call needs, and how a token's pattern of tasks limits it."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, auto

from fastlane_grpc.trust.tokens import Role


class Scope(Enum):
    """The things that a call is about, for tokens that are limited to some tasks."""

    # Nothing of any task: such a token may make the call.
    NONE = auto()
    # The server as a whole: such a token may not.
    SERVER = auto()
    # The task, the job or the execution of its request.
    TASK = auto()
    JOB = auto()
    EXECUTION = auto()
    # The task and, if there is one, the job of its request.
    REPLACEMENT = auto()
    # Each of its requests, which has a task.
    BATCH = auto()
    # The jobs of a filter, which must name a task or the jobs.
    FILTER = auto()
    # A list or a watch, which shows only what is in those tasks.
    LIST = auto()
    # The job of its request, which must be given.
    JOB_GIVEN = auto()
    # The task of its request, which must be given.
    TASK_GIVEN = auto()


@dataclass(frozen=True, slots=True)
class Permission:
    """The role and the scope that a call needs."""

    role: Role
    scope: Scope


# By the name of the method in the contract. A method that is missing is refused to everybody.
PERMISSIONS: Mapping[str, Permission] = {
    "EnqueueJob": Permission(Role.SUBMIT, Scope.TASK),
    "GetJob": Permission(Role.VIEW, Scope.JOB),
    "ListJobs": Permission(Role.VIEW, Scope.LIST),
    "StopJob": Permission(Role.SUBMIT, Scope.JOB),
    "StreamJobLogs": Permission(Role.VIEW, Scope.JOB),
    "RetryJob": Permission(Role.SUBMIT, Scope.JOB),
    "ReplaceJob": Permission(Role.SUBMIT, Scope.REPLACEMENT),
    "PauseSchedule": Permission(Role.SUBMIT, Scope.JOB),
    "ResumeSchedule": Permission(Role.SUBMIT, Scope.JOB),
    "PreviewSchedule": Permission(Role.VIEW, Scope.NONE),
    "BatchEnqueueJobs": Permission(Role.SUBMIT, Scope.BATCH),
    "BatchStopJobs": Permission(Role.SUBMIT, Scope.FILTER),
    "BatchRetryJobs": Permission(Role.SUBMIT, Scope.FILTER),
    # Who knows the checksum of a content has the content.
    "UploadInput": Permission(Role.SUBMIT, Scope.NONE),
    "WatchJobs": Permission(Role.VIEW, Scope.LIST),
    "GetExecution": Permission(Role.VIEW, Scope.EXECUTION),
    "ListExecutions": Permission(Role.VIEW, Scope.LIST),
    "ReadOutputs": Permission(Role.VIEW, Scope.EXECUTION),
    "ListOutputs": Permission(Role.VIEW, Scope.EXECUTION),
    "StopExecution": Permission(Role.SUBMIT, Scope.EXECUTION),
    "StreamExecutionLogs": Permission(Role.VIEW, Scope.EXECUTION),
    "GetTask": Permission(Role.VIEW, Scope.TASK),
    "ListTasks": Permission(Role.VIEW, Scope.LIST),
    "UpdateTask": Permission(Role.OPERATE, Scope.TASK),
    "ListHosts": Permission(Role.VIEW, Scope.SERVER),
    "DrainHost": Permission(Role.OPERATE, Scope.SERVER),
    "ResumeHost": Permission(Role.OPERATE, Scope.SERVER),
    "ListDeliveries": Permission(Role.VIEW, Scope.JOB_GIVEN),
    "RedeliverNotification": Permission(Role.SUBMIT, Scope.SERVER),
    "GetServerInfo": Permission(Role.VIEW, Scope.NONE),
    "Prune": Permission(Role.OPERATE, Scope.TASK_GIVEN),
    "ListAuditEntries": Permission(Role.OPERATE, Scope.SERVER),
}

# What is no call of the contract.
HEALTH, REFLECTION, METRICS = "health", "reflection", "metrics"
OTHERS: Mapping[str, Permission] = {
    HEALTH: Permission(Role.VIEW, Scope.NONE),
    # The contract itself, over gRPC or as OpenAPI.
    REFLECTION: Permission(Role.VIEW, Scope.NONE),
    METRICS: Permission(Role.VIEW, Scope.SERVER),
}
