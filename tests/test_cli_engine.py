"""The command line and the client over a real server, in a process of its own, and a real engine."""

import json
import signal
import subprocess
import time
import zlib
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from fastlane_grpc.client import STDOUT, Client, End, NotFound, Output, StateChange
from fastlane_grpc.v1 import fastlane_pb2 as pb
from tests.commands_served import FASTLANE, SECONDS, Server, environment, fastlane

pytestmark = pytest.mark.engine


@pytest.fixture(scope="module")
def running_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("server") / "data")
    yield server
    assert server.end(signal.SIGTERM) == 0


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[Server]:
    server = Server(tmp_path / "data")
    yield server
    server.end(signal.SIGKILL)


@pytest.fixture(scope="module")
def client(running_server: Server) -> Iterator[Client]:
    with Client(running_server.address) as client:
        yield client


def started(server: Server, *arguments: str) -> subprocess.Popen[bytes]:
    command = [*FASTLANE, *arguments]
    return subprocess.Popen(
        command, env=environment(server.address), stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0
    )


def test_run_is_as_if_the_command_ran_here(running_server: Server, image: str) -> None:
    ran = fastlane(
        running_server, "run", image, "--", "sh", "-c", "echo hello; echo oh >&2; printf 'no newline'; exit 3"
    )
    assert (ran.returncode, ran.stdout, ran.stderr) == (3, b"hello\nno newline", b"oh\n")


def test_output_is_shown_while_it_is_printed_and_again_later(running_server: Server, image: str) -> None:
    # It ends only after its first line was seen.
    script = "trap 'echo bye; exit 0' TERM; echo up; while :; do sleep 0.1; done"
    with started(running_server, "run", "--verbose", image, "sh", "-c", script) as process:
        assert process.stdout
        assert process.stderr
        job_id = process.stderr.readline().decode().split()[2].rstrip(",")
        assert process.stdout.readline() == b"up\n"
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=SECONDS)
    assert (process.returncode, out) == (130, b"bye\n"), err
    again = fastlane(running_server, "logs", job_id)
    assert (again.returncode, again.stdout) == (130, b"up\nbye\n")


def test_what_never_ran_says_why(running_server: Server, image: str) -> None:
    ran = fastlane(running_server, "run", image, "nothere")
    assert (ran.returncode, ran.stdout) == (125, b"")
    assert b"nothere" in ran.stderr


def test_a_stop_from_elsewhere_ends_a_run(running_server: Server, image: str) -> None:
    job_id = fastlane(running_server, "run", "-d", image, "sleep", "60").stdout.decode().strip()
    assert fastlane(running_server, "stop", "--grace", "0s", job_id).returncode == 0
    assert fastlane(running_server, "logs", job_id).returncode == 130


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_run_outlives_its_server(own_server: Server, image: str, how: signal.Signals) -> None:
    script = "i=0; while [ $i -lt 25 ]; do i=$((i+1)); echo line $i; sleep 0.1; done; exit 7"
    with started(own_server, "run", image, "sh", "-c", script) as process:
        assert process.stdout
        assert process.stdout.readline() == b"line 1\n"
        own_server.end(how)
        own_server.start()
        out, err = process.communicate(timeout=SECONDS)
    assert process.returncode == 7, err
    numbers = [int(line.split()[1]) for line in out.decode().splitlines()]
    assert numbers == sorted(set(numbers)), "no line comes twice"
    assert numbers[-1] == 25
    if numbers != list(range(2, 26)):
        assert b"missing here" in err, "what attach lost while nobody was there is told"


def test_every_byte_of_a_random_megabyte_arrives(client: Client, image: str) -> None:
    script = "dd if=/dev/urandom of=/tmp/data bs=4096 count=256 2>/dev/null; cat /tmp/data"
    job = client.enqueue("bytes", image, args=["sh", "-c", script])
    events = list(client.tail(job.execution.id))
    data = b"".join(event.data for event in events if isinstance(event, Output) and event.source == STDOUT)
    end = events[-1]
    assert isinstance(end, End)
    assert (len(data), end.exit_status, end.state) == (1 << 20, 0, pb.STATE_SUCCEEDED)
    [totals] = [each for each in end.totals if each.source == STDOUT]
    assert totals.crc32 == zlib.crc32(data)
    states = [event.state for event in events if isinstance(event, StateChange)]
    assert states[-1] == pb.STATE_SUCCEEDED


def test_a_cursor_kept_in_the_middle_goes_on_in_the_middle(client: Client, image: str) -> None:
    job = client.enqueue(
        "cursor", image, args=["sh", "-c", "i=0; while [ $i -lt 20000 ]; do i=$((i+1)); echo line $i; done"]
    )
    whole = b"".join(
        event.data for event in client.tail(job.execution.id, sources=[STDOUT]) if isinstance(event, Output)
    )
    parts: list[bytes] = []
    cursor = ""
    for _ in range(1000):
        with client.tail(job.execution.id, cursor, sources=[STDOUT]) as tail:
            for events in tail.batches():
                parts.extend(event.data for event in events if isinstance(event, Output))
                cursor = tail.cursor
                if any(isinstance(event, Output | End) for event in events):
                    break
        if any(isinstance(event, End) for event in events):
            break
    assert b"".join(parts) == whole
    assert whole.count(b"\n") == 20000


def test_the_same_request_id_is_one_job(client: Client, image: str) -> None:
    first = client.enqueue("once", image, "true", request_id="r1")
    assert client.enqueue("once", image, "true", request_id="r1").id == first.id
    assert (
        client.enqueue("once", image, "true", request_id="r1", validate_only=False).execution.id == first.execution.id
    )


def test_what_is_not_there_is_not_found(client: Client) -> None:
    with pytest.raises(NotFound):
        client.job("01a20bbb-97ec-79f4-a080-2e840cf3ee6a")
    with pytest.raises(NotFound):
        list(client.tail("01a20bbb-97ec-79f4-a080-2e840cf3ee6a"))


def test_a_second_server_on_the_directory_or_the_address_is_refused_in_one_line(
    running_server: Server, tmp_path: Path
) -> None:
    for arguments, said in [
        (["--data-dir", str(running_server.data_dir), "--listen", "127.0.0.1:0"], "another server"),
        (
            ["--data-dir", str(tmp_path / "data"), "--listen", running_server.address],
            f"cannot listen on {running_server.address}",
        ),
    ]:
        ran = subprocess.run(
            [*FASTLANE, "server", "--http-listen", "off", *arguments],
            env=environment(),
            capture_output=True,
            text=True,
            timeout=SECONDS,
        )
        assert (ran.returncode, ran.stdout) == (1, "")
        # Before it at most lines of the server's own log, as of a host that was up already, and nothing of gRPC's.
        *logged, line = ran.stderr.splitlines()
        assert all(json.loads(each)["event"] for each in logged)
        assert line.startswith("fastlane: ")
        assert said in line


# ---- jobs that start later


def test_run_follows_a_job_that_starts_later_and_shows_what_it_waits_for(running_server: Server, image: str) -> None:
    ran = fastlane(running_server, "run", "--start-in", "1s", image, "sh", "-c", "echo late; exit 3")
    assert (ran.returncode, ran.stdout, ran.stderr) == (3, b"late\n", b"")


def test_a_scheduled_job_survives_a_kill_and_runs_once_when_it_is_due(own_server: Server, image: str) -> None:
    """So does one that expires meanwhile, which never runs."""
    with Client(own_server.address) as client:
        due = client.enqueue("later", image, args=["echo", "once"], start_in=3)
        expire_time = datetime.now(UTC) + timedelta(seconds=3)
        expiring = client.enqueue("later", image, args=["echo", "never"], start_in=2.5, expire_time=expire_time)
        assert {job.state for job in client.jobs(states=[pb.STATE_SCHEDULED])} == {due.state} == {pb.STATE_SCHEDULED}
        own_server.end(signal.SIGKILL)
        # The one expires while no server is there.
        time.sleep(max((expire_time - datetime.now(UTC)).total_seconds(), 0))
        own_server.start()
        *_, end = client.tail(due.execution.id)
        assert isinstance(end, End)
        assert (end.exit_status, client.job(due.id).executions) == (0, 1)
        times = client.execution(due.execution.id).times
        assert times.start_time.ToDatetime() >= times.due_time.ToDatetime()
        *_, end = client.tail(expiring.execution.id)
        assert isinstance(end, End)
        assert (end.state, end.exit_status, client.job(expiring.id).state) == (pb.STATE_EXPIRED, 125, pb.STATE_EXPIRED)
