"""What `fastlane watch` shows of jobs on a screen, by the events of a watch."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from fastlane_grpc.cli.commands.watch import Jobs, _Lines
from fastlane_grpc.cli.display.job_note import note_of
from fastlane_grpc.client import CaughtUp, ChangesMissed, JobChanged, JobPruned
from fastlane_grpc.v1 import fastlane_pb2 as pb

NOW = datetime(2030, 1, 31, 8, tzinfo=UTC)


def a_job(
    number: int, state: pb.State.ValueType = pb.STATE_QUEUED, *, task_id: str = "mail", detail: str = ""
) -> pb.Job:
    job = pb.Job(id=f"01980f3e-8b1c-7d43-9a51-{number:012d}", task_id=task_id, state=state)
    job.execution.attempt = job.execution.run = 1
    job.execution.waiting.detail = detail
    if state >= pb.STATE_SUCCEEDED:
        job.outcome.detail = detail
        job.execution.ClearField("waiting")
    return job


def screen(jobs: Jobs, columns: int = 120, rows: int = 20) -> list[str]:
    lines = jobs.lines(columns, rows, NOW, colour=False)
    assert len(lines) <= rows
    assert all(len(line) < columns for line in lines)
    return lines


def test_jobs_at_work_are_shown_before_those_that_wait_and_those_that_ended() -> None:
    jobs = Jobs()
    for job in (a_job(1), a_job(2, pb.STATE_RUNNING), a_job(3, pb.STATE_SCHEDULED)):
        jobs.take(JobChanged(job))
    jobs.take(CaughtUp())
    jobs.take(JobChanged(a_job(1, pb.STATE_FAILED, detail="exited with 3")))
    assert screen(jobs) == [
        "1 running, 1 scheduled; 1 ended",
        "JOB                                   TASK  STATE      RAN  NOTE",
        "01980f3e-8b1c-7d43-9a51-000000000002  mail  running    -",
        "01980f3e-8b1c-7d43-9a51-000000000003  mail  scheduled  -",
        "01980f3e-8b1c-7d43-9a51-000000000001  mail  failed     -    exited with 3",
    ]


def test_a_small_screen_shows_less_and_says_how_many_more_there_are() -> None:
    jobs = Jobs()
    for number in range(100):
        jobs.take(JobChanged(a_job(number, detail="\x1b[2Jlong " * 40, task_id="task" * 20)))
    lines = screen(jobs, columns=60, rows=6)
    assert len(lines) == 6
    assert lines[2].startswith("01980f3e-8b1c  tasktasktasktasktask  queued  -    ")
    assert lines[-1] == "and 97 more"
    assert "\x1b" not in "".join(lines)
    for size in range(1, 12):
        screen(jobs, columns=size + 1, rows=size)


def test_a_watch_that_began_anew_drops_jobs_that_are_not_told_again() -> None:
    jobs = Jobs()
    for number in (1, 2):
        jobs.take(JobChanged(a_job(number)))
    for event in (CaughtUp(), ChangesMissed(None), JobChanged(a_job(2)), CaughtUp()):
        jobs.take(event)
    assert [line[-26:-24] for line in screen(jobs)[2:]] == [screen(jobs)[2][-26:-24]]
    assert screen(jobs)[0] == "1 queued; 0 ended"


def test_pruned_jobs_leave_the_screen_and_a_retried_one_is_open_again() -> None:
    jobs = Jobs()
    for event in (CaughtUp(), JobChanged(a_job(1, pb.STATE_LOST)), JobChanged(a_job(2)), JobChanged(a_job(1))):
        jobs.take(event)
    assert screen(jobs)[0] == "2 queued; 1 ended"
    jobs.take(JobPruned(a_job(1).id))
    assert len(screen(jobs)) == 3


def test_the_note_says_which_attempt_it_is_and_what_it_waits_for() -> None:
    job = a_job(1, pb.STATE_RUNNING)
    job.execution.ClearField("waiting")
    job.execution.attempt = 2
    assert note_of(job, job.execution) == "attempt 2"
    job.spec.retry.max_retries = 3
    assert note_of(job, job.execution) == "attempt 2 of 4"
    waiting = job.execution.waiting
    waiting.reason, waiting.detail = pb.WAIT_REASON_TASK_PAUSED, "the task is paused"
    assert note_of(job, job.execution) == "the task is paused; attempt 2 of 4"
    waiting.reason = pb.WAIT_REASON_BACKOFF
    waiting.due_time.FromDatetime(datetime.now(UTC) + timedelta(seconds=8.9))
    assert note_of(job, job.execution).startswith("attempt 2 of 4 starts in 8s, at ")
    job.execution.attempt, job.execution.run, waiting.reason = 1, 7, pb.WAIT_REASON_NOT_DUE
    job.execution.tick_time.CopyFrom(waiting.due_time)
    assert note_of(job, job.execution).startswith("next run starts in 8s, at ")
    assert note_of(job.execution, job.execution).startswith("run 7 starts in 8s, at ")
    job.execution.attempt = 3
    job.outcome.detail = "exited with 1"
    assert note_of(job, job.execution) == "exited with 1; attempt 3 of 4"


def test_a_pipe_gets_no_second_line_for_a_change_that_it_does_not_show(capfd: pytest.CaptureFixture[str]) -> None:
    lines, job = _Lines(), pb.Job(id="a", task_id="task", state=pb.STATE_PREPARING)
    events: list[Any] = [JobChanged(job)]
    job.execution.container_id = "c"
    events += [JobChanged(job), JobChanged(pb.Job(id="b", task_id="task", state=pb.STATE_PREPARING)), JobChanged(job)]
    events += [JobChanged(pb.Job(id="a", task_id="task", state=pb.STATE_QUEUED)), JobChanged(job), JobPruned("a")]
    for event in (*events, JobChanged(job)):
        lines.show(event, "")
    shown = [line.partition("  ")[2] for line in capfd.readouterr().out.splitlines()]
    assert shown == [
        *("a  task  preparing", "b  task  preparing", "a  task  queued", "a  task  preparing", "a  pruned"),
        "a  task  preparing",
    ]
