"""UpdateTask, DrainHost and ResumeHost over gRPC, and what `waiting` says: one server in this process, and servers of
two hosts that are killed."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration

from fastlane_grpc.client import Client, NotFound
from fastlane_grpc.v1 import fastlane_pb2 as pb
from fastlane_grpc.v1 import fastlane_pb2_grpc as pb_grpc
from tests.calls import RpcHarness, reason
from tests.serving import Server

NOT_FOUND, INVALID = grpc.StatusCode.NOT_FOUND, grpc.StatusCode.INVALID_ARGUMENT


class LimitsHarness(RpcHarness):
    @property
    def tasks(self) -> pb_grpc.TaskServiceStub:
        return pb_grpc.TaskServiceStub(self.channel)

    async def limit(self, **fields: object) -> pb.TaskSummary:
        request = pb.UpdateTaskRequest(**{"task_id": "task", **fields})  # type: ignore[arg-type]
        return (await self.tasks.UpdateTask(request)).task

    async def waiting(self, job: pb.Job) -> pb.Waiting:
        """Return what the job waits for, which every call says alike."""
        listed = next(each for each in (await self.jobs.ListJobs(pb.ListJobsRequest())).jobs if each.id == job.id)
        got = (await self.jobs.GetJob(pb.GetJobRequest(job_id=job.id))).job
        executions = (await self.executions.ListExecutions(pb.ListExecutionsRequest(job_id=job.id))).executions
        [state] = [each.state async for each in self.stream(job.execution.id, follow=False) if each.HasField("state")]
        for each in (got.execution.waiting, executions[0].waiting, state.waiting):
            assert (each.reason, each.detail, each.due_time) == (
                listed.execution.waiting.reason,
                listed.execution.waiting.detail,
                listed.execution.waiting.due_time,
            )
        return listed.execution.waiting


@pytest.fixture
async def harness(tmp_path: Path) -> AsyncIterator[LimitsHarness]:
    harness = LimitsHarness(tmp_path)
    await harness.server.start()
    yield harness
    await harness.close()


async def test_limits_are_set_one_by_one_and_answered_by_every_call(harness: LimitsHarness) -> None:
    task = await harness.limit(max_running=1, max_starts=1, rate_window=Duration(seconds=90))
    assert (task.id, task.max_running, task.max_starts, task.rate_window.seconds) == ("task", 1, 1, 90)
    assert not task.HasField("create_time")
    task = await harness.limit(paused=True)
    assert (task.max_running, task.max_starts, task.paused) == (1, 1, True)
    jobs = [await harness.enqueue() for _ in range(3)]
    assert not jobs[2].execution.waiting.ahead
    waiting = await harness.waiting(jobs[0])
    assert (waiting.reason, waiting.detail) == (pb.WAIT_REASON_TASK_PAUSED, "the task is paused")
    await harness.limit(paused=False)
    assert (await harness.waiting(jobs[0])).reason == pb.WAIT_REASON_NO_FREE_SLOT
    execution, writer = await harness.begin()
    waiting = await harness.waiting(jobs[1])
    assert (waiting.reason, waiting.detail) == (pb.WAIT_REASON_TASK_LIMIT, "1 of 1 executions of the task run")
    for listed in (
        (await harness.tasks.GetTask(pb.GetTaskRequest(task_id="task"))).task,
        (await harness.tasks.ListTasks(pb.ListTasksRequest())).tasks[0],
    ):
        assert (listed.running, listed.max_running, listed.jobs) == (1, 1, 3)
        assert listed.HasField("create_time")
    await harness.finish(execution, writer)
    waiting = await harness.waiting(jobs[1])
    assert waiting.reason == pb.WAIT_REASON_TASK_RATE
    claim_time = (await harness.store.execution(execution.id)).times.claim_time
    assert claim_time
    assert waiting.due_time.ToMicroseconds() == round(claim_time.timestamp() * 1e6) + 90_000_000
    answer = (await harness.jobs.EnqueueJob(pb.EnqueueJobRequest(task_id="task", spec=pb.JobSpec(image="busybox")))).job
    assert answer.execution.waiting.reason == pb.WAIT_REASON_TASK_RATE
    assert await harness.store.claim_on(["local"]) == []


async def test_a_task_that_exists_by_its_limits_alone_goes_with_them(harness: LimitsHarness) -> None:
    await harness.limit(max_running=1)
    assert [task.id for task in (await harness.tasks.ListTasks(pb.ListTasksRequest())).tasks] == ["task"]
    task = await harness.limit(max_running=0)
    assert task == pb.TaskSummary(id="task")
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await harness.tasks.GetTask(pb.GetTaskRequest(task_id="task"))
    assert (refused.value.code(), reason(refused.value)) == (NOT_FOUND, "TASK_NOT_FOUND")


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"task_id": ""}, "task_id: is required"),
        ({"task_id": "-x"}, "task_id: must be 1 to 128 of A-Z a-z 0-9 . _ - and must not begin with a dot or dash"),
        ({"max_running": -1}, "max_running: is -1; it must be 0 (no limit) or more"),
        ({"max_starts": 5}, "rate_window: is required with max_starts"),
        (
            {"max_starts": 100_001, "rate_window": Duration(seconds=60)},
            "max_starts: is 100001; it must be from 0 (no limit) to 100000",
        ),
        ({"max_starts": 5, "rate_window": Duration()}, "rate_window: must be from 1 s to 1 day"),
        ({"max_starts": 5, "rate_window": Duration(seconds=86_401)}, "rate_window: must be from 1 s to 1 day"),
        ({"rate_window": Duration(seconds=60)}, "rate_window: has no meaning without max_starts: set both"),
        (
            {"max_starts": 0, "rate_window": Duration(seconds=60)},
            "rate_window: has no meaning without max_starts: set both",
        ),
        (
            {"max_starts": 5, "rate_window": Duration(seconds=1, nanos=-5)},
            "rate_window: is not a duration: 1 seconds and -5 nanoseconds",
        ),
    ],
)
async def test_bad_limits_are_refused_by_name_and_change_nothing(
    harness: LimitsHarness, fields: dict[str, object], said: str
) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await harness.limit(**{"paused": True, **fields})
    assert (refused.value.code(), refused.value.details()) == (INVALID, said)
    assert not (await harness.tasks.ListTasks(pb.ListTasksRequest())).tasks


async def test_a_host_that_there_is_not_and_a_note_of_two_lines_are_refused(harness: LimitsHarness) -> None:
    for call in (
        harness.hosts.DrainHost(pb.DrainHostRequest(host="b")),
        harness.hosts.ResumeHost(pb.ResumeHostRequest(host="b")),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await call
        assert (refused.value.code(), reason(refused.value)) == (NOT_FOUND, "HOST_NOT_FOUND")
    for request in (pb.DrainHostRequest(), pb.DrainHostRequest(host="b", note="one\ntwo")):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await harness.hosts.DrainHost(request)
        assert (refused.value.code(), reason(refused.value)) == (INVALID, "INVALID_FIELD")


# ---- a server of two hosts, without engines

TWO_HOSTS = """
[[hosts]]
name = "a"
engine = "unix:///nowhere/a.sock"

[[hosts]]
name = "b"
engine = "unix:///nowhere/b.sock"

"""
POOL = """
[[pools]]
name = "mail"
pattern = "mail,mail-*"
hosts = "b"
"""


@pytest.fixture
def servers(tmp_path: Path) -> "Iterator[Servers]":
    servers = Servers(tmp_path)
    yield servers
    servers.close()


class Servers:
    """Servers over one data directory, one after another."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._server: Server | None = None
        self._client: Client | None = None

    def next(self, config: str) -> Client:
        """Kill the server, and return the client of the next one."""
        self.close()
        file = self._directory / "fastlane.toml"
        file.write_text(config)
        self._server = Server(self._directory / "data", config=str(file))
        self._client = Client(self._server.address)
        return self._client

    def close(self) -> None:
        if self._client and self._server:
            self._client.close()
            self._server.kill()


def test_drains_limits_and_pools_hold_after_kill_9(servers: Servers) -> None:
    client = servers.next(TWO_HOSTS + POOL)
    drained = client.drain_host("a", "ada: new disk")
    assert (drained.availability, drained.drain_note) == (pb.EngineHost.AVAILABILITY_DRAINED, "ada: new disk")
    client.update_task("mail-x", max_running=3, max_starts=7, rate_window=60.0)
    client.update_task("paused", paused=True)
    assert [list(host.pools) for host in client.hosts()] == [[], ["mail"]]
    jobs = {task: client.enqueue(task, "busybox").id for task in ("mail-x", "other", "paused")}

    def waits(client: Client) -> dict[str, tuple[int, str]]:
        return {job.task_id: (job.execution.waiting.reason, job.execution.waiting.detail) for job in client.jobs()}

    before = waits(client)
    assert before["mail-x"][0] == pb.WAIT_REASON_HOST_DOWN
    assert "host 'b'" in before["mail-x"][1]
    assert "host 'a'" not in before["mail-x"][1]
    assert before["other"] == (pb.WAIT_REASON_HOST_DRAINED, "host 'a' is drained: ada: new disk")
    assert before["paused"] == (pb.WAIT_REASON_TASK_PAUSED, "the task is paused")

    client = servers.next(TWO_HOSTS)
    assert client.hosts()[0].drain_time == drained.drain_time
    task = client.task("mail-x")
    assert (task.max_running, task.max_starts, task.rate_window.seconds, task.open_jobs) == (3, 7, 60, 1)
    assert waits(client)["other"][0] == pb.WAIT_REASON_HOST_DOWN, "without pools host b may run it"
    assert client.resume_host("a").availability == pb.EngineHost.AVAILABILITY_DOWN
    assert client.job(jobs["paused"]).execution.waiting.reason == pb.WAIT_REASON_TASK_PAUSED
    with pytest.raises(NotFound, match="there is no host 'c'"):
        client.drain_host("c")
