"""WatchJobs over real gRPC and a real store: what matches now, then every change, and how such a stream begins, goes on
and ends."""

import asyncio
import gc
import time
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2
from structlog.testing import capture_logs

from fastlane_grpc.model import JobSpec, Outcome, State, new_id
from fastlane_grpc.v1 import fastlane_pb2 as pb
from fastlane_grpc.v1.fastlane_pb2_grpc import JobServiceStub
from fastlane_grpc.watch import BATCH_UPDATES, RING_UPDATES, JobUpdate
from tests.calls import RpcHarness, detail, reason

SPEC = pb.JobSpec(image="busybox", labels={"name": "x" * 200})
Call: TypeAlias = "grpc.aio.UnaryStreamCall[object, pb.WatchJobsResponse]"


@pytest.fixture
async def harness(tmp_path: Path) -> AsyncIterator[RpcHarness]:
    harness = RpcHarness(tmp_path)
    await harness.server.start()
    yield harness
    await harness.close()


async def read(call: Call) -> pb.WatchJobsResponse:
    message = await asyncio.wait_for(call.read(), 30)
    assert isinstance(message, pb.WatchJobsResponse), "it ended"
    return message


async def snapshot(call: Call) -> tuple[list[pb.WatchJobsResponse], str]:
    """The messages before `caught_up`, and its cursor."""
    messages = []
    while (message := await read(call)).WhichOneof("event") != "caught_up":
        assert message.cursor == ""
        messages.append(message)
    return messages, message.cursor


async def jobs_of(call: Call) -> set[str]:
    return {message.job.id for message in (await snapshot(call))[0]}


async def next_job(call: Call) -> pb.Job:
    message = await read(call)
    assert message.WhichOneof("event") == "job", message
    return message.job


async def next_pruned(call: Call) -> str:
    """The next job that is told to be pruned. The last state of a job may be told twice before."""
    while (message := await read(call)).WhichOneof("event") == "job":
        assert message.job.HasField("outcome") or message.job.state == pb.STATE_QUEUED
    return message.pruned_job_id


async def refusal(harness: RpcHarness, **request: Any) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        while True:
            await read(harness.watch(**request))
    return refused.value


async def enqueue(harness: RpcHarness, task_id: str = "task", labels: Mapping[str, str] | None = None) -> str:
    spec = JobSpec("busybox", labels=labels or {})
    job, _ = await harness.store.enqueue(task_id=task_id, spec=spec, request_id="", caller_address="")
    return job.id


async def enqueue_array(harness: RpcHarness, size: int) -> list[str]:
    array = pb.JobArray(size=size, request=pb.EnqueueJobRequest(task_id="task", spec=SPEC))
    response = await harness.jobs.BatchEnqueueJobs(pb.BatchEnqueueJobsRequest(array=array))
    return [result.enqueued.job.id for result in response.results]


async def told_of_each(call: Call, job_ids: Sequence[str]) -> None:
    """Reads until each of these jobs was told."""
    left = set(job_ids)
    while left:
        left.discard((await read(call)).job.id)


def full_connection(harness: RpcHarness) -> grpc.aio.Channel:
    """A connection of its own, that holds little: its watchers soon have to wait for a client that does not read."""
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.http2.bdp_probe", 0)]
    return grpc.aio.insecure_channel(f"127.0.0.1:{harness.port}", options=options)


def count_reads(harness: RpcHarness) -> Counter[str]:
    """How often the store is asked for changes, and for changed jobs, from now on."""
    counts: Counter[str] = Counter()
    store: Any = harness.store

    def count(name: str) -> None:
        ask = getattr(store, name)

        def counted(*args: Any, **kwargs: Any) -> Any:
            counts[name] += 1
            return ask(*args, **kwargs)

        setattr(store, name, counted)

    count("changes")
    count("read_jobs")
    return counts


async def finish_next(harness: RpcHarness) -> str:
    """Takes the next job to its end, without a container."""
    [assignment] = await harness.store.claim_on(["local"])
    execution = assignment.execution
    await harness.store.finish(execution.id, state=State.SUCCEEDED, outcome=Outcome(exit_code=0), logs=())
    return execution.job_id


# ----------------------------------------------------------------------------------------------- what a watcher is told


async def test_a_watch_tells_what_is_open_and_then_each_change(harness: RpcHarness) -> None:
    await enqueue(harness)
    ended = await finish_next(harness)
    first = await enqueue(harness)
    call = harness.watch()
    messages, cursor = await snapshot(call)
    assert [message.job.id for message in messages] == [first]
    assert cursor
    assert await finish_next(harness) == first
    while (job := await next_job(call)).state != pb.STATE_SUCCEEDED:
        assert job.id == first
    second = await enqueue(harness)
    # The last state of a job may be told twice.
    while (job := await next_job(call)).id == first:
        assert job.state == pb.STATE_SUCCEEDED
    assert (job.id, job.state) == (second, pb.STATE_QUEUED)
    await harness.store.delete_jobs([ended])
    assert await next_pruned(call) == ended


async def test_a_watched_job_is_as_get_job_answers_without_its_spec(harness: RpcHarness) -> None:
    call = harness.watch()
    await snapshot(call)
    job_id = await enqueue(harness)
    changed = await next_job(call)
    got = (await harness.jobs.GetJob(pb.GetJobRequest(job_id=job_id))).job
    got.ClearField("spec")
    assert changed == got
    assert changed.execution.waiting.reason == pb.WAIT_REASON_NO_FREE_SLOT


async def test_a_schedule_that_is_paused_and_a_job_that_is_retried_are_told(harness: RpcHarness) -> None:
    call = harness.watch()
    await snapshot(call)
    spec = pb.JobSpec(image="busybox", cron=pb.Cron(expression="@yearly"))
    job = (await harness.jobs.EnqueueJob(pb.EnqueueJobRequest(task_id="task", spec=spec))).job
    told = await next_job(call)
    assert (told.id, told.state, len(told.schedule.next_times)) == (job.id, pb.STATE_SCHEDULED, 1)
    await harness.jobs.PauseSchedule(pb.PauseScheduleRequest(job_id=job.id))
    while not (told := await next_job(call)).schedule.paused:
        assert told.id == job.id
    await harness.jobs.StopJob(pb.StopJobRequest(job_id=job.id))
    while (told := await next_job(call)).state != pb.STATE_STOPPED:
        assert told.id == job.id
    await harness.jobs.RetryJob(pb.RetryJobRequest(job_id=job.id))
    while (told := await next_job(call)).state != pb.STATE_QUEUED:
        assert told.id == job.id
    assert not told.HasField("outcome")


@pytest.mark.parametrize(
    ("request_of", "wanted"),
    [
        (lambda ids: {"task_id": "mail"}, {"mail", "mail-red"}),
        (lambda ids: {"labels": {"colour": "red"}}, {"mail-red", "build-red"}),
        (lambda ids: {"labels": {"colour": "red"}, "task_id": "build"}, {"build-red"}),
        (lambda ids: {"job_ids": [ids["mail"], ids["build"], ids["mail"]]}, {"mail", "build"}),
        (lambda ids: {"job_ids": [ids["mail"], ids["build"]], "task_id": "mail"}, {"mail"}),
        (lambda ids: {"job_ids": list(ids.values()), "labels": {"colour": "red"}}, {"mail-red", "build-red"}),
        (lambda ids: {}, {"mail", "build", "mail-red", "build-red"}),
    ],
)
async def test_a_filter_holds_for_the_snapshot_for_changes_and_for_what_is_pruned(
    harness: RpcHarness, request_of: Any, wanted: set[str]
) -> None:
    names = ["mail", "build", "mail-red", "build-red"]
    ids = {
        name: await enqueue(harness, name.partition("-")[0], {"colour": "red"} if "red" in name else {"size": "red"})
        for name in names
    }
    call = harness.watch(**request_of(ids))
    assert await jobs_of(call) == {ids[name] for name in wanted}
    for _ in names:
        await finish_next(harness)
    final: set[str] = set()
    while len(final) < len(wanted):
        job = await next_job(call)
        final |= {job.id} if job.state == pb.STATE_SUCCEEDED else set()
    assert final == {ids[name] for name in wanted}
    await harness.store.delete_jobs(list(ids.values()))
    assert {await next_pruned(call) for _ in wanted} == final
    # And nothing else: the next one is a job that comes later, where such a job may match.
    if "job_ids" not in request_of(ids):
        task_id = "mail" if "mail" in wanted else "build"
        later = await enqueue(harness, task_id, {"colour": "red"})
        assert (await next_job(call)).id == later


async def test_job_ids_tell_final_jobs_too_and_which_do_not_exist(harness: RpcHarness) -> None:
    await enqueue(harness)
    final, missing = await finish_next(harness), new_id()
    messages, _ = await snapshot(harness.watch(job_ids=[final, missing]))
    assert [message.job.state for message in messages if message.HasField("job")] == [pb.STATE_SUCCEEDED]
    assert [message.pruned_job_id for message in messages if not message.HasField("job")] == [missing]


async def test_thousands_of_open_jobs_are_told_in_bounded_pages(harness: RpcHarness) -> None:
    pending = [
        harness.store.enqueue(task_id=f"task-{number % 7}", spec=JobSpec("busybox"), request_id="", caller_address="")
        for number in range(3000)
    ]
    ids = {(await each)[0].id for each in pending}
    messages, _ = await snapshot(harness.watch())
    assert len(messages) == 3000
    assert {message.job.id for message in messages} == ids


# ----------------------------------------------------------------------------------------------------- resuming, ending


async def test_a_watch_resumes_after_each_of_its_messages(harness: RpcHarness) -> None:
    call = harness.watch()
    _, cursor = await snapshot(call)
    cursors = [cursor]
    for _ in range(5):
        await enqueue(harness)
        cursors.append((await read(call)).cursor)
    for passed, cursor in enumerate(cursors):
        again = harness.watch(cursor=cursor)
        assert (await read(again)).cursor == cursor, "a heartbeat at once"
        assert [(await read(again)).cursor for _ in cursors[passed + 1 :]] == cursors[passed + 1 :]
        again.cancel()


async def test_a_cursor_of_an_empty_log_resumes(harness: RpcHarness) -> None:
    _, cursor = await snapshot(harness.watch())
    again = harness.watch(cursor=cursor)
    await read(again)
    job_id = await enqueue(harness)
    assert (await next_job(again)).id == job_id


async def test_heartbeats_carry_a_cursor_that_moves_on_past_other_jobs(harness: RpcHarness) -> None:
    call = harness.watch(task_id="quiet", heartbeat_interval=Duration(seconds=1))
    _, begin = await snapshot(call)
    await enqueue(harness, "busy")
    heartbeat = await read(call)
    assert heartbeat.heartbeat.time.seconds
    assert int(heartbeat.cursor.split(".")[2]) == int(begin.split(".")[2]) + 1


async def test_a_cursor_whose_changes_were_pruned_is_too_old(harness: RpcHarness) -> None:
    _, cursor = await snapshot(harness.watch())
    for _ in range(3):
        await enqueue(harness)
    await harness.store.prune_changes(before=harness.now(), keep=1, limit=100)
    error = await refusal(harness, cursor=cursor)
    assert (error.code(), reason(error)) == (grpc.StatusCode.OUT_OF_RANGE, "CURSOR_TOO_OLD")
    assert len(await jobs_of(harness.watch())) == 3


async def test_a_cursor_ahead_of_the_log_is_not_kept_either(harness: RpcHarness) -> None:
    call = harness.watch()
    await snapshot(call)
    await enqueue(harness)
    version, instance, sequence, moment = (await read(call)).cursor.split(".")
    for forged in (f"{version}.{instance}.{int(sequence) + 1}.{moment}", f"{version}.{instance}.{sequence}.1"):
        assert reason(await refusal(harness, cursor=forged)) == "CURSOR_TOO_OLD"


@pytest.mark.parametrize(
    "cursor",
    [
        "x",
        "1.",
        "2.{instance}.0.0",
        "1.{instance}.-1.0",
        "1.{instance}.0",
        "1.{instance}.0.0.0",
        "1.{instance}.00.0",
        "1.{instance}.٣.0",
        "1.{instance}.0.0\n",
        "1.{instance}.9999999999999999999.0",
        "1.00000000-0000-0000-0000-000000000000.0.0",
        "\x00" * 1000,
    ],
)
async def test_a_hostile_cursor_is_refused(harness: RpcHarness, cursor: str) -> None:
    error = await refusal(harness, cursor=cursor.format(instance=harness.store.instance))
    assert (error.code(), reason(error)) == (grpc.StatusCode.INVALID_ARGUMENT, "CURSOR_INVALID")


@pytest.mark.parametrize(
    ("request_fields", "field"),
    [
        ({"task_id": ".hidden"}, "task_id"),
        ({"job_ids": [""]}, "job_ids[0]"),
        ({"job_ids": [new_id(), "DROP TABLE jobs"]}, "job_ids[1]"),
        ({"job_ids": [new_id() for _ in range(1001)]}, "job_ids"),
        ({"labels": {str(number): "" for number in range(9)}}, "labels"),
        ({"heartbeat_interval": Duration(seconds=61)}, "heartbeat_interval"),
        ({"heartbeat_interval": Duration(seconds=-1)}, "heartbeat_interval"),
        ({"heartbeat_interval": Duration(seconds=1, nanos=-1)}, "heartbeat_interval"),
    ],
)
async def test_an_invalid_field_is_named(harness: RpcHarness, request_fields: dict[str, Any], field: str) -> None:
    error = await refusal(harness, **request_fields)
    assert (error.code(), reason(error)) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD")
    found = detail(error, error_details_pb2.BadRequest)
    assert found is not None
    assert [violation.field for violation in found.field_violations] == [field]


async def test_a_watch_counts_as_a_stream(tmp_path: Path) -> None:
    harness = RpcHarness(tmp_path, max_streams=2)
    await harness.server.start()
    job = await harness.enqueue()
    watch, stream = harness.watch(), harness.stream(job.execution.id)
    await snapshot(watch)
    await stream.read()
    for call in (harness.watch(), harness.stream(job.execution.id)):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await call.read()
        assert reason(refused.value) == "TOO_MANY_STREAMS"
        assert detail(refused.value, error_details_pb2.RetryInfo) is not None
    watch.cancel()
    # Its place is free once the server has noticed.
    async with asyncio.timeout(30):
        while True:
            again = harness.watch()
            try:
                await snapshot(again)
                break
            except grpc.aio.AioRpcError as error:
                assert reason(error) == "TOO_MANY_STREAMS"
    await harness.close()


async def test_a_stopping_server_ends_watches_so_that_clients_resume(harness: RpcHarness) -> None:
    calls = [harness.watch(), harness.watch(task_id="task"), harness.watch(job_ids=[new_id()])]
    for call in calls:
        await snapshot(call)
    began = time.monotonic()
    await harness.server.stop()
    for call in calls:
        with pytest.raises(grpc.aio.AioRpcError) as cut:
            await call.read()
        assert (cut.value.code(), reason(cut.value)) == (grpc.StatusCode.UNAVAILABLE, "SERVER_STOPPING")
        assert detail(cut.value, error_details_pb2.RetryInfo) is not None
    assert time.monotonic() - began < 10


async def test_a_watcher_that_does_not_read_gets_the_last_state_when_it_reads(harness: RpcHarness) -> None:
    slow, quick = harness.watch(), harness.watch()
    await snapshot(slow)
    _, cursor = await snapshot(quick)
    pending = [
        harness.store.enqueue(task_id="task", spec=JobSpec("busybox" * 30), request_id="", caller_address="")
        for _ in range(4000)
    ]
    ids = {(await each)[0].id for each in pending}
    final = {await finish_next(harness) for _ in range(20)}
    for call in (slow, quick, harness.watch(cursor=cursor)):
        states: dict[str, int] = {}
        while states.keys() != ids or {job_id for job_id, state in states.items() if state >= 6} != final:
            message = await read(call)
            if message.HasField("job"):
                assert message.job.state >= states.get(message.job.id, 0), "a state never goes back"
                states[message.job.id] = message.job.state


async def test_watchers_that_do_not_read_hold_little_and_ask_the_store_for_nothing(harness: RpcHarness) -> None:
    async with full_connection(harness) as channel:
        stalled = [JobServiceStub(channel).WatchJobs(pb.WatchJobsRequest()) for _ in range(20)]
        quick = harness.watch()
        for call in (*stalled, quick):
            await snapshot(call)
        # More than the connection takes, so that a message of each watcher waits.
        await told_of_each(quick, await enqueue_array(harness, 1_000))
        reads = count_reads(harness)
        for _ in range(5):
            await told_of_each(quick, await enqueue_array(harness, 1_000))
        # The hub reads pages of 500 changes for all of them, with their jobs: 25 reads, and a few more if a commit is
        # announced while it reads. Each watcher that asked by itself would add dozens.
        assert reads.total() <= 50
        gc.collect()
        held = sum(isinstance(each, JobUpdate) for each in gc.get_objects())
        assert held <= RING_UPDATES + BATCH_UPDATES * (len(stalled) + 1)


async def test_a_watcher_that_did_not_read_is_told_once_its_changes_are_gone(harness: RpcHarness) -> None:
    async with full_connection(harness) as channel:
        stalled: Any = JobServiceStub(channel).WatchJobs(pb.WatchJobsRequest())
        quick = harness.watch()
        await snapshot(stalled)
        await snapshot(quick)
        # Beyond what the connection and the ring take.
        for _ in range(4):
            await told_of_each(quick, await enqueue_array(harness, 1_000))
        while await harness.store.prune_changes(before=harness.now(), keep=10, limit=1_000):
            pass
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            while True:
                await read(stalled)
        assert (refused.value.code(), reason(refused.value)) == (grpc.StatusCode.OUT_OF_RANGE, "CURSOR_TOO_OLD")
        # Another one was told of everything meanwhile, and goes on.
        await told_of_each(quick, [await enqueue(harness)])


async def test_a_watcher_that_leaves_while_a_message_waits_for_it_is_no_defect(harness: RpcHarness) -> None:
    with capture_logs() as logged:
        # It is full before the server knows that they have left.
        async with full_connection(harness) as channel:
            watches = [JobServiceStub(channel).WatchJobs(pb.WatchJobsRequest()) for _ in range(20)]
            for watch in watches:
                await watch.read()
            for _ in range(5):
                await enqueue_array(harness, 400)
            for watch in watches:
                watch.cancel()
        # Answered after all that the server had to do for those that have left.
        await snapshot(harness.watch(job_ids=[new_id()]))
    assert [each for each in logged if each["log_level"] == "error"] == []
