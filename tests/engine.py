"""A real engine for tests: its address, a tiny image of our own, and a server's lower floors over it, with nothing
above the runner."""

import asyncio
import io
import os
import subprocess
import tarfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import docker
import pytest

from fastlane_grpc.docker import CaptureChoice, DockerBackend, DockerCaptures, Engine
from fastlane_grpc.docker.handle import unpacked
from fastlane_grpc.execution import BackendRunner, Host, Step
from fastlane_grpc.inputs import InputFiles
from fastlane_grpc.logs import Logs
from fastlane_grpc.model import Allowed, Assignment, CaptureMode, Execution, JobSpec, Source, State
from fastlane_grpc.record import Chunk, Gap, Position, RecordReader, Trailer
from fastlane_grpc.runner import LeaveCommand, Mailbox, StopCommand
from fastlane_grpc.secrets import NamedSecrets
from fastlane_grpc.store import Store
from tests import probed
from tests.new_database import make_database
from tests.tools import ROOT, script, tool

SECONDS = 60


def engine_address() -> str:
    return os.environ.get("DOCKER_HOST") or "unix:///var/run/docker.sock"


@pytest.fixture(scope="session")
def sdk() -> Iterator[docker.DockerClient]:
    """The engine by the SDK, to look at what the runner did from outside."""
    client = docker.DockerClient(engine_address(), timeout=SECONDS)
    yield client
    client.close()


@pytest.fixture(scope="session")
def image(sdk: docker.DockerClient) -> Iterator[str]:
    """An image with nothing but busybox, /etc/passwd and /tmp: what `.ci/stage` put up, or, in a test run by hand, one
    of this process."""
    if staged := os.environ.get("STAGE_IMAGE"):
        yield staged
        return
    name = f"fastlane-test:{os.getpid()}"
    sdk.api.import_image_from_data(busybox_tar(), repository=name.partition(":")[0], tag=name.partition(":")[2])
    yield name
    sdk.images.remove(name, force=True)


@pytest.fixture(scope="session")
def python_image(sdk: docker.DockerClient) -> Iterator[str]:
    """Debian's Python, in place of the image that no registry gives here."""
    script("base")
    name = f"fastlane-python:{os.getpid()}"
    with (ROOT / ".tools" / "base.tar").open("rb") as file:
        sdk.api.import_image_from_data(file.read(), repository=name.partition(":")[0], tag=name.partition(":")[2])
    yield name
    sdk.images.remove(name, force=True)


@pytest.fixture(scope="session")
def engine_tells_of_memory(sdk: docker.DockerClient, image: str) -> None:
    """Whether the engine here flags a kill for memory; one under cgroup v1 with a controller that is not mounted does
    not."""
    # Some engines that do tell miss one now and then under load.
    if not any(_tells_of_kill(sdk, image) for _ in range(3)):
        pytest.skip(
            "this engine does not tell of kills for memory: mount every cgroup controller that the kernel has enabled"
        )


def _tells_of_kill(sdk: docker.DockerClient, image: str) -> bool:
    container = sdk.containers.run(image, "tail /dev/zero", mem_limit="16m", memswap_limit="16m", detach=True)
    try:
        container.wait(timeout=30)
        container.reload()
        return bool(container.attrs["State"]["OOMKilled"])
    finally:
        container.remove(force=True)


def busybox_tar() -> bytes:
    busybox = Path(tool("busybox")).resolve()
    names = subprocess.run([busybox, "--list"], capture_output=True, text=True, check=True).stdout.split()
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        tar.add(busybox, "bin/busybox")
        for name in sorted({*names} - {"busybox"}):
            link = tarfile.TarInfo(f"bin/{name}")
            link.type, link.linkname, link.mode = tarfile.SYMTYPE, "busybox", 0o777
            tar.addfile(link)
        for name in ("tmp", "etc"):
            directory = tarfile.TarInfo(name)
            directory.type, directory.mode = tarfile.DIRTYPE, 0o1777
            tar.addfile(directory)
        passwd = tarfile.TarInfo("etc/passwd")
        content = b"root:x:0:0:root:/:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/sh\n"
        passwd.size, passwd.mode = len(content), 0o644
        tar.addfile(passwd, io.BytesIO(content))
    return file.getvalue()


@dataclass(frozen=True)
class Output:
    """A record, read back."""

    stdout: bytes
    stderr: bytes
    gaps: Sequence[Gap]
    trailer: Trailer | None
    entries: Sequence[Chunk | Gap]


class Killed(BaseException):
    """What a server is killed by, in these tests: nothing catches it, and nothing is put in order after it."""


class Going:
    """An execution on its way, on a thread."""

    def __init__(
        self,
        harness: "EngineHarness",
        assignment: Assignment,
        *,
        kill_at: Step | None = None,
        stop_at: Step | None = None,
    ) -> None:
        self.id = assignment.execution.id
        self.mailbox = Mailbox()
        self.steps: list[Step] = []
        self._harness = harness
        self._kill_at = kill_at
        self._stop_at = stop_at
        self._passed = threading.Condition()
        harness.going[self.id] = self
        self._future = harness.threads.submit(harness.runner.run, assignment, self.mailbox)

    def step(self, step: Step) -> None:
        with self._passed:
            self.steps.append(step)
            self._passed.notify_all()
        if step is self._kill_at:
            raise Killed
        if step is self._stop_at:
            self._harness.stop(self.id, grace=0)

    def wait_for(self, step: Step) -> None:
        with self._passed:
            assert self._passed.wait_for(lambda: step in self.steps, SECONDS), f"{step} was not reached: {self.steps}"

    def result(self) -> Execution:
        """The execution after `run` returned; raises what that raised."""
        self._future.result(SECONDS)
        return self._harness.execution(self.id)

    def failure(self) -> BaseException | None:
        return self._future.exception(SECONDS)


class EngineHarness:
    """Store, logs, host and runner on one data directory, as a server has them, with the part of a dispatcher that
    passes on mailbox."""

    def __init__(
        self,
        directory: Path,
        image: str,
        address: str,
        engine: str,
        capture: CaptureMode,
        max_log_bytes: int,
        certificates: Path | None = None,
    ) -> None:
        self.directory = directory
        self.capture = capture
        self.image = image
        self.address = address
        self._engine = engine
        self._max_log_bytes = max_log_bytes
        self._certificates = certificates
        self.going: dict[str, Going] = {}
        self.on_step: Callable[[Step, str], None] = lambda step, execution_id: None
        self.loop = asyncio.new_event_loop()
        self._loop_thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._loop_thread.start()
        self.threads = ThreadPoolExecutor(16, "execution")
        self.retry_seconds = float(SECONDS)
        self.allowed = Allowed()
        self.secrets = NamedSecrets(())
        self.open()

    def open(self) -> None:
        make_database(self.directory / "fastlane.db")
        self.store = Store.open(self.directory, on_commit=self._committed, loop=self.loop)
        self.logs = Logs(self.directory / "logs")
        self.changed = threading.Condition()
        self.host = self.connect()
        self.host.start(self._host_changed)
        self.wait_until(lambda: self.host.up)
        probed.learn(self.directory)
        self.runner = BackendRunner(
            self.store,
            self.logs,
            self.host,
            default_timeout=timedelta(seconds=SECONDS),
            inputs=InputFiles(self.directory / "inputs"),
            secrets=self.secrets,
            max_output_bytes=1 << 30,
            start_answer_seconds=2,
            retry_seconds=self.retry_seconds,
            step=self._step,
        )

    def connect(self) -> Host:
        """Return the host, which does not listen yet."""
        self.engine = Engine(self.address, certificates=self._certificates)
        probed.prepare(self.directory)
        return Host("local", self.backend("local"), self.captures(self.capture), ping_seconds=1)

    def backend(self, host: str) -> DockerBackend:
        return DockerBackend(
            self.engine, instance=self.store.instance, host=host, default_pids=256, allowed=self.allowed
        )

    def captures(self, mode: CaptureMode) -> DockerCaptures:
        choice = CaptureChoice(mode, self.directory, instance=self.store.instance, max_log_bytes=self._max_log_bytes)
        return DockerCaptures(self.engine, choice)

    def reopen(self) -> None:
        """The next server on the same data."""
        self.close_floors()
        self.open()

    def close_floors(self) -> None:
        self.host.close()
        self.logs.close()
        self.store.close()

    def close(self) -> None:
        for going in self.going.values():
            going.mailbox.put(LeaveCommand())
        self.threads.shutdown(wait=True)
        self.remove_all()
        self.close_floors()
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._loop_thread.join()
        self.loop.close()

    def remove_all(self) -> None:
        """Remove what this harness left on the engine, past whatever stands between the two."""
        engine = Engine(self._engine)
        for container_id in engine.containers(self.store.instance):
            engine.remove(container_id, force=True)

    def wait_until(self, true: Callable[[], bool]) -> None:
        with self.changed:
            assert self.changed.wait_for(true, SECONDS)

    def enqueue(self, command: str = "", *args: str, **more: Any) -> str:
        """The id of a new job's execution."""
        spec = JobSpec(image=str(more.pop("image", self.image)), command=command, args=args, **more)
        job, _ = self.store.enqueue(task_id="t", spec=spec, request_id="", caller_address="").result()
        return job.execution.id

    def claim(self, command: str = "", *args: str, **more: Any) -> Assignment:
        self.enqueue(command, *args, **more)
        (assignment,) = self.store.claim_on(["local"]).result()
        return assignment

    def go(
        self, command: str = "", *args: str, kill_at: Step | None = None, stop_at: Step | None = None, **more: Any
    ) -> Going:
        return Going(self, self.claim(command, *args, **more), kill_at=kill_at, stop_at=stop_at)

    def run(self, command: str = "", *args: str, **more: Any) -> Execution:
        return self.go(command, *args, **more).result()

    def sh(self, script: str, **more: Any) -> Execution:
        return self.run("sh -c", script, **more)

    def kill_at(self, step: Step, script: str, **more: Any) -> str:
        """Runs a script up to `step`, where the server is killed. The id of what it left; the next server is there."""
        return self.kill_command_at(step, "sh -c", script, **more)

    def kill_command_at(self, step: Step, *command: str, **more: Any) -> str:
        going = self.go(*command, kill_at=step, **more)
        assert isinstance(going.failure(), Killed)
        self.reopen()
        return going.id

    def adopt(self, execution_id: str, *, kill_at: Step | None = None) -> Going:
        return Going(self, self.store.assignment(execution_id).result(), kill_at=kill_at)

    def execution(self, execution_id: str) -> Execution:
        return self.store.execution(execution_id).result()

    def stop(self, execution_id: str, *, grace: float = 10, note: str = "") -> None:
        job_id = self.execution(execution_id).job_id
        self.store.stop(job_id, grace=timedelta(seconds=grace), note=note).result()

    def wait_for_system(self, execution_id: str, content: str) -> None:
        """Until `content` is among fastlane's own lines."""
        path = self.logs.system_path(execution_id)
        until = time.monotonic() + SECONDS
        while not path.exists() or content not in self.system(execution_id):
            assert time.monotonic() < until, "no such line came"
            time.sleep(0.01)

    def wait_for_full_disk(self) -> None:
        """Until the file system of the logs has no room for another block of a record."""
        until = time.monotonic() + SECONDS
        while (room := os.statvfs(self.logs.directory)).f_bavail * room.f_bsize > 2 * 65_536:
            assert time.monotonic() < until, f"{room.f_bavail} blocks are free"
            time.sleep(0.01)

    def wait_for_output(self, execution_id: str, content: bytes = b"") -> None:
        """Until there is some, and that with `content` in it."""
        path = self.logs.output_path(execution_id)
        until = time.monotonic() + SECONDS
        while not path.exists() or content not in (printed := read_output(path)).stdout or not printed.stdout:
            assert time.monotonic() < until, "no output came"
            time.sleep(0.01)

    def wait_for_stderr(self, execution_id: str, content: bytes) -> None:
        """Until `content` was printed there."""
        path = self.logs.output_path(execution_id)
        until = time.monotonic() + SECONDS
        while not path.exists() or content not in read_output(path).stderr:
            assert time.monotonic() < until, "no output came"
            time.sleep(0.01)

    def output(self, execution_id: str) -> Output:
        return read_output(self.logs.output_path(execution_id))

    def system(self, execution_id: str) -> str:
        reader = RecordReader(self.logs.system_path(execution_id))
        entries = reader.read(Position.BEGIN).entries
        reader.close()
        return b"".join(entry.data for entry in entries if isinstance(entry, Chunk)).decode()

    def _step(self, step: Step, execution_id: str) -> None:
        self.on_step(step, execution_id)
        self.going[execution_id].step(step)

    def _host_changed(self) -> None:
        with self.changed:
            self.changed.notify_all()

    def _committed(self, executions: Sequence[Execution]) -> None:
        for execution in executions:
            if execution.state is State.STOPPING and execution.stop and execution.id in self.going:
                self.going[execution.id].mailbox.put(StopCommand(execution.stop))


def capture_of(execution: Execution) -> str:
    """How the output of the execution is captured."""
    return unpacked(execution.handle).capture


def read_output(path: Path) -> Output:
    reader = RecordReader(path)
    position, trailer = Position.BEGIN, None
    entries: list[Chunk | Gap] = []
    while trailer is None:
        segment = reader.read(position)
        if not segment.entries and segment.trailer is None:
            break
        entries += segment.entries
        position, trailer = segment.next, segment.trailer
    reader.close()
    chunks = [entry for entry in entries if isinstance(entry, Chunk)]
    return Output(
        stdout=b"".join(chunk.data for chunk in chunks if chunk.source is Source.STDOUT),
        stderr=b"".join(chunk.data for chunk in chunks if chunk.source is Source.STDERR),
        gaps=[entry for entry in entries if isinstance(entry, Gap)],
        trailer=trailer,
        entries=entries,
    )


@contextmanager
def opened(
    directory: Path,
    image: str,
    address: str = "",
    *,
    engine: str = "",
    capture: CaptureMode = CaptureMode.AUTO,
    max_log_bytes: int = 1 << 30,
    certificates: Path | None = None,
) -> Iterator[EngineHarness]:
    """A harness over the engine at `address`, behind which is the one at `engine`, if that is another."""
    address = address or engine_address()
    harness = EngineHarness(directory, image, address, engine or address, capture, max_log_bytes, certificates)
    try:
        yield harness
    finally:
        harness.close()


# What a test that uses `harness` asks for if it is about one way of capture, or if the way is beside the point.
by_recorder = pytest.mark.parametrize("capture", [CaptureMode.RECORDER], indirect=True, ids=str)
by_attach = pytest.mark.parametrize("capture", [CaptureMode.ATTACH], indirect=True, ids=str)


@pytest.fixture(params=[CaptureMode.RECORDER, CaptureMode.ATTACH], ids=str)
def capture(request: pytest.FixtureRequest) -> CaptureMode:
    """How the containers of `harness` are captured: each test passes whichever way the bytes take."""
    return CaptureMode(request.param)


@pytest.fixture
def harness(tmp_path: Path, image: str, capture: CaptureMode) -> Iterator[EngineHarness]:
    with opened(tmp_path, image, capture=capture) as harness:
        yield harness


@pytest.fixture
def another(tmp_path_factory: pytest.TempPathFactory, image: str, capture: CaptureMode) -> Iterator[EngineHarness]:
    """A second server on the same engine."""
    with opened(tmp_path_factory.mktemp("another"), image, capture=capture) as harness:
        yield harness
