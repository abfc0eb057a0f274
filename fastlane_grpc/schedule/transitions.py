"""Transitions after an enqueue, a tick and the end of an execution: decided from the job, its executions and the time.

A job with a schedule that is not over is in one of two situations. Between runs it has one open execution, which is
scheduled for the next tick. During a run it has the open executions of its runs, including a retry that waits.
`Job.tick_time` then says when the next tick is to be handled.
"""

from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import Enum

from fastlane_grpc.model import (
    DEFAULT_CATCH_UP_WINDOW,
    CatchUp,
    Cron,
    Execution,
    Hold,
    Job,
    JobSpec,
    Outcome,
    Overlap,
    ScheduleState,
    State,
    StopCause,
)
from fastlane_grpc.schedule.cron import Ticks, jittered
from fastlane_grpc.schedule.retry import next_attempt

# A tick that is handled later than this after its time was missed.
PUNCTUAL = timedelta(seconds=60)
# The most missed ticks that CATCH_UP_ALL makes up for, and the most skipped ticks that are counted at a time.
MOST_MISSED = 100
# The most open executions of a job whose runs may overlap.
MOST_OVERLAPPING = 100

_MOMENT = timedelta(microseconds=1)


@dataclass(frozen=True, slots=True)
class Final:
    """The job is over: its final state and its outcome."""

    state: State
    outcome: Outcome


@dataclass(frozen=True, slots=True)
class Next:
    """The job has one more execution, which may start from `due_time` on, unless it is held.

    `run` None: one more run of the job."""

    due_time: datetime
    run: int | None = None
    attempt: int = 1
    tick_time: datetime | None = None
    tries: int = 0
    memory_bytes: int = 0
    hold: Hold = Hold.NONE


@dataclass(frozen=True, slots=True)
class Following:
    """The transition after the end of an execution: the next execution, or the end of the job, or neither while others
    are open. It has the new state of the schedule, too."""

    next: Next | None = None
    final: Final | None = None
    schedule: ScheduleState | None = None


@dataclass(frozen=True, slots=True)
class Due:
    """The transition of an execution whose tick has come.

    `tick_time` and `due_time` are those of the execution from now on, which is queued if that time has come; None: the
    schedule is over, and the execution expires. `next_tick_time` is the next tick of the job.
    """

    tick_time: datetime | None
    due_time: datetime | None
    schedule: ScheduleState
    next_tick_time: datetime | None


class TickAction(Enum):
    """The effect of a tick during a run."""

    NOTHING = "nothing"
    # Start a run beside the others.
    START = "start"
    # Stop the run; the new one starts at its end.
    REPLACE = "replace"


# ---- a job begins


def first(job_id: str, spec: JobSpec, now: datetime, *, hold: Hold = Hold.NONE) -> Following:
    """Return the first execution of a job that is enqueued or replaced now. A start time in the past means now."""
    if spec.cron is None:
        due_time = now + spec.start_in if spec.start_in is not None else max(spec.start_at or now, now)
        return Following(Next(due_time, hold=hold))
    state = ScheduleState(handled_time=now, paused=spec.cron.paused)
    next_run, state = _next_run(job_id, spec, state, now)
    if next_run is None:
        # Its expire_time has passed: it expires at once.
        return Following(Next(now), schedule=replace(state, over=True))
    if hold is not Hold.NONE:
        next_run = replace(next_run, hold=hold)
    return Following(next_run, schedule=state)


def waiting_state(due_time: datetime, now: datetime, hold: Hold = Hold.NONE) -> State:
    """Return the state of a new execution, which waits for its time or for a slot."""
    return State.SCHEDULED if due_time > now or hold is not Hold.NONE else State.QUEUED


def expired_from(expire_time: datetime) -> datetime:
    """Return the first moment at which an execution with this expire_time has expired: at the expire_time itself it may
    still start."""
    return expire_time + _MOMENT


# ---- an execution ends


def after(job: Job, ended: Execution, now: datetime, *, others_open: bool, superseded: bool = False) -> Following:
    """Return what follows `ended`, a final execution of a job that is not final.

    `others_open`: the job has other executions that are not final. `superseded`: the spec of `ended` was replaced, so
    that it has no retries."""
    assert job.spec is not None, "read with the job"
    schedule = job.schedule
    if schedule and ended.tick_time and ended.tick_time > schedule.handled_time:
        # It ended before its tick came: stopped, or expired.
        schedule = replace(schedule, handled_time=ended.tick_time)
    told_to_stop = job.stop_time is not None or (ended.stop is not None and ended.stop.cause is StopCause.CALLER)
    if not told_to_stop and not superseded:
        attempt = next_attempt(job.spec, ended, now)
        if attempt:
            following = Next(
                attempt.due_time, ended.run, ended.attempt + 1, ended.tick_time, attempt.tries, attempt.memory_bytes
            )
            return Following(following, schedule=schedule)
    if others_open:
        return Following(schedule=schedule)
    if job.stop_time is None and schedule and not schedule.over:
        next_run, schedule = _next_run(job.id, job.spec, schedule, now)
        if next_run:
            return Following(next_run, schedule=schedule)
    if schedule:
        schedule = replace(without_pending(schedule, "the job ended first"), over=True)
    return Following(final=settled_by(ended), schedule=schedule)


def settled_by(ended: Execution) -> Final:
    """Return the end of a job that ends as this execution did."""
    assert ended.outcome is not None, "it is final"
    return Final(ended.state, ended.outcome)


# ---- a tick comes


def due(job: Job, execution: Execution, now: datetime) -> Due:
    """Return what becomes of an execution that is scheduled for a tick that has come, between runs of the job."""
    spec, cron, schedule = _scheduled(job)
    tick_time = execution.tick_time
    assert tick_time is not None, "it is scheduled for a tick"
    ticks, due_time = Ticks(cron, expire_time=spec.expire_time), execution.times.due_time
    # A tick that was handled before waited for the end of a run: it was not missed.
    if now - due_time > PUNCTUAL and tick_time > schedule.handled_time:
        before = max(schedule.handled_time, tick_time - _MOMENT)
        found, schedule = _caught_up(ticks, cron, replace(schedule, handled_time=before), now)
        if found is None:
            return Due(None, None, replace(schedule, over=True), None)
        # A missed tick has waited long enough.
        tick_time, due_time = found, max(now, jittered(job.id, found, cron.jitter)) if found > now else now
        if due_time > now:
            return Due(tick_time, due_time, schedule, None)
    schedule = replace(schedule, handled_time=max(schedule.handled_time, tick_time), runs=schedule.runs + 1)
    return Due(tick_time, due_time, schedule, _next_tick_time(ticks, cron, schedule))


def tick(job: Job, open_executions: int, now: datetime) -> tuple[TickAction, datetime, ScheduleState, datetime | None]:
    """Return what the tick at `job.tick_time` does, which has come during a run: the action, the tick, the state of the
    schedule after it, and the next tick."""
    spec, cron, schedule = _scheduled(job)
    assert job.tick_time is not None, "the job has a tick to handle"
    ticks, missed = Ticks(cron, expire_time=spec.expire_time), now - job.tick_time > PUNCTUAL
    if missed and cron.catch_up is CatchUp.ALL and cron.overlap is not Overlap.ALLOW:
        # The end of the run starts them, one after another.
        return TickAction.NOTHING, job.tick_time, schedule, None
    tick_time = job.tick_time
    if missed and (latest := ticks.latest(job.tick_time, now)):
        # As one: the others came during the run as well.
        schedule = _skipped(ticks, schedule, latest[-1], now, "the server was down")
        tick_time = latest[-1]
    handled = replace(schedule, handled_time=tick_time)
    if cron.overlap is Overlap.ALLOW:
        if open_executions >= MOST_OVERLAPPING:
            handled = _skip(handled, tick_time, f"{open_executions} executions of the job had not ended")
        else:
            handled = replace(handled, runs=handled.runs + 1)
            return TickAction.START, tick_time, handled, _next_tick_time(ticks, cron, handled)
    elif cron.overlap is Overlap.REPLACE:
        if handled.pending_time:
            handled = _skip(handled, handled.pending_time, "a later tick came before the run had ended")
        handled = replace(handled, pending_time=tick_time)
        return TickAction.REPLACE, tick_time, handled, _next_tick_time(ticks, cron, handled)
    elif cron.overlap is Overlap.QUEUE_ONE and not handled.pending_time:
        handled = replace(handled, pending_time=tick_time)
    elif cron.overlap is Overlap.QUEUE_ONE:
        handled = _skip(handled, tick_time, "the run before had not ended, and another one waited")
    else:
        handled = _skip(handled, tick_time, "the run before had not ended")
    return TickAction.NOTHING, tick_time, handled, _next_tick_time(ticks, cron, handled)


# ---- a schedule is paused or resumed


def resumed(job: Job, now: datetime) -> tuple[Next | None, ScheduleState, datetime | None]:
    """Return the next run of a paused schedule that is resumed, its state, and its next tick during a run."""
    spec, cron, schedule = _scheduled(job)
    schedule = replace(schedule, paused=False, handled_time=max(schedule.handled_time, now))
    next_run, schedule = _next_run(job.id, spec, schedule, now)
    return next_run, schedule, _next_tick_time(Ticks(cron, expire_time=spec.expire_time), cron, schedule)


def _scheduled(job: Job) -> tuple[JobSpec, Cron, ScheduleState]:
    """Return the spec of a job with a schedule, the schedule, and its state."""
    assert job.spec is not None, "read with the job"
    assert job.spec.cron is not None, "the job has a schedule"
    assert job.schedule is not None, "the job has a schedule"
    return job.spec, job.spec.cron, job.schedule


def _next_run(job_id: str, spec: JobSpec, schedule: ScheduleState, now: datetime) -> tuple[Next | None, ScheduleState]:
    """Return the next run of a schedule between runs, and the state of the schedule with it."""
    cron = spec.cron
    assert cron is not None, "the job has a schedule"
    if cron.max_runs and schedule.runs >= cron.max_runs:
        return None, schedule
    hold = Hold.SCHEDULE_PAUSED if schedule.paused else Hold.NONE
    if schedule.pending_time:
        return Next(now, tick_time=schedule.pending_time, hold=hold), replace(schedule, pending_time=None)
    if schedule.paused:
        # Ticks during a pause are neither run nor skipped.
        schedule = replace(schedule, handled_time=max(schedule.handled_time, now))
    found, schedule = _caught_up(Ticks(cron, expire_time=spec.expire_time), cron, schedule, now)
    if found is None:
        return None, schedule
    # A missed tick has waited long enough.
    due_time = jittered(job_id, found, cron.jitter) if found > now else now
    return Next(due_time, tick_time=found, hold=hold), schedule


def _next_tick_time(ticks: Ticks, cron: Cron, schedule: ScheduleState) -> datetime | None:
    """Return the next tick to handle while a run is under way."""
    waiting = 1 if schedule.pending_time else 0
    if schedule.paused or schedule.over or (cron.max_runs and schedule.runs + waiting >= cron.max_runs):
        return None
    return ticks.after(schedule.handled_time)


def _caught_up(
    ticks: Ticks, cron: Cron, schedule: ScheduleState, now: datetime
) -> tuple[datetime | None, ScheduleState]:
    """Return the tick to run next, which may have been missed, and the schedule with the ticks before it skipped."""
    found = ticks.after(schedule.handled_time)
    if found is None or now - found <= PUNCTUAL:
        return found, schedule
    window = DEFAULT_CATCH_UP_WINDOW if cron.catch_up_window is None else cron.catch_up_window
    earliest = now - PUNCTUAL if cron.catch_up is CatchUp.NONE else now - max(window, PUNCTUAL)
    most = MOST_MISSED if cron.catch_up is CatchUp.ALL else 1
    made_up_for = ticks.latest(max(schedule.handled_time, earliest - _MOMENT), now, most)
    found = made_up_for[0] if made_up_for else ticks.after(max(schedule.handled_time, now))
    return found, _skipped(ticks, schedule, found, now, "it was missed, as the server was down")


def _skipped(ticks: Ticks, schedule: ScheduleState, until: datetime | None, now: datetime, why: str) -> ScheduleState:
    """Return the schedule with the ticks after the handled one and before `until` skipped; None: up to now."""
    until = min(until, now) if until else now
    last = ticks.latest(schedule.handled_time, until - _MOMENT)
    if not last:
        return schedule
    count = ticks.count(schedule.handled_time, until, MOST_MISSED)
    skipped = _skip(schedule, last[-1], why)
    return replace(skipped, skipped=schedule.skipped + count, handled_time=last[-1])


def without_pending(schedule: ScheduleState, why: str) -> ScheduleState:
    """Return the schedule with the tick skipped that waits for the end of a run, if there is one."""
    if schedule.pending_time is None:
        return schedule
    return replace(_skip(schedule, schedule.pending_time, why), pending_time=None)


def _skip(schedule: ScheduleState, tick_time: datetime, why: str) -> ScheduleState:
    return replace(schedule, skipped=schedule.skipped + 1, last_skipped_time=tick_time, last_skipped_detail=why)
