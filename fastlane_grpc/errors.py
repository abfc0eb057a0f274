"""Errors in the language of jobs. `api/error_table.py` has their status codes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


class CannotServe(Exception):
    """The server cannot begin; the message says why and what to do."""


class ServerFailed(Exception):
    """The server took itself down, because a part of it failed that it cannot do without; the message says which."""


@dataclass(frozen=True, slots=True)
class Violation:
    """One field at fault: its path in the request, as `spec.envs["A=B"]`, and what is wrong with it."""

    field: str
    description: str

    def __str__(self) -> str:
        return f"{self.field}: {self.description}" if self.field else self.description


class Refusal(Exception):
    """A request that was not carried out; nothing was written. `metadata` says which one, by the names of the
    contract. `violations` name the fields at fault."""

    violations: Sequence[Violation] = ()

    def __init__(self, message: str, *, retry_seconds: float | None = None, **metadata: str) -> None:
        super().__init__(message)
        self.metadata: Mapping[str, str] = metadata
        self.retry_seconds = retry_seconds


class InvalidRequest(Refusal):
    """Fields that cannot be as they are; all of them, not the first."""

    def __init__(self, violations: Sequence[Violation]) -> None:
        super().__init__("; ".join(map(str, violations)))
        self.violations = tuple(violations)


class UnknownField(Refusal):
    """The request has fields that this server does not know."""

    def __init__(self, message: str, violations: Sequence[Violation] = ()) -> None:
        super().__init__(message)
        self.violations = tuple(violations)


class PageTokenInvalid(Refusal):
    """Not a page token of this server, or of another query."""


class TaskNotFound(Refusal):
    """No job of that task is kept."""

    def __init__(self, task_id: str) -> None:
        super().__init__(f"there is no task {task_id!r}", task_id=task_id)


class JobNotFound(Refusal):
    """No job of that id."""

    def __init__(self, job_id: str) -> None:
        super().__init__(f"there is no job {job_id!r}", job_id=job_id)


class ExecutionNotFound(Refusal):
    """No execution of that id."""

    def __init__(self, execution_id: str) -> None:
        super().__init__(f"there is no execution {execution_id!r}", execution_id=execution_id)


class OutputsNotFound(Refusal):
    """The execution has no outputs."""

    def __init__(self, execution_id: str, why: str) -> None:
        super().__init__(f"execution {execution_id} has no outputs: {why}", execution_id=execution_id)


class RequestIdReused(Refusal):
    """The request_id came with another request before."""

    def __init__(self, request_id: str, job_id: str) -> None:
        super().__init__(
            f"request_id {request_id!r} was used for another request, which made job {job_id}; use a new one",
            job_id=job_id,
        )


class HostNotFound(Refusal):
    """No host of that name is configured."""

    def __init__(self, host: str) -> None:
        super().__init__(f"there is no host {host!r}", host=host)


class DeliveryNotFound(Refusal):
    """No delivery of that id is kept."""

    def __init__(self, delivery_id: str) -> None:
        super().__init__(f"there is no delivery {delivery_id!r}", delivery_id=delivery_id)


class RegistryCredentialNotFound(Refusal):
    """No credential of that name is configured, or the task may not use it: the two cannot be told apart."""

    def __init__(self, name: str) -> None:
        super().__init__(f"there is no registry credential {name!r} for this task", registry_credential=name)


class SecretNotFound(Refusal):
    """No secret of that name is configured, or the task may not use it: the two cannot be told apart."""

    def __init__(self, name: str) -> None:
        super().__init__(f"there is no secret {name!r} for this task", secret=name)


class JobNotFinal(Refusal):
    """The job has not ended."""

    def __init__(self, job_id: str, state: str) -> None:
        super().__init__(
            f"job {job_id} is {state}; only a job that has ended can be retried", job_id=job_id, state=state
        )


class EtagMismatch(Refusal):
    """The job has another etag."""

    def __init__(self, job_id: str, etag: str) -> None:
        super().__init__(
            f"job {job_id} was changed; its etag is {etag!r} now. Read the job again before replacing it",
            job_id=job_id,
            etag=etag,
        )


class JobExpired(Refusal):
    """The expire_time of the job has passed."""

    def __init__(self, job_id: str, expire_time: str) -> None:
        super().__init__(
            f"job {job_id} cannot start any more: its expire_time was {expire_time}",
            job_id=job_id,
            expire_time=expire_time,
        )


class UniqueKeyTaken(Refusal):
    """A job that has not ended holds the unique key."""

    def __init__(self, key: str, job_id: str) -> None:
        super().__init__(f"job {job_id} holds the unique key {key[:100]!r} and has not ended", job_id=job_id)


class NoSchedule(Refusal):
    """The job has no schedule, or its schedule is over."""

    def __init__(self, job_id: str, why: str) -> None:
        super().__init__(f"job {job_id} {why}", job_id=job_id)


class CursorInvalid(Refusal):
    """Not a cursor."""


class CursorOfAnotherExecution(Refusal):
    """A cursor, of another execution."""


class CursorOfAnotherJob(Refusal):
    """A cursor of an execution of another job."""


class CursorAhead(Refusal):
    """The sealed log ends before the cursor."""


class CursorTooOld(Refusal):
    """Changes as old as the cursor are not kept."""


class QueueFull(Refusal):
    """The number of waiting executions is at the server's limit."""


class TooManyStreams(Refusal):
    """The number of open streams is at the server's limit."""


class TokenRequired(Refusal):
    """The call has no token, and the server requires one."""


class TokenInvalid(Refusal):
    """The token is unknown or revoked."""


class TokenExpired(Refusal):
    """The token's time is over."""


class PermissionDenied(Refusal):
    """The token does not allow the call."""


class TooManyAttempts(Refusal):
    """The address has sent too many wrong tokens."""


class ServerStopping(Refusal):
    """The server is going down; the next one has everything."""


class DiskFull(Refusal):
    """The data directory has no room."""


class StoreFailed(Refusal):
    """The data directory cannot be written or read."""
