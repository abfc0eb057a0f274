"""The place of an execution in a trace: ids that follow from those of its job."""

from collections.abc import Callable
from dataclasses import dataclass
from hashlib import blake2b
from typing import TypeAlias

from fastlane_grpc.model import Assignment
from fastlane_grpc.trace_context import SAMPLED, TraceContext

# Returns whether a trace is recorded, by its id and the caller's place in it.
Sampled: TypeAlias = Callable[[str, TraceContext | None], bool]

TRACE_DIGITS, SPAN_DIGITS = 32, 16


@dataclass(frozen=True, slots=True)
class JobTrace:
    """The spans that an execution belongs to.

    `caller`: the span of the call that enqueued the job, if it had one. `enqueue`: the span of the enqueue. `execute`:
    the span of the execution, whose parent is `parent`. `linked`: the enqueue is in another trace."""

    caller: TraceContext | None
    enqueue: TraceContext
    parent: TraceContext | None
    execute: TraceContext
    linked: bool

    @classmethod
    def of(cls, assignment: Assignment, sampled: Sampled) -> "JobTrace":
        """Return the spans of an execution.

        A job is one trace, and each attempt is a span below the enqueue. A schedule may go on for years: each of its
        runs is a trace of its own, with a link to the enqueue. There, retries are below the first attempt."""
        execution = assignment.execution
        job_id, run = execution.job_id, f"{execution.job_id} {execution.run}"
        caller = TraceContext.from_text(assignment.trace) if assignment.trace else None
        trace_id = caller.trace_id if caller else _digits(f"trace {job_id}", TRACE_DIGITS)
        enqueue = _recorded(trace_id, _digits(f"enqueue {job_id}", SPAN_DIGITS), caller, sampled)
        execute_id = _digits(f"execute {run} {execution.attempt}", SPAN_DIGITS)
        if not assignment.spec.cron:
            return cls(caller, enqueue, enqueue, enqueue.at(execute_id), linked=False)
        first = _recorded(
            _digits(f"trace {run}", TRACE_DIGITS), _digits(f"execute {run} 1", SPAN_DIGITS), None, sampled
        )
        return cls(caller, enqueue, first if execution.attempt > 1 else None, first.at(execute_id), linked=True)

    def step(self, name: str) -> TraceContext:
        """Return the span of a step of the execution."""
        return self.execute.at(_digits(f"{name} {self.execute.span_id}", SPAN_DIGITS))


def _recorded(trace_id: str, span_id: str, caller: TraceContext | None, sampled: Sampled) -> TraceContext:
    flags = SAMPLED if sampled(trace_id, caller) else 0
    if caller is None:
        return TraceContext(trace_id, span_id, flags)
    return TraceContext(trace_id, span_id, (caller.flags & ~SAMPLED) | flags, caller.state)


def _digits(name: str, digits: int) -> str:
    return blake2b(name.encode(), digest_size=digits // 2).hexdigest()
