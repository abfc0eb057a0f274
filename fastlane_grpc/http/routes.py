"""The one table of paths: each call of the contract with its verb and path.

Routing, the OpenAPI document, the tests and the table in docs/http.md are made from it."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

from google.protobuf.descriptor import MethodDescriptor

from fastlane_grpc.v1 import fastlane_pb2 as pb


@dataclass(frozen=True, slots=True)
class CallRoute:
    """One call at one path. The names in braces are fields of the request; all other fields are in the query of a GET,
    else in the body.

    `page`: a browser that asks for HTML gets the page instead."""

    method: str
    verb: str
    path: str
    page: bool = False

    @property
    def descriptor(self) -> MethodDescriptor:
        return methods()[self.method]

    @property
    def path_fields(self) -> Sequence[str]:
        """The fields of the request that are in the path."""
        return re.findall(r"{(\w+)}", self.path)

    @property
    def operation_id(self) -> str:
        """The name of this operation in the OpenAPI document: that of the method, which may have two paths."""
        return "EnqueueJobOfTask" if self.path == "/tasks/{task_id}" and self.verb == "POST" else self.method

    @property
    def creates(self) -> bool:
        """Whether the call may store a job that the response then names."""
        return self.method in {"EnqueueJob", "ReplaceJob"}

    @property
    def call(self) -> str:
        """The name of the call in `Calls`: that of its method in snake case."""
        return "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in self.method).lstrip("_")


ROUTES: Sequence[CallRoute] = (
    CallRoute("ListTasks", "GET", "/tasks", page=True),
    CallRoute("EnqueueJob", "POST", "/tasks/{task_id}"),
    CallRoute("GetTask", "GET", "/tasks/{task_id}", page=True),
    CallRoute("UpdateTask", "PATCH", "/tasks/{task_id}"),
    CallRoute("EnqueueJob", "POST", "/jobs"),
    CallRoute("ListJobs", "GET", "/jobs", page=True),
    CallRoute("GetJob", "GET", "/jobs/{job_id}", page=True),
    CallRoute("ReplaceJob", "PUT", "/jobs/{job_id}"),
    CallRoute("StopJob", "POST", "/jobs/{job_id}/stop"),
    CallRoute("RetryJob", "POST", "/jobs/{job_id}/retry"),
    CallRoute("PauseSchedule", "POST", "/jobs/{job_id}/pause"),
    CallRoute("ResumeSchedule", "POST", "/jobs/{job_id}/resume"),
    CallRoute("StreamJobLogs", "GET", "/jobs/{job_id}/logs"),
    CallRoute("BatchEnqueueJobs", "POST", "/batch/enqueue"),
    CallRoute("BatchStopJobs", "POST", "/batch/stop"),
    CallRoute("BatchRetryJobs", "POST", "/batch/retry"),
    CallRoute("UploadInput", "PUT", "/inputs/{sha256}"),
    CallRoute("PreviewSchedule", "POST", "/schedules/preview"),
    CallRoute("ListExecutions", "GET", "/executions", page=True),
    CallRoute("GetExecution", "GET", "/executions/{execution_id}", page=True),
    CallRoute("StopExecution", "POST", "/executions/{execution_id}/stop"),
    CallRoute("ReadOutputs", "GET", "/executions/{execution_id}/outputs"),
    CallRoute("ListOutputs", "GET", "/executions/{execution_id}/outputs/entries"),
    CallRoute("StreamExecutionLogs", "GET", "/executions/{execution_id}/logs"),
    CallRoute("WatchJobs", "GET", "/watch"),
    CallRoute("ListDeliveries", "GET", "/deliveries"),
    CallRoute("RedeliverNotification", "POST", "/deliveries/{delivery_id}/redeliver"),
    CallRoute("ListHosts", "GET", "/hosts", page=True),
    CallRoute("DrainHost", "POST", "/hosts/{host}/drain"),
    CallRoute("ResumeHost", "POST", "/hosts/{host}/resume"),
    CallRoute("GetServerInfo", "GET", "/info"),
    CallRoute("Prune", "POST", "/prune"),
    CallRoute("ListAuditEntries", "GET", "/audit"),
)


@cache
def methods() -> Mapping[str, MethodDescriptor]:
    """Return all methods of the contract by name; no two have the same."""
    return {method.name: method for service in pb.DESCRIPTOR.services_by_name.values() for method in service.methods}
