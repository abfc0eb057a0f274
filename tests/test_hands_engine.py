"""All that people hold in their hands, over a real server and a real engine: lists, beginnings of ids, last lines,
pruning, asyncio."""

import asyncio
import json
import re
import signal
import uuid
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta

import pytest

from fastlane_grpc.client import STDOUT, AsyncClient, Client, End, Event, Gap, NotFound, Output
from fastlane_grpc.v1 import fastlane_pb2 as pb
from tests.commands_served import SECONDS, Server, fastlane

pytestmark = pytest.mark.engine


@pytest.fixture(scope="module")
def running_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("server") / "data")
    yield server
    assert server.end(signal.SIGTERM) == 0


@pytest.fixture(scope="module")
def client(running_server: Server) -> Iterator[Client]:
    with Client(running_server.address) as client:
        yield client


@pytest.fixture
def task() -> str:
    return f"task-{uuid.uuid4()}"


def over(client: Client, job: pb.Job) -> End:
    with client.tail(job.execution.id) as tail:
        *_, end = tail
    assert isinstance(end, End)
    return end


def ended(client: Client, task: str, image: str, *scripts: str, **options: object) -> Sequence[pb.Job]:
    """A job for each script, one after the other, all over."""
    jobs = []
    for script in scripts:
        job = client.enqueue(task, image, args=["sh", "-c", script], **options)  # type: ignore[arg-type]
        over(client, job)
        jobs.append(job)
    return jobs


def stdout_of(events: Sequence[Event]) -> bytes:
    return b"".join(event.data for event in events if isinstance(event, Output) and event.source == STDOUT)


# ---------------------------------------------------------------------------------------------------------------- lists


def test_jobs_come_newest_first_page_by_page_and_narrowed_as_asked(client: Client, image: str, task: str) -> None:
    begin = datetime.now(UTC)
    good = ended(client, task, image, "true", "true", "true", labels={"kind": "good"})
    bad = ended(client, task, image, "exit 3", labels={"kind": "bad"})
    newest_first = [job.id for job in reversed([*good, *bad])]
    assert [job.id for job in client.jobs(task_id=task)] == newest_first
    assert [job.id for job in client.jobs(task_id=task, page_size=1)] == newest_first
    assert [job.id for job in client.jobs(task_id=task, states=[pb.STATE_FAILED])] == [bad[0].id]
    assert [job.id for job in client.jobs(task_id=task, labels={"kind": "good"})] == newest_first[1:]
    assert [job.id for job in client.jobs(task_id=task, since=begin)] == newest_first
    assert list(client.jobs(task_id=task, until=begin)) == []
    assert [job.id for job in client.jobs(id_prefix=bad[0].id[:30])] == [bad[0].id]
    [listed] = client.jobs(id_prefix=bad[0].id)
    assert (listed.HasField("spec"), listed.outcome.exit_code, listed.execution.job_id) == (False, 3, bad[0].id)
    [listed] = client.jobs(id_prefix=bad[0].id, with_spec=True)
    assert listed.spec.image == image
    assert list(client.jobs(task_id="nothing-of-this-name")) == []


def test_executions_come_newest_first_and_narrowed_as_asked(client: Client, image: str, task: str) -> None:
    jobs = ended(client, task, image, "true", "exit 3")
    ids = [job.execution.id for job in reversed(jobs)]
    assert [each.id for each in client.executions(task_id=task)] == ids
    assert [each.id for each in client.executions(task_id=task, page_size=1)] == ids
    assert [each.id for each in client.executions(job_id=jobs[0].id)] == ids[1:]
    assert [each.id for each in client.executions(task_id=task, states=[pb.STATE_FAILED])] == ids[:1]
    [host] = client.hosts()
    assert [each.id for each in client.executions(task_id=task, host=host.name)] == ids
    assert list(client.executions(task_id=task, host="nowhere")) == []
    assert [each.id for each in client.executions(id_prefix=ids[0][:30])] == ids[:1]


def test_tasks_have_the_number_of_their_jobs(client: Client, image: str, task: str) -> None:
    ended(client, task, image, "true", "true")
    job = client.enqueue(task, image, args=["sleep", "60"])
    found = client.task(task)
    assert (found.jobs, found.open_jobs) == (3, 1)
    assert task in [each.id for each in client.tasks(page_size=1)]
    client.stop(job.id, grace=0)
    over(client, job)
    assert client.task(task).open_jobs == 0
    with pytest.raises(NotFound):
        client.task("nothing-of-this-name")


def test_hosts_say_that_they_are_up_and_how_output_is_captured(client: Client) -> None:
    [host] = client.hosts()
    assert host.availability == pb.EngineHost.AVAILABILITY_UP
    assert host.capture in {pb.EngineHost.CAPTURE_RECORDER, pb.EngineHost.CAPTURE_ATTACH}
    assert host.max_running > 0


def test_an_execution_is_stopped_as_a_job_is(client: Client, image: str, task: str) -> None:
    job = client.enqueue(task, image, args=["sleep", "60"])
    assert client.stop_execution(job.execution.id, "enough", grace=0).job_id == job.id
    assert over(client, job).exit_status == 130
    assert client.stop_execution(job.execution.id).state == pb.STATE_STOPPED


# -------------------------------------------------------------------------------------------------- where a tail begins


def test_a_tail_begins_with_the_last_lines(client: Client, image: str, task: str) -> None:
    [job] = ended(client, task, image, "i=0; while [ $i -lt 5000 ]; do i=$((i+1)); echo line $i; done")
    for lines in (1, 2, 100, 5000, 9999):
        events = list(client.tail(job.execution.id, sources=[STDOUT], tail_lines=lines))
        first = max(5000 - lines, 0) + 1
        assert stdout_of(events) == "".join(f"line {number}\n" for number in range(first, 5001)).encode(), lines
        assert isinstance(events[-1], End)
    assert stdout_of(list(client.tail(job.execution.id, tail_lines=0))) == b""


def test_a_tail_begins_at_a_time(client: Client, image: str, task: str) -> None:
    [job] = ended(client, task, image, "echo before; sleep 0.5; echo after")
    whole = [event for event in client.tail(job.execution.id, sources=[STDOUT]) if isinstance(event, Output)]
    after = next(event.time for event in whole if event.data == b"after\n")
    assert stdout_of(list(client.tail(job.execution.id, since=after - timedelta(milliseconds=100)))) == b"after\n"
    assert stdout_of(list(client.tail(job.execution.id, since=after + timedelta(hours=1)))) == b""


def test_a_cursor_wins_over_lines(client: Client, image: str, task: str) -> None:
    [job] = ended(client, task, image, "echo one; echo two; echo three")
    with client.tail(job.execution.id) as tail:
        while tail.cursor == "":
            next(tail)
        begin = tail.cursor
    assert stdout_of(list(client.tail(job.execution.id, begin, tail_lines=1))) == b"one\ntwo\nthree\n"


# -------------------------------------------------------------------------------------------------------------- pruning


def test_pruning_deletes_what_is_over_and_first_its_output_if_asked(client: Client, image: str, task: str) -> None:
    jobs = ended(client, task, image, "echo hello", "echo hello")
    runs = client.enqueue(task, image, args=["sleep", "60"])
    assert client.prune(timedelta(hours=1), task_id=task).jobs == 0
    counted = client.prune(timedelta(0), task_id=task, validate_only=True)
    assert (counted.jobs, client.task(task).jobs) == (2, 3)
    assert client.prune(timedelta(0), task_id=task, logs_only=True).logs == 2
    events = list(client.tail(jobs[0].execution.id, sources=[STDOUT]))
    assert [event.cause for event in events if isinstance(event, Gap)] == [pb.LogGap.CAUSE_PRUNED]
    assert isinstance(events[-1], End)
    assert client.prune(timedelta(0), task_id=task).jobs == 2
    with pytest.raises(NotFound):
        client.job(jobs[0].id)
    assert [job.id for job in client.jobs(task_id=task)] == [runs.id]
    client.stop(runs.id, grace=0)
    over(client, runs)


# -------------------------------------------------------------------------------------------------------------- asyncio


def test_many_jobs_are_followed_side_by_side_on_one_loop(
    client: Client, running_server: Server, image: str, task: str
) -> None:
    assert client.server_info().version

    async def run(client: AsyncClient, number: int) -> tuple[bytes, int]:
        job = await client.enqueue(task, image, args=["sh", "-c", f"echo {number}; exit {number}"])
        events = [event async for event in client.tail(job.execution.id)]
        assert isinstance(events[-1], End)
        return stdout_of(events), events[-1].exit_status

    async def main() -> list[tuple[bytes, int]]:
        async with AsyncClient(running_server.address) as client, asyncio.timeout(SECONDS):
            found = await asyncio.gather(*(run(client, number) for number in range(6)))
            assert len([job async for job in client.jobs(task_id=task, page_size=4)]) == 6
            return found

    assert asyncio.run(main()) == [(f"{number}\n".encode(), number) for number in range(6)]


# ----------------------------------------------------------------------------------------------------- the command line


def test_the_command_line_shows_stops_and_deletes(
    client: Client, running_server: Server, image: str, task: str
) -> None:
    [job] = ended(client, task, image, "echo one; echo two; exit 3")
    assert f"{job.id}  {task}  failed" in fastlane(running_server, "jobs", "--task", task).stdout.decode()
    assert json.loads(fastlane(running_server, "job", job.id[:30], "-o", "json").stdout)["id"] == job.id
    assert job.execution.id in fastlane(running_server, "executions", "--job", job.id[:30]).stdout.decode()
    shown = fastlane(running_server, "execution", job.execution.id).stdout.decode()
    assert shown.splitlines()[0].split() == ["execution", job.execution.id]
    assert task in fastlane(running_server, "tasks").stdout.decode()
    assert re.search(r"^\S+ +up +\d+ of \d+ ", fastlane(running_server, "hosts").stdout.decode(), re.MULTILINE)
    tailed = fastlane(running_server, "logs", "--tail", "1", "-t", job.id[:30])
    assert (
        tailed.returncode,
        re.fullmatch(rb"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z two\n", tailed.stdout) is not None,
    ) == (3, True)
    enqueued = fastlane(running_server, "enqueue", "--task", task, image, "sleep", "60").stdout.decode().strip()
    execution_id = client.job(enqueued).execution.id
    assert fastlane(running_server, "stop", "--grace", "0s", execution_id).returncode == 0
    assert fastlane(running_server, "logs", enqueued).returncode == 130
    assert (
        fastlane(running_server, "prune", "--older-than", "0s", "--task", task)
        .stdout.decode()
        .startswith("deleted 2 jobs and ")
    )
    gone = fastlane(running_server, "jobs", "--task", task)
    assert (gone.stdout, gone.stderr) == (b"", b"fastlane: no jobs\n")


def test_the_doctor_asks_the_server_that_serves(client: Client, running_server: Server) -> None:
    [host] = client.hosts()
    arguments = ["--data-dir", str(running_server.data_dir), "--listen", running_server.address, "-o", "json"]
    found = {
        each["check"]: each
        for each in map(json.loads, fastlane(running_server, "doctor", *arguments).stdout.splitlines())
    }
    assert found["address"]["found"].startswith("fastlane ")
    assert found["database"]["level"] == "ok"
    assert f"host {host.name}" in found
