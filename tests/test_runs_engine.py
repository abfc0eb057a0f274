"""Retries and unique keys on an engine: each attempt is a container of its own, with a log of its own."""

import json
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import docker
import grpc
import pytest
from google.protobuf import duration_pb2

from fastlane_grpc.client import Client, ExecutionStart, JobEnd, Output
from fastlane_grpc.v1 import fastlane_pb2 as pb
from fastlane_grpc.v1 import fastlane_pb2_grpc as pb_grpc
from tests.reading import Reader
from tests.serving import Server, serving_on
from tests.succession import Succession

pytestmark = pytest.mark.engine

SOON = duration_pb2.Duration(nanos=50_000_000)
EXACT = pb.Retry(max_retries=2, initial_backoff=SOON, jitter=pb.Retry.JITTER_NONE)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, sdk: docker.DockerClient) -> Iterator[Server]:
    with serving_on(sdk, tmp_path_factory.mktemp("runs") / "data", http_listen="127.0.0.1:0") as server:
        yield server


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[Client]:
    with Client(server.address) as client:
        yield client


@pytest.fixture(scope="module")
def jobs(server: Server) -> Any:
    return pb_grpc.JobServiceStub(grpc.insecure_channel(server.address))


def enqueue(jobs: Any, image: str, script: str, **spec: Any) -> pb.Job:
    request = pb.EnqueueJobRequest(task_id="runs", spec=pb.JobSpec(image=image, args=["sh", "-c", script], **spec))
    return jobs.EnqueueJob(request).job  # type: ignore[no-any-return]


def attempts(client: Client, jobs: Any, job: pb.Job) -> list[Reader]:
    """The logs of all attempts, each read to its end."""
    readers: list[Reader] = []
    while not job.HasField("outcome"):
        readers.append(Reader(client, job.execution.id))
        readers[-1].end()
        job = jobs.GetJob(pb.GetJobRequest(job_id=job.id)).job
    return readers


def test_a_failing_job_is_tried_again_each_time_with_a_log_of_its_own(client: Client, jobs: Any, image: str) -> None:
    job = enqueue(jobs, image, "echo by $HOSTNAME; exit 3", retry=EXACT)
    readers = attempts(client, jobs, job)
    assert [reader.end().exit_status for reader in readers] == [3, 3, 3]
    assert len({reader.stdout for reader in readers}) == 3, "each attempt is a container of its own"
    ended = jobs.GetJob(pb.GetJobRequest(job_id=job.id)).job
    assert (ended.state, ended.outcome.exit_code, ended.executions) == (pb.STATE_FAILED, 3, 3)
    assert (ended.execution.run, ended.execution.attempt) == (1, 3)


def test_an_exit_code_that_is_excepted_is_not_tried_again(client: Client, jobs: Any, image: str) -> None:
    retry = pb.Retry(max_retries=2, except_exit_codes=[2])
    assert len(attempts(client, jobs, enqueue(jobs, image, "exit 2", retry=retry))) == 1


def test_a_job_that_timed_out_is_tried_again(client: Client, jobs: Any, image: str) -> None:
    retry = pb.Retry(max_retries=1, initial_backoff=SOON)
    job = enqueue(jobs, image, "trap 'exit 0' TERM; sleep 60 & wait", retry=retry, timeout=SOON)
    assert [reader.end().state for reader in attempts(client, jobs, job)] == [pb.STATE_TIMED_OUT] * 2


def test_a_job_out_of_memory_succeeds_with_more(client: Client, jobs: Any, image: str) -> None:
    growth = pb.Retry.MemoryGrowth(factor=16, max_bytes=128 << 20)
    job = enqueue(
        jobs,
        image,
        "head -c 16000000 /dev/zero | tail >/dev/null; exit $?",
        retry=pb.Retry(max_retries=2, initial_backoff=SOON, memory_growth=growth),
        limits=pb.Limits(memory_bytes=8 << 20),
    )
    first, second = attempts(client, jobs, job)
    assert (first.end().state, first.execution().outcome.reason) == (pb.STATE_FAILED, pb.REASON_OUT_OF_MEMORY)
    assert (second.end().state, second.execution().memory_bytes) == (pb.STATE_SUCCEEDED, 128 << 20)


def test_a_retry_by_hand_runs_a_new_container(client: Client, jobs: Any, image: str) -> None:
    job = enqueue(jobs, image, "echo by $HOSTNAME")
    [first] = attempts(client, jobs, job)
    again = jobs.RetryJob(pb.RetryJobRequest(job_id=job.id)).job
    [second] = attempts(client, jobs, again)
    assert first.stdout != second.stdout
    assert second.execution().run == 2


def test_a_job_takes_the_place_of_the_one_with_its_key_once_that_has_ended(
    client: Client, jobs: Any, image: str
) -> None:
    first = enqueue(
        jobs, image, "trap 'echo stopped; exit 0' TERM; echo ready; sleep 60 & wait", unique=pb.Unique(key="k")
    )
    reader = Reader(client, first.execution.id)
    reader.wait_for_output(b"ready\n")
    replace = pb.Unique(key="k", conflict=pb.Unique.CONFLICT_REPLACE)
    second = enqueue(jobs, image, "echo next", unique=replace)
    assert second.execution.waiting.reason == pb.WAIT_REASON_UNIQUE_KEY
    [after] = attempts(client, jobs, second)
    assert (reader.end().state, after.stdout) == (pb.STATE_STOPPED, b"next\n")
    assert reader.stdout == b"ready\nstopped\n"
    assert reader.execution().times.end_time.ToNanoseconds() < after.execution().times.start_time.ToNanoseconds()


def test_a_tail_of_a_job_reads_every_attempt_over_a_server_that_is_killed(
    tmp_path: Path, sdk: docker.DockerClient, image: str
) -> None:
    harness = Succession(tmp_path / "data", sdk, image)
    first = harness.server()
    jobs = pb_grpc.JobServiceStub(grpc.insecure_channel(harness.listen))
    job = enqueue(
        jobs, image, "i=0; while [ $i -lt 20 ]; do i=$((i+1)); echo $i; sleep 0.03; done; exit 5", retry=EXACT
    )
    printed: list[bytes] = []
    with harness.client, harness.client.tail_job(job.id) as tail:
        for event in tail:
            match event:
                case ExecutionStart():
                    printed.append(b"")
                    assert (event.execution.attempt, event.max_attempts) == (len(printed), 3)
                case Output(data=data) if event.source == pb.SOURCE_STDOUT:
                    printed[-1] += data
                    if len(printed) == 2 and len(harness.servers) == 1:
                        first.kill()
                        harness.server()
                case JobEnd():
                    end = event
    assert printed == [b"".join(b"%d\n" % number for number in range(1, 21))] * 3
    assert (end.exit_status, end.job.state, end.job.executions) == (5, pb.STATE_FAILED, 3)
    assert harness.servers[-1].stop() == 0


# ---- the trace of a caller

TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
PRINT_TRACE = 'echo "${TRACEPARENT-none} ${TRACESTATE-none}"; exit 3'


def test_every_attempt_is_in_the_trace_of_the_caller(client: Client, jobs: Any, image: str) -> None:
    request = pb.EnqueueJobRequest(
        task_id="traced",
        spec=pb.JobSpec(
            image=image, args=["sh", "-c", PRINT_TRACE], retry=pb.Retry(max_retries=1, initial_backoff=SOON)
        ),
    )
    metadata = [("traceparent", TRACE), ("tracestate", "rojo=1"), ("tracestate", "congo=2")]
    job = jobs.EnqueueJob(request, metadata=metadata).job
    assert [reader.stdout for reader in attempts(client, jobs, job)] == [f"{TRACE} rojo=1,congo=2\n".encode()] * 2


def test_a_trace_comes_by_http_and_stays_that_of_the_job(client: Client, jobs: Any, image: str, server: Server) -> None:
    def traced(headers: dict[str, str], **spec: Any) -> bytes:
        connection = HTTPConnection("127.0.0.1", server.http_port, timeout=20)
        body = json.dumps({"image": image, "args": ["sh", "-c", PRINT_TRACE], **spec})
        connection.request("POST", "/tasks/traced", body, {"Content-Type": "application/json", **headers})
        job = pb.Job(id=json.loads(connection.getresponse().read())["job"]["id"])
        [reader] = attempts(client, jobs, jobs.GetJob(pb.GetJobRequest(job_id=job.id)).job)
        return bytes(reader.stdout)

    assert traced({"TraceParent": TRACE}) == f"{TRACE} none\n".encode()
    assert traced({"traceparent": TRACE}, envs={"TRACEPARENT": "mine"}) == b"mine none\n"
    assert traced({"traceparent": TRACE.upper(), "tracestate": "a=1"}) == b"none none\n"
