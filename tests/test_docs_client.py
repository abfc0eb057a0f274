"""The examples of docs/client.md are whole programs, and do what is said there."""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fastlane_grpc import client as api
from fastlane_grpc.v1 import fastlane_pb2 as pb
from tests.scripted_server import Log, Piece, ScriptedServer

PAGE = (Path(__file__).parents[1] / "docs" / "client.md").read_text()
EXAMPLES = dict(re.findall(r"^## ([^\n]+)\n(?:(?!^## ).)*?^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL))


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    server = ScriptedServer()
    server.logs["execution-1"] = Log([Piece(1, b"hello\n"), Piece(2, b"oh\n"), Piece(1, b"world\n")])
    yield server
    server.stop()


def run(server: ScriptedServer, heading: str, directory: Path, stderr: int = subprocess.PIPE) -> list[str]:
    """The lines that an example prints."""
    assert "127.0.0.1:7020" in EXAMPLES[heading]
    program = EXAMPLES[heading].replace("127.0.0.1:7020", server.address)
    ran = subprocess.run(
        [sys.executable, "-c", program], cwd=directory, stdout=subprocess.PIPE, stderr=stderr, text=True, timeout=60
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.splitlines()


def test_every_example_is_run_here() -> None:
    assert PAGE.count("```python") == len(EXAMPLES) == 9


def test_a_job_is_run_and_its_output_shown(server: ScriptedServer, tmp_path: Path) -> None:
    server.logs["execution-1"] = Log([Piece(3, b"pulling\n"), *server.logs["execution-1"].pieces])
    assert sorted(run(server, "Run a job and see its output", tmp_path)) == ["exit status 0", "hello", "world"]
    [request] = server.received(pb.EnqueueJobRequest)
    assert (list(request.spec.args), request.spec.timeout.seconds) == (["echo", "hello"], 60)


def test_a_job_is_followed_over_its_attempts(server: ScriptedServer, tmp_path: Path) -> None:
    log = server.logs["execution-1"]
    server.logs["execution-1"] = Log(
        log.pieces, state=pb.STATE_FAILED, exit_status=3, outcome=pb.Outcome(detail="exited with 3")
    )
    shown = run(server, "Follow a job", tmp_path, stderr=subprocess.STDOUT)
    assert {*shown} == {"attempt 1 of 1", "hello", "oh", "world", "exited with 3", "exit status 3"}


def test_jobs_are_run_side_by_side(server: ScriptedServer, tmp_path: Path) -> None:
    assert run(server, "With asyncio", tmp_path) == ["[0, 0, 0]"]
    # `expr` exits with 1 where the result is 0.
    assert {request.spec.args[1] for request in server.received(pb.EnqueueJobRequest)} == {"1", "2", "3"}


def test_a_job_is_started_later(server: ScriptedServer, tmp_path: Path) -> None:
    *events, status = run(server, "Start a job later", tmp_path)
    assert (events[-1], status) == ("End", "exit status 0")
    [request] = server.received(pb.EnqueueJobRequest)
    assert (request.spec.start_in.seconds, request.spec.expire_time.ToJsonString()) == (600, "2030-01-31T09:00:00Z")


def test_many_jobs_are_enqueued_and_stopped(server: ScriptedServer, tmp_path: Path) -> None:
    assert run(server, "Enqueue many jobs", tmp_path) == ["100 jobs of one spec", "14 jobs stopped"]
    *batches, array = server.received(pb.BatchEnqueueJobsRequest)
    assert [len(batch.requests) for batch in batches] == [1000] * 5
    assert batches[4].requests[999].spec.args[1] == "hello 4999"
    assert (array.array.size, bool(array.array.request.request_id)) == (100, True)


def test_jobs_are_retried_and_repeated(server: ScriptedServer, tmp_path: Path) -> None:
    assert run(server, "Retry and repeat a job", tmp_path) == []
    nightly, sync = (request.spec for request in server.received(pb.EnqueueJobRequest))
    assert (nightly.cron.time_zone, nightly.cron.jitter.seconds, nightly.retry.max_retries) == ("Europe/Berlin", 600, 3)
    assert (sync.retry.initial_backoff.seconds, list(sync.retry.exit_codes), sync.unique.key) == (
        2,
        [75],
        "customer-4711",
    )


def test_lists_are_read_and_jobs_deleted(server: ScriptedServer, tmp_path: Path) -> None:
    server.jobs.append(
        pb.Job(id="a", task_id="greet", state=pb.STATE_FAILED, outcome=pb.Outcome(detail="exited with 3"))
    )
    server.tasks.append(pb.TaskSummary(id="greet", open_jobs=1, jobs=2))
    server.hosts.append(pb.EngineHost(name="here"))
    server.prunings.append(pb.PruneResponse(jobs=7))
    shown = ["a exited with 3", "greet 1 of 2 are open", "{'name': 'here'}", "7 jobs deleted"]
    assert run(server, "Look, list, stop, delete", tmp_path) == shown


def test_a_program_that_is_started_anew_goes_on(server: ScriptedServer, tmp_path: Path) -> None:
    heading = "Resuming after a restart of your program"
    run(server, heading, tmp_path)
    pieces = [*server.logs["execution-1"].pieces, Piece(1, b"more\n")]
    server.logs["execution-1"] = Log(pieces)
    run(server, heading, tmp_path)
    assert (tmp_path / "output").read_bytes() == b"hello\nworld\nmore\n"
    assert server.received(pb.StreamExecutionLogsRequest)[1].cursor == "3.0"


def test_an_error_says_which_one(server: ScriptedServer, tmp_path: Path) -> None:
    assert run(server, "Errors", tmp_path) == ["JOB_NOT_FOUND nothing-of-this-name"]


def test_every_error_is_told() -> None:
    told = set(re.findall(r"^\| `(\w+)` \| .* \| .* \|$", PAGE, re.MULTILINE))
    assert {kind.__name__ for kind in api.Error.__subclasses__()} <= told
