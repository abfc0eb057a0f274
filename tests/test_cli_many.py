"""Many jobs on the command line: a file of jobs, and stops and retries by a filter. On a server without an engine, so
that all jobs are queued until they are stopped."""

import asyncio
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from fastlane_grpc.cli import exit_status
from fastlane_grpc.client import AsyncClient, Client
from fastlane_grpc.v1 import fastlane_pb2 as pb
from tests.commands import FASTLANE, environment, fastlane, on_terminal
from tests.scripted_server import ScriptedServer
from tests.serving import Server

NO_ENGINE = "unix:///nowhere.sock"
NOBODY = "127.0.0.1:1"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("cli-many") / "data", engine=NO_ENGINE, max_waiting=3_000)
    yield server
    server.kill()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "jobs.jsonl"


def lines_of(*jobs: object) -> str:
    return "".join(f"{job if isinstance(job, str) else json.dumps(job)}\n" for job in jobs)


def jobs_of(server: Server, task_id: str) -> list[pb.Job]:
    with Client(server.address) as client:
        return list(client.jobs(task_id=task_id, with_spec=True))[::-1]


def test_a_file_of_jobs_is_enqueued_in_its_order(server: Server, file: Path) -> None:
    file.write_text(
        lines_of(
            {"task_id": "ordered", "image": "busybox", "command": "echo 1", "timeout": "2m30s", "retry": 3},
            "",
            {"taskId": "ordered", "spec": {"image": "busybox", "cron": "30 2 * * *", "unique": "k", "startIn": None}},
            {"task_id": "ordered", "image": "b", "limits": {"memory_bytes": "64m"}, "pull_policy": "always"},
        )
    )
    enqueued = fastlane(server, "enqueue", "--file", str(file))
    first, second, third = jobs_of(server, "ordered")
    assert (enqueued.returncode, enqueued.stderr) == (0, b"")
    assert enqueued.stdout.decode().split() == [first.id, second.id, third.id]
    assert (first.spec.timeout.seconds, first.spec.retry.max_retries) == (150, 3)
    assert (second.spec.cron.expression, second.spec.unique.key) == ("30 2 * * *", "k")
    assert (third.spec.limits.memory_bytes, third.spec.pull_policy) == (64 << 20, pb.JobSpec.PULL_POLICY_ALWAYS)


def test_a_bad_line_is_reported_with_its_number_and_others_are_stored(server: Server, file: Path) -> None:
    file.write_text(
        lines_of(
            {"task_id": "bad", "image": "busybox"},
            "not json",
            {"task_id": "bad", "imagee": "busybox"},
            {"task_id": "bad", "image": "busybox", "cron": "30 2 30 2 *"},
            {"task_id": "bad", "image": "busybox"},
        )
    )
    enqueued = fastlane(server, "enqueue", "--file", str(file), "-o", "json")
    results = [json.loads(line) for line in enqueued.stdout.splitlines()]
    assert enqueued.returncode == 1
    assert [result["line"] for result in results] == [1, 2, 3, 4, 5]
    assert ["job_id" in result for result in results] == [True, False, False, False, True]
    assert enqueued.stderr.decode().splitlines() == [
        "fastlane: line 2: is not JSON: Expecting value at column 1",
        "fastlane: line 3: imagee: no such field; did you mean image?",
        "fastlane: line 4: spec.cron.expression: '30 2 30 2 *' never happens: no such day exists",
        "fastlane: stored 2 jobs, 3 lines rejected",
    ]
    assert len(jobs_of(server, "bad")) == 2


def test_a_file_with_a_request_id_is_safe_to_repeat(server: Server) -> None:
    text = lines_of(*({"image": "busybox", "command": f"echo {number}"} for number in range(1_500)))
    command = [*FASTLANE, "enqueue", "--file", "-", "--task", "repeated", "--request-id", "r"]
    runs = [
        subprocess.run(command, input=text, env=environment(server), capture_output=True, text=True, timeout=60)
        for _ in range(2)
    ]
    assert [run.returncode for run in runs] == [0, 0]
    assert runs[0].stdout == runs[1].stdout
    assert runs[1].stderr == "fastlane: stored 0 jobs, 1500 existed already\n"
    stored = jobs_of(server, "repeated")
    assert [job.request_id for job in stored] == [f"r:{number}" for number in range(1, 1_501)]


def test_lines_of_a_slow_writer_are_enqueued_as_they_come(server: Server) -> None:
    command = [*FASTLANE, "enqueue", "--file", "-", "--task", "slow"]
    with subprocess.Popen(command, env=environment(server), stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for _ in range(2):
            process.stdin.write(b'{"image": "busybox"}\n')
            process.stdin.flush()
            assert process.stdout.readline()
        process.stdin.close()
        assert process.wait(30) == 0


def test_a_dry_run_of_a_file_stores_nothing(server: Server, file: Path) -> None:
    file.write_text(lines_of({"task_id": "dry", "image": "busybox"}, {"task_id": "dry"}))
    enqueued = fastlane(server, "enqueue", "--file", str(file), "--dry-run")
    assert (enqueued.returncode, enqueued.stdout) == (1, b"")
    assert enqueued.stderr.decode().splitlines() == [
        "fastlane: line 2: spec.image: is required",
        "fastlane: would store 1 job, 1 line rejected",
    ]
    assert jobs_of(server, "dry") == []


def test_a_terminal_shows_the_progress_of_a_file(server: Server, file: Path) -> None:
    file.write_text(lines_of({"task_id": "bar", "image": "busybox"}))
    status, written = on_terminal(server, "enqueue", "--file", str(file), TERM="xterm")
    assert status == 0
    assert f"fastlane: [{'#' * 24}] 100%  stored 1 job\r\x1b[K" in written
    assert written.endswith("fastlane: stored 1 job\r\n")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--file", "-", "--retries", "3"], "--retries cannot be combined with --file: each line has a job of its own"),
        (["--file", "-", "busybox"], "IMAGE cannot be combined with --file"),
        (["--dry-run", "busybox"], "--dry-run has no effect without --file"),
        (["--file", "/nowhere"], "cannot read --file /nowhere: No such file or directory"),
        ([], "Missing argument 'IMAGE', or the option --file"),
    ],
)
def test_options_that_do_not_go_with_a_file_are_refused(
    arguments: list[str], says: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert exit_status(["enqueue", "-a", NOBODY, *arguments], {}) == 2
    assert says in capfd.readouterr().err


def test_a_filter_stops_the_jobs_that_match(server: Server) -> None:
    for label in ("a", "a", "b"):
        assert not fastlane(server, "enqueue", "--task", "stop", "-l", f"x={label}", "busybox").returncode
    counted = fastlane(server, "stop", "--task", "stop", "--dry-run")
    assert counted.stdout == b"would stop 3 jobs\n"
    refused = fastlane(server, "stop", "--task", "stop", "--label", "x=a")
    assert refused.returncode == 2
    assert refused.stderr == b"fastlane: this stops 2 jobs; confirm with --yes, or look first with --dry-run\n"
    asked, written = on_terminal(server, "stop", "--task", "stop", "-l", "x=a", keys=[("[y/N]", b"n\n")])
    assert (asked, written.splitlines()[-1]) == (1, "fastlane: no job was stopped")
    stopped = fastlane(server, "stop", "--task", "stop", "--state", "queued", "--label", "x=a", "--yes")
    assert stopped.stdout == b"stopped 2 jobs\n"
    asked, written = on_terminal(server, "stop", "--task", "stop")
    assert (asked, written) == (0, "stopped 1 job\r\n"), "a single one is stopped without a question"
    assert {job.state for job in jobs_of(server, "stop")} == {pb.STATE_STOPPED}


def test_several_ids_are_stopped_one_after_another(server: Server) -> None:
    ids = [fastlane(server, "enqueue", "--task", "ids", "busybox").stdout.decode().strip() for _ in range(2)]
    stopped = fastlane(server, "stop", *ids)
    assert stopped.stdout.decode() == "".join(f"job {each}: stopped\n" for each in ids)


class RetryingServer(ScriptedServer):
    """Answers each call of BatchRetryJobs with 1 000 jobs, and then with the rest."""

    def BatchRetryJobs(  # noqa: N802 -- the name of the contract
        self, request: pb.BatchRetryJobsRequest, context: grpc.ServicerContext
    ) -> pb.BatchRetryJobsResponse:
        self.requests.append(request)
        more = not request.HasField("until_time")
        answer = pb.BatchRetryJobsResponse(retried=1_000 if more else 7, skipped=1, more=more)
        answer.until_time.seconds = 4_711
        return answer


@pytest.fixture
def retrying() -> Iterator[RetryingServer]:
    server = RetryingServer()
    yield server
    server.stop()


def test_a_filter_retries_the_jobs_that_match_each_once(retrying: RetryingServer) -> None:
    asked, written = on_terminal(
        retrying, "retry", "--task", "t", "--state", "failed", "--since", "1h", keys=[("[y/N]", b"y\n")]
    )
    skipped = "skipped: expired, or the unique key is taken"
    assert (asked, written.splitlines()[-1]) == (0, f"retried 1007 jobs; 2 {skipped}")
    assert f"this retries at least 1000 jobs; 1 {skipped}. Retry? [y/N] " in written
    counted, first, second = retrying.received(pb.BatchRetryJobsRequest)
    assert (counted.validate_only, first.validate_only, second.validate_only) == (True, False, False)
    assert (first.HasField("until_time"), second.until_time.seconds) == (False, 4_711)
    assert (first.filter.task_id, list(first.filter.states)) == ("t", [pb.STATE_FAILED])
    assert first.filter.HasField("since_time")

    async def by_asyncio() -> pb.BatchRetryJobsResponse:
        async with AsyncClient(retrying.address) as client:
            return await client.retry_many(task_id="t")

    assert asyncio.run(by_asyncio()).retried == 1_007


def test_a_job_is_created_and_replaced_under_an_id_of_the_caller(server: Server) -> None:
    job_id = "6718b8ab-a86e-4b5d-90df-52e79b66a90f"
    created = fastlane(server, "replace", "--task", "own", "--cron", "@daily", job_id, "busybox", "echo", "1")
    assert created.stdout.decode() == f"job {job_id}: scheduled\n"
    replaced = fastlane(server, "replace", "--cron", "@hourly", job_id[:8], "busybox", "--", "echo", "--", "-e", "2")
    assert (replaced.returncode, replaced.stderr) == (0, b"")
    [job] = jobs_of(server, "own")
    assert (job.spec.cron.expression, list(job.spec.args)) == ("@hourly", ["echo", "--", "-e", "2"])
    refused = fastlane(server, "replace", "--etag", "another", job_id, "busybox")
    assert refused.returncode == 1
    assert f"its etag is '{job.etag}' now" in refused.stderr.decode()


def test_a_watch_of_jobs_tells_their_changes_and_ends_with_them(server: Server) -> None:
    job_id = fastlane(server, "enqueue", "--task", "watch", "busybox").stdout.decode().strip()
    command = [*FASTLANE, "watch", "-o", "json", job_id]
    with subprocess.Popen(command, env=environment(server), stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert json.loads(process.stdout.readline())["job"]["state"] == "STATE_QUEUED"
        assert json.loads(process.stdout.readline()).keys() == {"cursor", "caught_up"}
        with Client(server.address) as client:
            client.stop(job_id)
        last = json.loads(process.stdout.read().splitlines()[-1])
        assert process.wait(30) == 0
    assert (last["job"]["id"], last["job"]["state"]) == (job_id, "STATE_STOPPED")
    assert last["cursor"]
    piped = fastlane(server, "watch", job_id)
    assert piped.stdout.decode()[8:] == f"  {job_id}  watch  stopped  stopped while it was queued\n"
    status, written = on_terminal(server, "watch", job_id, TERM="xterm", NO_COLOR="1")
    assert (status, written.splitlines()[-1]) == (0, f"{job_id[:13]}  watch  stopped  -    stopped while it was queued")
    assert written.replace("\x1b[J", "").count("\x1b") == 0, "drawn once, without colours"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["stop"], "give the id of a job or an execution, or select jobs with --task, --state, --label, --since or"),
        (["stop", "--task", "t", "job-1"], "--task cannot be combined with the id of a job or an execution"),
        (["stop", "--state", "failed"], "'failed' is not one of 'scheduled', 'queued'"),
        (["retry"], "give the id of a job, or select jobs with"),
        (["retry", "--state", "queued"], "'queued' is not one of 'succeeded', 'failed'"),
        (["stop", "--dry-run", "job-1"], "--dry-run has no effect with an id"),
    ],
)
def test_selections_that_say_nothing_or_too_much_are_refused(
    arguments: list[str], says: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert exit_status([*arguments, "-a", NOBODY], {}) == 2
    assert says in capfd.readouterr().err
