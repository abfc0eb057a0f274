"""Batches, arrays and stops by filter through both Python clients, over servers of their own."""

import asyncio
import random
import threading
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from fastlane_grpc.client import (
    AsyncClient,
    Client,
    End,
    EnqueueResult,
    Error,
    InvalidRequest,
    RequestIdReused,
    ServerUnavailable,
    UnknownField,
    job_request,
)
from fastlane_grpc.client.batches import batches, is_repeatable
from fastlane_grpc.client.errors import Exhausted
from fastlane_grpc.v1 import fastlane_pb2 as pb
from tests.cutting_relay import CuttingRelay
from tests.serving import Server, serving
from tests.tailing import QUICK


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server without an engine: its jobs stay queued."""
    directory = tmp_path_factory.mktemp("server")
    with serving(directory / "data", engine=f"unix://{directory}/none.sock", max_waiting=5_000) as server:
        yield server.address


@pytest.fixture
def task(address: str) -> Iterator[str]:
    task = f"task-{uuid.uuid4()}"
    yield task
    with Client(address) as client:
        client.stop_many(task_id=task)


Requests = Sequence[pb.EnqueueJobRequest]


def blocking(address: str, requests: Requests) -> list[EnqueueResult]:
    with Client(address) as client:
        return list(client.enqueue_many(requests))


def asynchronous(address: str, requests: Requests) -> list[EnqueueResult]:
    async def main() -> list[EnqueueResult]:
        async with AsyncClient(address) as client:
            return [result async for result in client.enqueue_many(requests)]

    return asyncio.run(main())


@pytest.mark.parametrize("enqueue", [blocking, asynchronous])
def test_many_jobs_are_enqueued_with_their_results_in_order(address: str, task: str, enqueue: Any) -> None:
    requests = [job_request(task, "busybox", request_id=f"r{number}") for number in range(2_100)]
    requests[1_500] = job_request(task, "NO IMAGE")
    requests[1_501] = job_request(task, "busybox", "other", request_id="r0")
    results = enqueue(address, requests)
    assert len(results) == 2_100
    invalid, reused = results[1_500].error, results[1_501].error
    assert isinstance(invalid, InvalidRequest)
    assert [field for field, _ in invalid.violations] == ["spec.image"]
    assert isinstance(reused, RequestIdReused)
    assert results[0].job is not None
    assert (reused.reason, reused.metadata["job_id"]) == ("REQUEST_ID_REUSED", results[0].job.id)
    assert [result.job.request_id for result in results if result.job] == [
        f"r{number}" for number in range(2_100) if number not in {1_500, 1_501}
    ]
    again = enqueue(address, requests[:3])
    assert [(result.existing, result.job) for result in again] == [(True, result.job) for result in results[:3]]
    with Client(address) as client:
        assert client.task(task).jobs == 2_098


def test_an_iterable_of_any_length_is_cut_into_calls_that_the_server_takes(address: str, task: str) -> None:
    assert blocking(address, []) == []
    large = [job_request(task, "busybox", envs={"PADDING": "x" * 100_000}) for _ in range(70)]
    calls = list(batches(iter(large)))
    assert [len(call.requests) for call in calls] == [31, 31, 8]
    assert all(call.ByteSize() <= 3 << 20 for call in calls)
    assert all(result.job for result in blocking(address, large))


def test_a_request_that_is_too_large_for_any_call_is_an_error_of_its_own(address: str, task: str) -> None:
    huge = job_request(task, "busybox", envs={"PADDING": "x" * (4 << 20)})
    first, second, third = blocking(address, [job_request(task, "busybox"), huge, job_request(task, "busybox")])
    assert first.job
    assert third.job
    assert isinstance(second.error, InvalidRequest)
    assert "allowed in one batch" in str(second.error)


def test_a_server_with_a_lower_limit_gets_smaller_calls(tmp_path: Path) -> None:
    engine = f"unix://{tmp_path}/none.sock"
    with serving(tmp_path / "data", engine=engine, max_request_bytes="100k") as server:
        requests = [job_request("task", "busybox", envs={"PADDING": "x" * 9_000}) for _ in range(40)]
        for enqueue in (blocking, asynchronous):
            results = enqueue(server.address, requests)
            ids = [result.job.request_id for result in results if result.job]
            assert ids == [request.request_id for request in requests]


def test_what_is_no_request_is_named_by_its_place(address: str) -> None:
    with Client(address) as client, pytest.raises(TypeError, match=r"requests\[1\] must be an EnqueueJobRequest"):
        list(client.enqueue_many([job_request("task", "busybox"), "busybox"]))  # type: ignore[list-item]


def test_the_quota_is_an_error_of_each_request_beyond_it(tmp_path: Path) -> None:
    engine = f"unix://{tmp_path}/none.sock"
    with serving(tmp_path / "data", engine=engine, max_waiting=1) as server:
        first, second = blocking(
            server.address, [job_request("task", "busybox")] * 1 + [job_request("task", "busybox")]
        )
    assert first.job
    assert isinstance(second.error, Exhausted)
    assert second.error.reason == "QUEUE_FULL"


def test_a_call_that_was_cut_is_repeated_only_if_each_request_has_an_id(address: str, task: str) -> None:
    requests = [job_request(task, "busybox") for _ in range(500)]
    # The response is cut in its midst: the jobs are stored.
    relay = CuttingRelay(address, [20_000])
    with Client(relay.address, backoff=QUICK) as client:
        results = list(client.enqueue_many(requests))
        assert all(result.existing for result in results)
        assert client.task(task).jobs == 500
    relay.close()
    requests[7].ClearField("request_id")
    [call] = batches(requests)
    assert not is_repeatable(call)
    relay = CuttingRelay(address, [20_000])
    with Client(relay.address, backoff=QUICK) as client, pytest.raises(ServerUnavailable):
        list(client.enqueue_many(requests))
    relay.close()


def test_an_array_has_a_result_for_each_index(address: str, task: str) -> None:
    async def by_asyncio() -> Sequence[EnqueueResult]:
        async with AsyncClient(address) as client:
            return await client.enqueue_array(3, task, "busybox", "echo", request_id="array")

    with Client(address) as client:
        results = client.enqueue_array(3, task, "busybox", "echo", request_id="array")
        assert [result.job.array.index for result in results if result.job] == [0, 1, 2]
        assert [result.job for result in asyncio.run(by_asyncio())] == [result.job for result in results]
        with pytest.raises(InvalidRequest) as refused:
            client.enqueue_array(3, task, "busybox", envs={"FASTLANE_ARRAY_INDEX": "1"})
        assert refused.value.violations[0][0] == 'array.request.spec.envs["FASTLANE_ARRAY_INDEX"]'
        with pytest.raises(TypeError, match="size must be a whole number"):
            client.enqueue_array("3", task, "busybox")  # type: ignore[arg-type]


def test_many_jobs_are_stopped_to_the_last_one(address: str, task: str) -> None:
    async def by_asyncio() -> pb.BatchStopJobsResponse:
        async with AsyncClient(address) as client:
            return await client.stop_many(task_id=task)

    blocking(address, [job_request(task, "busybox", labels={"stop": "yes"}) for _ in range(1_200)])
    blocking(address, [job_request(task, "busybox")])
    with Client(address) as client:
        counted = client.stop_many(task_id=task, validate_only=True)
        assert (counted.stopped, counted.more) == (1_000, True)
        stopped = client.stop_many("enough", task_id=task, labels={"stop": "yes"}, states=[pb.STATE_QUEUED])
        assert (stopped.stopped, stopped.more) == (1_200, False)
        assert asyncio.run(by_asyncio()).stopped == 1
        with pytest.raises(InvalidRequest, match="filter: is empty"):
            client.stop_many()
        with pytest.raises(TypeError, match="job_ids must be a list"):
            client.stop_many(job_ids="x")


def test_a_rejection_is_the_error_that_its_own_call_would_raise(address: str, task: str) -> None:
    bad = [job_request(task, "busybox", priority=101), job_request("-", "busybox", "'"), job_request(task, "busybox")]
    bad[2].MergeFromString(b"\x98\x06\x01")
    with Client(address) as client:
        for request, result in zip(bad, client.enqueue_many(bad), strict=True):
            with pytest.raises(Error) as raised:
                client._call(client._jobs.EnqueueJob, request)
            expected, error = raised.value, result.error
            assert error is not None
            assert (type(error), error.message, error.code, error.reason, error.metadata) == (
                *(type(expected), expected.message, expected.code, expected.reason, expected.metadata),
            )
            assert getattr(error, "violations", ()) == getattr(expected, "violations", ())
        assert isinstance(error, UnknownField)


def test_no_job_of_a_batch_is_lost_or_doubled_by_kill_9(tmp_path: Path) -> None:
    seed = 4
    chance = random.Random(seed)
    engine = f"unix://{tmp_path}/none.sock"
    server = Server(tmp_path / "data", engine=engine)
    address, over = server.address, threading.Event()
    requests = [job_request(f"task-{n % 5}", "busybox", f"echo {n % 50}", request_id=f"r{n}") for n in range(8_000)]

    def enqueue(results: list[EnqueueResult], mine: Requests) -> None:
        with Client(address, backoff=QUICK, timeout=60) as client:
            results += client.enqueue_many(mine)

    halves: list[list[EnqueueResult]] = [[], []]
    threads = [
        threading.Thread(target=enqueue, args=(halves[each], requests[each * 4_000 : (each + 1) * 4_000]))
        for each in (0, 1)
    ]
    for thread in threads:
        thread.start()
    kills = 0
    while any(thread.is_alive() for thread in threads):
        if not over.wait(chance.uniform(0.05, 0.4)) and kills < 3:
            server.kill()
            kills += 1
            server = Server(tmp_path / "data", engine=engine, listen=address)
    for thread in threads:
        thread.join()
    assert kills > 1
    results = [*halves[0], *halves[1]]
    assert [result.job.request_id for result in results if result.job] == [f"r{n}" for n in range(8_000)]
    with Client(address) as client:
        kept = {job.request_id: job.id for job in client.jobs(page_size=1000)}
        assert sum(task.jobs for task in client.tasks()) == 8_000
    assert kept == {result.job.request_id: result.job.id for result in results if result.job}
    server.stop()


@pytest.mark.engine
def test_the_containers_of_an_array_know_their_place(tmp_path: Path, image: str) -> None:
    with serving(tmp_path / "data") as server, Client(server.address) as client:
        command = ["sh", "-c", "echo $FASTLANE_ARRAY_INDEX of $FASTLANE_ARRAY_SIZE $OWN"]
        results = client.enqueue_array(3, "task", image, args=command, envs={"OWN": "yes"})
        for index, result in enumerate(results):
            assert result.job is not None
            with client.tail(result.job.execution.id) as tail:
                events = list(tail)
            assert isinstance(events[-1], End)
            output = b"".join(getattr(event, "data", b"") for event in events if getattr(event, "source", 0) == 1)
            assert output == f"{index} of 3 yes\n".encode()
