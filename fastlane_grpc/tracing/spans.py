"""The spans of an execution that has ended, made of what the store has of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import Enum

from fastlane_grpc.model import Assignment, Execution, State
from fastlane_grpc.text.redaction import mask_secrets
from fastlane_grpc.trace_context import TraceContext
from fastlane_grpc.tracing.job_trace import JobTrace

# The states that a span reports as an error. A stop is what a caller asked for.
_ERRORS = frozenset({State.FAILED, State.TIMED_OUT, State.LOST, State.EXPIRED})

Attributes = Mapping[str, str | int]


class Kind(Enum):
    """The kind of a span, as OpenTelemetry knows them."""

    INTERNAL = "internal"
    PRODUCER = "producer"
    CONSUMER = "consumer"


@dataclass(frozen=True, slots=True)
class Span:
    """A span that has ended. `place`: its own ids; `parent` None: the root of its trace. `error`: what went wrong;
    None: nothing."""

    name: str
    kind: Kind
    place: TraceContext
    parent: TraceContext | None
    start_time: datetime
    end_time: datetime
    attributes: Attributes
    error: str | None = None
    link: TraceContext | None = None


def spans_of(assignment: Assignment, trace: JobTrace) -> Sequence[Span]:
    """Return the spans of a final execution, parents first. The first execution of a job brings the enqueue along."""
    execution, times = assignment.execution, assignment.execution.times
    assert times.end_time is not None, "it is final"
    spans = []
    if (execution.run, execution.attempt) == (1, 1):
        # The call itself is a span of its caller. This one says when the job was there.
        created = times.create_time
        spans.append(
            Span(
                f"enqueue {execution.task_id}",
                *(Kind.PRODUCER, trace.enqueue, trace.caller, created, created),
                {"fastlane.task.id": execution.task_id, "fastlane.job.id": execution.job_id},
            )
        )
    outcome = execution.outcome
    error = outcome.detail if outcome and execution.state in _ERRORS else None
    start_time, attributes = min(times.due_time, times.end_time), _attributes(assignment)
    spans.append(
        Span(
            f"execute {execution.task_id}",
            *(Kind.CONSUMER, trace.execute, trace.parent, start_time, times.end_time),
            attributes,
            error,
            trace.enqueue if trace.linked else None,
        )
    )
    steps = _steps(execution, start_time, times.end_time)
    failed = "run" if times.start_time else steps[-1][0]
    for name, start, end in steps:
        spans.append(
            Span(
                *(name, Kind.INTERNAL, trace.step(name), trace.execute, start, end),
                {"fastlane.execution.id": execution.id},
                error if name == failed else None,
            )
        )
    return spans


def _steps(execution: Execution, first: datetime, last: datetime) -> Sequence[tuple[str, datetime, datetime]]:
    """Return the steps that were begun, each with its start and its end. An engine's clock may differ."""
    times = execution.times
    begun: list[tuple[str, datetime]] = [("wait", first)]
    for name, time in (
        ("pull", times.claim_time),
        ("start", times.pull_time),
        ("run", times.start_time),
        ("end", times.exit_time),
    ):
        if time is not None:
            begun.append((name, min(max(time, begun[-1][1]), last)))
    ends = [*(start for _, start in begun[1:]), last]
    return [(name, start, end) for (name, start), end in zip(begun, ends, strict=True)]


def _attributes(assignment: Assignment) -> Attributes:
    execution, outcome = assignment.execution, assignment.execution.outcome
    attributes: dict[str, str | int | None] = {
        "fastlane.task.id": execution.task_id,
        "fastlane.job.id": execution.job_id,
        "fastlane.execution.id": execution.id,
        "fastlane.execution.run": execution.run,
        "fastlane.execution.attempt": execution.attempt,
        "fastlane.execution.state": execution.state.name.lower(),
        "fastlane.execution.reason": outcome.reason.name.lower() if outcome and outcome.reason else None,
        "fastlane.host": execution.host or None,
        "container.image.name": mask_secrets(assignment.spec.image),
        "oci.manifest.digest": execution.image_digest or None,
        "container.id": execution.container_id or None,
        "process.exit.code": outcome.exit_code if outcome else None,
        "error.type": outcome.reason.name.lower() if outcome and execution.state in _ERRORS else None,
    }
    return {name: value for name, value in attributes.items() if value is not None}
