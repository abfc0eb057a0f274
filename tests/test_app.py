"""The server as a whole: whatever fails, while it opens or later, leaves nothing open and nothing running, and is
told."""

import asyncio
import inspect
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, closing, contextmanager
from pathlib import Path

import grpc
import pytest
import requests
from structlog.testing import capture_logs

from fastlane_grpc.app import Server
from fastlane_grpc.client import Client
from fastlane_grpc.config import HostSettings, Settings
from fastlane_grpc.errors import CannotServe, ServerFailed, ServerStopping
from fastlane_grpc.machine.data_directory import claimed
from fastlane_grpc.model import Execution, JobSpec, State
from fastlane_grpc.store.database import Connection
from fastlane_grpc.store.writer import Written
from fastlane_grpc.v1 import fastlane_pb2 as pb
from fastlane_grpc.v1 import fastlane_pb2_grpc as pb_grpc

PARTS = sorted(name for name in vars(Server) if name.startswith("open_"))


class Broken(Exception):
    """What a test breaks a part with."""


def settings(directory: Path, listen: str = "127.0.0.1:0") -> Settings:
    # An engine that is not there: what is looked at needs none.
    return Settings(
        data_dir=directory / "data",
        listen=listen,
        http_listen="127.0.0.1:0",
        hosts=(HostSettings("here", f"unix://{directory}/no-engine"),),
    )


def open_files() -> Counter[str]:
    """What the process has open. Sockets and the like by their kind: each has a number of its own."""
    found: Counter[str] = Counter()
    for descriptor in Path("/proc/self/fd").iterdir():
        try:
            found[str(descriptor.readlink()).partition(":")[0]] += 1
        except FileNotFoundError:
            continue  # the one that lists them
    return found


def running() -> Counter[str]:
    """Threads and tasks; not the loop's own threads, which it keeps."""
    threads = (thread.name for thread in threading.enumerate() if not thread.name.startswith("asyncio_"))
    return Counter([*threads, *(task.get_name() for task in asyncio.all_tasks())])


@pytest.fixture(scope="module")
async def warm(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[None]:
    """What gRPC, and the loop, open once for all who use them is open. gRPC closes it with the last of its objects, so
    one is kept."""
    async with grpc.aio.insecure_channel("127.0.0.1:1"):
        async with Server(settings(tmp_path_factory.mktemp("warm"))) as server:
            async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
                await pb_grpc.ServerServiceStub(channel).GetServerInfo(pb.GetServerInfoRequest())
        yield


@asynccontextmanager
async def nothing_left(directory: Path) -> AsyncIterator[None]:
    """Whatever happens in it leaves nothing open, nothing running, and the data directory to the next server."""
    files, work = open_files(), running()
    yield
    await ended_again(work, files)
    with claimed(directory / "data"):
        pass


async def ended_again(work: Counter[str], files: Counter[str] | None = None) -> None:
    """Wait until no more runs than `work`, or is open than `files`: a thread that was told to end takes a moment."""
    until = time.monotonic() + 10
    while left := (running() - work) + (Counter() if files is None else open_files() - files):
        assert time.monotonic() < until, left
        await asyncio.sleep(0.01)


@pytest.mark.usefixtures("warm")
async def test_a_server_that_is_closed_leaves_nothing_behind(tmp_path: Path) -> None:
    async with nothing_left(tmp_path):
        async with Server(settings(tmp_path)) as server:
            assert (
                running()["store-writer"]
                == running()["host-here"]
                == running()["sweep-here"]
                == running()["dispatcher"]
                == 1
            )
        with pytest.raises(OSError, match="refused"):
            socket.create_connection(("127.0.0.1", server.port))


@pytest.mark.usefixtures("warm")
@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("when", ["before", "after"])
async def test_a_part_that_fails_to_open_leaves_nothing_behind(part: str, when: str, tmp_path: Path) -> None:
    opens: Callable[[Server, AsyncExitStack], object] = getattr(Server, part)

    async def opened(server: Server, parts: AsyncExitStack) -> None:
        if when == "after" and inspect.isawaitable(opening := opens(server, parts)):
            await opening
        raise Broken(part)

    def opened_at_once(server: Server, parts: AsyncExitStack) -> None:
        if when == "after":
            opens(server, parts)
        raise Broken(part)

    broken = type("BrokenServer", (Server,), {part: opened if inspect.iscoroutinefunction(opens) else opened_at_once})
    async with nothing_left(tmp_path):
        with pytest.raises(Broken, match=part):
            async with broken(settings(tmp_path)):
                pass


@pytest.mark.usefixtures("warm")
async def test_a_caller_who_fails_once_the_server_is_ready_leaves_nothing_behind(tmp_path: Path) -> None:
    async with nothing_left(tmp_path):
        with pytest.raises(BrokenPipeError):
            async with Server(settings(tmp_path)):
                raise BrokenPipeError


@contextmanager
def port_taken(directory: Path) -> Iterator[Settings]:
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        yield settings(directory, f"127.0.0.1:{taken.getsockname()[1]}")


@contextmanager
def address_of_another_machine(directory: Path) -> Iterator[Settings]:
    yield settings(directory, "192.0.2.1:10001")


@contextmanager
def damaged_database(directory: Path) -> Iterator[Settings]:
    (directory / "data").mkdir()
    (directory / "data" / "fastlane.db").write_bytes(b"no database" * 1000)
    yield settings(directory)


@contextmanager
def data_dir_that_is_a_file(directory: Path) -> Iterator[Settings]:
    yield Settings(data_dir=Path("/proc/version"), listen="127.0.0.1:0", http_listen="")


@pytest.mark.usefixtures("warm")
@pytest.mark.parametrize("failure", [port_taken, address_of_another_machine, damaged_database, data_dir_that_is_a_file])
async def test_a_server_that_cannot_serve_says_why_and_leaves_nothing_behind(
    failure: "Callable[[Path], contextmanager[Settings]]",  # type: ignore[valid-type]
    tmp_path: Path,
) -> None:
    with failure(tmp_path) as settings:  # type: ignore[attr-defined]
        async with nothing_left(tmp_path):
            try:
                async with Server(settings):
                    pass
            except CannotServe as error:
                message = str(error)
    assert settings.listen in message or str(settings.data_dir) in message


@pytest.mark.usefixtures("warm")
async def test_a_data_directory_that_is_taken_is_left_to_its_server(tmp_path: Path) -> None:
    async with Server(settings(tmp_path)) as first:
        work = running()
        with pytest.raises(CannotServe, match="another server"):
            async with Server(settings(tmp_path)):
                pass
        # The first one opens what it needs as it goes; of the second one only the lock could be left.
        await ended_again(work)
        assert open_files()[str(tmp_path / "data" / "lock")] == 1
        assert (await first.store.unfinished()) == []


# ----------------------------------------------------------------------------------------------------- what fails later


async def test_a_task_that_cannot_go_on_takes_the_server_down(tmp_path: Path) -> None:
    class Forgetful(Server):
        def open_dispatcher(self, parts: AsyncExitStack) -> None:
            super().open_dispatcher(parts)
            self.run(parts, "forgetful", self.forget, restart=False)

        async def forget(self) -> None:
            raise Broken("of a task")

    with capture_logs() as logged:
        with pytest.raises(ServerFailed, match=r"forgetful failed with Broken.*its log has more"):
            async with Forgetful(settings(tmp_path)) as server:
                async with asyncio.timeout(10):
                    await server.serve_until(server.loop.create_future())
    assert [each["exc_info"].args for each in logged if each.get("work") == "forgetful"] == [("of a task",)]


async def test_a_writing_thread_that_ends_takes_the_server_down_and_nobody_waits_for_it(tmp_path: Path) -> None:
    def ends(db: Connection) -> Written[None]:
        raise SystemExit(1)

    with capture_logs():
        with pytest.raises(ServerFailed, match="store-writer"):
            async with Server(settings(tmp_path)) as server:
                async with asyncio.timeout(10):
                    first, second = server.store._writer.write(ends), server.store._writer.write(lambda db: Written(1))
                    for pending in (first, second):
                        with pytest.raises(ServerStopping):
                            await pending
                    with pytest.raises(ServerStopping):
                        server.store.enqueue(task_id="t", spec=JobSpec("i"), request_id="", caller_address="")
                    await server.serve_until(server.loop.create_future())


async def test_a_commit_that_cannot_be_announced_takes_the_server_down(tmp_path: Path) -> None:
    heard: list[State] = []

    def hear(executions: Sequence[Execution]) -> None:
        heard.extend(each.state for each in executions)
        raise Broken("of a listener")

    with capture_logs():
        with pytest.raises(ServerFailed, match="of a listener"):
            async with Server(settings(tmp_path)) as server:
                server.listeners.insert(0, hear)
                await server.store.enqueue(task_id="t", spec=JobSpec("i"), request_id="", caller_address="")
                async with asyncio.timeout(10):
                    await server.serve_until(server.loop.create_future())
    assert heard == [State.QUEUED]


async def test_what_fails_in_a_callback_of_the_loop_is_logged_with_its_traceback(tmp_path: Path) -> None:
    def fail() -> None:
        raise Broken("in a callback")

    with capture_logs() as logged:
        async with Server(settings(tmp_path)) as server:
            before = server.loop.get_exception_handler()
            server.loop.call_soon(fail)
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        assert server.loop.get_exception_handler() is not before
    assert [each["exc_info"].args for each in logged if each["event"].startswith("a defect")] == [("in a callback",)]


# --------------------------------------------------------------------------------------------------------- as a program


def serve(directory: Path, *more: str, stdout: int) -> "subprocess.CompletedProcess[str]":
    command = [
        sys.executable,
        "-m",
        "fastlane_grpc.cli",
        "server",
        "--data-dir",
        str(directory / "data"),
        "--listen",
        "127.0.0.1:0",
        "--http-listen",
        "off",
    ]
    return subprocess.run(
        [*command, "--engine", f"unix://{directory}/no-engine", *more],
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        timeout=60,
    )


def test_a_server_whose_standard_output_is_closed_ends_with_an_error(tmp_path: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    ended = serve(tmp_path, stdout=write)
    os.close(write)
    assert ended.returncode == 1
    assert ended.stderr.splitlines()[-1] == (
        "fastlane: cannot write the ready message to stdout: Broken pipe; redirect stdout to a writable file"
    )
    assert "Traceback" not in ended.stderr
    with claimed(tmp_path / "data"):
        pass


def test_a_port_of_http_that_is_taken_is_told_in_one_line_with_the_way_out(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        ended = serve(tmp_path, "--http-listen", address, stdout=subprocess.PIPE)
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr.splitlines()[-1] == (
        f"fastlane: cannot listen on {address} for HTTP: Address already in use; choose another address with "
        "--http-listen, or turn HTTP off with --http-listen off"
    )


def test_the_ready_message_has_both_addresses_and_both_answer(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "fastlane_grpc.cli", "server", "--data-dir", str(tmp_path / "data")]
    command += ["--listen", "127.0.0.1:0", "--http-listen", "127.0.0.1:0", "--engine", f"unix://{tmp_path}/no-engine"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
        assert server.stdout
        line = server.stdout.readline()
        found = re.fullmatch(r"fastlane \S+ listening on (\S+), HTTP on (http://127.0.0.1:\d+), data in .+\n", line)
        assert found, line
        with Client(found[1]) as client:
            job = client.enqueue("both", "busybox", "true")
        told = requests.get(f"{found[2]}/jobs/{job.id}", timeout=30).json()
        assert told["job"]["task_id"] == "both"
        server.terminate()
        assert server.wait(30) == 0


def test_a_server_that_takes_itself_down_ends_with_an_error(tmp_path: Path) -> None:
    program = """
import sys
from pathlib import Path
from fastlane_grpc import app
from fastlane_grpc.cli import main

async def run(self):
    raise MemoryError("a defect")

app.Dispatcher.run = run
main()
"""
    command = [sys.executable, "-c", program, "server", "--data-dir", str(tmp_path / "data"), "--listen", "127.0.0.1:0"]
    command += ["--http-listen", "off"]
    ended = subprocess.run(
        [*command, "--engine", f"unix://{tmp_path}/no-engine"], capture_output=True, text=True, timeout=60
    )
    assert ended.returncode == 1, ended.stderr
    assert ended.stderr.splitlines()[-1] == (
        "fastlane: the server went down because of a defect: "
        "dispatcher failed with MemoryError('a defect'); its log has more"
    )
    assert '"work": "dispatcher"' in ended.stderr
    assert "Traceback (most recent call last)" in ended.stderr


def test_a_ready_server_keeps_its_modules_from_the_garbage_collector(tmp_path: Path) -> None:
    program = """
import gc, sys
from fastlane_grpc import app, config

def ready(ports):
    print(len(gc.get_objects()), gc.get_freeze_count())
    raise KeyboardInterrupt

flags = {"data_dir": sys.argv[1], "listen": "127.0.0.1:0", "http_listen": "off", "engine": "unix:///nobody"}
app.serve(config.load(flags, {}, None), ready=ready)
"""
    ended = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, timeout=60)
    looked_at, kept = map(int, ended.stdout.split())
    assert kept > 50 * looked_at


def test_a_server_loads_http_traces_and_the_client_of_webhooks_when_they_are_needed() -> None:
    loaded = "import sys, fastlane_grpc.app; print(*{name.partition('.')[0] for name in sys.modules})"
    names = subprocess.run([sys.executable, "-c", loaded], check=True, capture_output=True, text=True).stdout.split()
    assert "grpc" in names
    assert not {"aiohttp", "opentelemetry", "prometheus_client", "starlette", "uvicorn"} & {*names}
