"""Open files and threads run out, and come back: what needed them has waited, and nothing was concluded from it."""

import errno
import os
import resource
import socket
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from fastlane_grpc.docker.address import EngineAddress
from fastlane_grpc.docker.engine import Engine
from fastlane_grpc.docker.engine_errors import EngineDown
from fastlane_grpc.machine.shortage import is_shortage, outlast

SHORTAGE_SECONDS = 0.3


@contextmanager
def without_descriptors() -> Iterator[threading.Event]:
    """For a moment this process cannot open anything. The event is set when it can again."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    over = threading.Event()

    def end() -> None:
        over.set()
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)

    timer = threading.Timer(SHORTAGE_SECONDS, end)
    timer.start()
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, limits[1]))
    try:
        with pytest.raises(OSError, match="Too many open files"):
            os.open("/", os.O_RDONLY)
        yield over
    finally:
        timer.join()


@pytest.mark.parametrize("kind", ["unix", "tcp", "tcp by name"])
def test_a_connection_to_an_engine_waits_for_a_descriptor(tmp_path: Path, kind: str) -> None:
    with closing(socket.socket(socket.AF_UNIX) if kind == "unix" else socket.socket()) as listener:
        listener.bind(str(tmp_path / "engine") if kind == "unix" else ("127.0.0.1", 0))
        listener.listen()
        host = "localhost" if "name" in kind else "127.0.0.1"
        address = f"unix://{tmp_path / 'engine'}" if kind == "unix" else f"tcp://{host}:{listener.getsockname()[1]}"
        with without_descriptors() as over, closing(EngineAddress(address).connect(1)):
            assert over.is_set()


def test_an_engine_that_is_not_there_is_down_at_once(tmp_path: Path) -> None:
    with pytest.raises(EngineDown, match="no engine answers at"):
        EngineAddress(f"unix://{tmp_path / 'nowhere'}").connect(30)


def test_an_engine_whose_queue_of_connections_is_full_is_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "engine"
    with closing(socket.socket(socket.AF_UNIX)) as listener:
        listener.bind(str(path))
        listener.listen(0)
        address = f"unix://{path}"

        def accept() -> None:
            connection, _ = listener.accept()
            connection.close()

        with closing(EngineAddress(address).connect(1)):
            with pytest.raises(EngineDown, match="temporarily unavailable"):
                EngineAddress(address).connect(0.2)
            timer = threading.Timer(0.2, accept)
            timer.start()
            EngineAddress(address).connect(30).close()
            timer.join()


def test_the_life_of_an_engine_is_known_after_a_shortage_too() -> None:
    engine = Engine(os.environ.get("DOCKER_HOST") or "unix:///var/run/docker.sock")
    try:
        epoch = engine.epoch()
    except EngineDown:
        pytest.skip("there is no engine here")
    with without_descriptors() as over:
        assert engine.epoch() == epoch
        assert over.is_set()


def test_what_fails_for_another_reason_is_not_tried_again() -> None:
    tries = []

    def fail() -> None:
        tries.append(1)
        raise OSError(errno.EACCES, "permission denied")

    with pytest.raises(PermissionError):
        outlast(fail)
    assert len(tries) == 1


def test_a_thread_that_cannot_be_started_is_started_when_it_can(monkeypatch: pytest.MonkeyPatch) -> None:
    # What the interpreter raises where the machine has no further thread.
    begun, ran = [], threading.Event()
    start = threading._start_new_thread  # type: ignore[attr-defined]

    def short(*args: object) -> object:
        begun.append(1)
        if len(begun) < 3:
            raise RuntimeError("can't start new thread")
        return start(*args)

    monkeypatch.setattr(threading, "_start_new_thread", short)
    outlast(threading.Thread(target=ran.set).start, pause_seconds=0)
    assert ran.wait(10)
    assert len(begun) == 3


@pytest.mark.parametrize(
    ("error", "shortage"),
    [
        (OSError(errno.EMFILE, ""), True),
        (OSError(errno.ENFILE, ""), True),
        (OSError(errno.ENOSPC, ""), False),
        (RuntimeError("can't start new thread"), True),
        (RuntimeError("cannot schedule new futures after shutdown"), False),
        (MemoryError(), True),
        (ValueError(), False),
    ],
)
def test_what_a_shortage_is(error: Exception, shortage: bool) -> None:
    assert is_shortage(error) is shortage
