"""Schedules and retries on a server that is killed with -9 again and again, on a clock that runs sixty times as fast.

No tick runs twice or is lost, no container is started twice, and what ran has sent its mail once."""

import os
import random
import threading
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import docker
import grpc
import pytest
from google.protobuf import duration_pb2

from fastlane_grpc.model import CaptureMode, Cron, Overlap, utc_now
from fastlane_grpc.schedule import Ticks
from fastlane_grpc.schedule.transitions import MOST_MISSED
from fastlane_grpc.v1 import fastlane_pb2 as pb
from fastlane_grpc.v1 import fastlane_pb2_grpc as pb_grpc
from tests.mails import Mails
from tests.serving import within
from tests.tally import tally
from tests.test_crash import CrashHarness

SEED = int(os.environ.get("CHAOS_SEED", "20261128"))
# Rounds of random kills, each of some minutes of the fast clock: `make chaos` asks for many. 480 are a day.
ROUNDS = int(os.environ.get("CHAOS_ROUNDS", "2"))
# As many as a job can have.
RETRIES = min(2 * ROUNDS, 100)
# Each round brings containers that are still to be started when the kills are over.
END_SECONDS = 60 + 30 * ROUNDS
pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.timeout(600 + 60 * ROUNDS)]
FACTOR = 60
MINUTE = timedelta(minutes=1)
FINAL = [state for state in pb.State.values() if state >= pb.STATE_SUCCEEDED]
# Sends a mail to the test, at the address of the engine's first bridge. The mail names the container that wrote it.
# Succeeds if the receiver has answered all, QUIT too (221): `nc` by itself gives up in silence when a busy one is slow.
SEND = (
    r"printf 'EHLO job\r\nMAIL FROM:<job@here>\r\nRCPT TO:<you@there>\r\nDATA\r\n"
    r"Subject: report\r\n\r\nby %s\r\n.\r\nQUIT\r\n'"
    ' "$HOSTNAME" | nc -w 60 172.17.0.1 $PORT | grep -c "^221"'
)


@pytest.fixture
def harness(tmp_path: Path, sdk: docker.DockerClient, image: str) -> Iterator[CrashHarness]:
    harness = CrashHarness(tmp_path / "data", sdk, image, CaptureMode.RECORDER)
    yield harness
    harness.close()


def stub(harness: CrashHarness) -> Any:
    return pb_grpc.JobServiceStub(grpc.insecure_channel(harness.listen))


def executions_of(harness: CrashHarness, job_id: str) -> list[pb.Execution]:
    """All executions of the job, the oldest one first."""
    service = pb_grpc.ExecutionServiceStub(grpc.insecure_channel(harness.listen))
    executions: list[pb.Execution] = []
    request = pb.ListExecutionsRequest(job_id=job_id, page_size=1000)
    while True:
        page = service.ListExecutions(request)
        executions += page.executions
        if not page.next_page_token:
            return executions[::-1]
        request.page_token = page.next_page_token


def test_schedules_and_retries_outlive_servers_that_are_killed(harness: CrashHarness) -> None:
    chance = random.Random(SEED)
    begin = utc_now()
    clock = {"clock": (begin.isoformat(), FACTOR)}
    with Mails() as mails:
        server = harness.server(**clock)
        jobs = {
            overlap: stub(harness)
            .EnqueueJob(
                pb.EnqueueJobRequest(
                    task_id="mail",
                    spec=pb.JobSpec(
                        image=harness.image,
                        args=["sh", "-c", SEND],
                        envs={"PORT": str(mails.port)},
                        cron=pb.Cron(
                            expression="* * * * *",
                            overlap=pb.Cron.Overlap.ValueType(overlap),
                            catch_up=chance.choice([pb.Cron.CATCH_UP_LATEST, pb.Cron.CATCH_UP_ALL]),
                        ),
                        history=10_000,
                    ),
                )
            )
            .job
            for overlap in (Overlap.SKIP, Overlap.QUEUE_ONE, Overlap.ALLOW)
        }
        failing = (
            stub(harness)
            .EnqueueJob(
                pb.EnqueueJobRequest(
                    task_id="fails",
                    spec=pb.JobSpec(
                        image=harness.image,
                        args=["sh", "-c", "echo fails; exit 7"],
                        retry=pb.Retry(
                            max_retries=RETRIES, initial_backoff=duration_pb2.Duration(seconds=45), factor=1
                        ),
                        history=10_000,
                    ),
                )
            )
            .job
        )
        for _ in range(ROUNDS):
            threading.Event().wait(chance.uniform(1.0, 5.0))
            server.kill()
            tally()
            server = harness.server(**clock)
        threading.Event().wait(2.0)
        with within(END_SECONDS):
            for job in jobs.values():
                stub(harness).StopJob(pb.StopJobRequest(job_id=job.id, note="the day is over"))
            while stub(harness).GetJob(pb.GetJobRequest(job_id=failing.id)).job.state not in FINAL:
                threading.Event().wait(0.1)
            while any(each.state not in FINAL for job in jobs.values() for each in executions_of(harness, job.id)):
                threading.Event().wait(0.1)
        sent = containers_that_sent(mails)
        for job in jobs.values():
            check_ticks(harness, job, sent)
            harness.executions += [each.id for each in executions_of(harness, job.id)]
        check_attempts(harness, failing)
        harness.executions += [each.id for each in executions_of(harness, failing.id)]
        assert server.stop() == 0
    assert set(harness.starts().values()) == {1}, "no container is started twice"


def containers_that_sent(mails: Mails) -> Counter[str]:
    """How many mails each container has sent, by the beginning of its id."""
    return Counter(
        mails.received.get_nowait().get_content().strip().rpartition("by ")[2] for _ in range(mails.received.qsize())
    )


def check_ticks(harness: CrashHarness, job: pb.Job, mails: Counter[str]) -> None:
    """Each tick ran once, or was skipped, and each run that succeeded has sent one mail."""
    final = stub(harness).GetJob(pb.GetJobRequest(job_id=job.id)).job
    executions = executions_of(harness, job.id)
    times = [each.tick_time.ToDatetime(UTC) for each in executions]
    assert len(set(times)) == len(times), "no tick runs twice"
    assert [each.run for each in executions] == list(range(1, len(executions) + 1))
    # A server lives for three ticks on average. A run on a busy machine takes longer than that, and ticks are skipped.
    assert len(times) > ROUNDS // 2
    first, last = times[0], max(times)
    passed = Ticks(Cron("* * * * *")).count(first - MINUTE / 2, last + MINUTE / 2, 10_000)
    run_or_skipped = len(times) + final.schedule.skipped_ticks
    # Of the ticks that are skipped together, so many are counted.
    skipped = [(later - earlier) // MINUTE - 1 for earlier, later in pairwise(sorted(times))]
    uncounted = sum(max(count - MOST_MISSED, 0) for count in skipped)
    # Ticks may have been skipped after the last run.
    assert passed <= run_or_skipped + uncounted, "no tick is lost"
    for each in executions:
        sent = mails[each.container_id[:12]] if each.container_id else 0
        assert sent <= 1
        if each.state == pb.STATE_SUCCEEDED:
            assert sent == 1, "what succeeded has sent its mail"


def check_attempts(harness: CrashHarness, job: pb.Job) -> None:
    """Each attempt was tried in order, and only failures of the job were counted."""
    executions = executions_of(harness, job.id)
    assert [each.attempt for each in executions] == list(range(1, len(executions) + 1))
    failed = [each for each in executions if each.state == pb.STATE_FAILED]
    lost = [each for each in executions if each.state == pb.STATE_LOST]
    assert len(failed) == 1 + RETRIES
    assert len(failed) + len(lost) == len(executions)
    final = stub(harness).GetJob(pb.GetJobRequest(job_id=job.id)).job
    assert (final.state, final.outcome.exit_code, final.executions) == (pb.STATE_FAILED, 7, len(executions))
