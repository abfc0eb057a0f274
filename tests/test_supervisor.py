"""No thread or task ends unnoticed: it is restarted, or takes the server down, or hands its error to the one who
waits."""

import ast
import asyncio
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from structlog.testing import capture_logs

import fastlane_grpc
from fastlane_grpc.backoff import Backoff
from fastlane_grpc.execution import Sweeper
from fastlane_grpc.supervisor import Supervisor, thread
from fastlane_grpc.wakeup import Wakeup
from tests.fakes import FakeHost

QUICK = Backoff(0.001, 0.01)


class Downs(list[tuple[str, BaseException]]):
    """What took a server down."""

    def __call__(self, name: str, error: BaseException) -> None:
        self.append((name, error))


class Fails:
    """Work that raises each of some errors once, one after another, and then ends as it should."""

    def __init__(self, errors: Sequence[BaseException]) -> None:
        self.errors = list(errors)
        self.ended = threading.Event()

    def __call__(self) -> None:
        if self.errors:
            raise self.errors.pop(0)
        self.ended.set()

    async def work(self) -> None:
        self()
        await asyncio.Event().wait()


def test_a_thread_that_may_be_restarted_is_with_the_traceback_in_the_log() -> None:
    downs, fails = Downs(), Fails([ValueError("first"), SystemExit(3), KeyError("x")])
    with capture_logs() as logged:
        restarted = Supervisor(downs, restarts=QUICK).thread("worker", fails, restart=True)
        restarted.start()
        restarted.join(10)
    assert fails.ended.is_set()
    assert [(each["work"], type(each["exc_info"])) for each in logged] == [
        ("worker", ValueError),
        ("worker", SystemExit),
        ("worker", KeyError),
    ]
    assert all(each["exc_info"].__traceback__ for each in logged)
    assert downs == []


def test_a_thread_that_may_not_be_restarted_takes_the_server_down() -> None:
    downs, error = Downs(), ValueError("defect")
    with capture_logs() as logged:
        failing = Supervisor(downs).thread("writer", Fails([error]), restart=False)
        failing.start()
        failing.join(10)
    assert downs == [("writer", error)]
    assert [each["work"] for each in logged] == ["writer"]


def test_a_thread_that_fails_is_not_restarted_once_the_server_closes() -> None:
    fails = Fails([ValueError()] * 1000)
    supervisor = Supervisor(Downs(), restarts=Backoff(60, 60))
    with capture_logs():
        failing = supervisor.thread("worker", fails, restart=True)
        failing.start()
        supervisor.close()
        failing.join(10)
    assert not failing.is_alive()
    assert len(fails.errors) >= 998


def test_a_thread_that_one_waiter_depends_on_hands_its_error_over() -> None:
    handed: list[Exception] = []
    with capture_logs() as logged:
        for error in (ValueError("a"), SystemExit(1)):
            failing = thread("pull", Fails([error]), on_failure=handed.append)
            failing.start()
            failing.join(10)
    assert [type(error) for error in handed] == [ValueError, RuntimeError]
    assert len(logged) == 2


class SweptAfter:
    """A runner whose sweeps fail in ways that nobody thought of, and then succeed."""

    def __init__(self, errors: Sequence[BaseException]) -> None:
        self.sweep = Fails(errors)


def test_a_sweeper_that_fails_sweeps_again_at_the_next_word() -> None:
    runner = SweptAfter([KeyError("Labels")])
    sweeper = Sweeper(runner, FakeHost(), Supervisor(Downs(), restarts=QUICK))  # type: ignore[arg-type]
    with capture_logs() as logged:
        sweeper.start()
        until = time.monotonic() + 10
        while not runner.sweep.ended.wait(0.01):
            assert time.monotonic() < until
            sweeper.wake()
    sweeper.close()
    assert [each["work"] for each in logged] == ["sweep-here"]


async def test_a_task_that_may_be_restarted_is() -> None:
    downs, fails = Downs(), Fails([ValueError(), KeyError()])
    with capture_logs() as logged:
        task = Supervisor(downs, restarts=QUICK).task("retention", fails.work, restart=True)
        await asyncio.to_thread(fails.ended.wait, 10)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert [each["work"] for each in logged] == ["retention", "retention"]
    assert downs == []


async def test_a_task_that_ends_by_itself_takes_the_server_down() -> None:
    downs = Downs()
    with capture_logs():
        await Supervisor(downs).task("dispatcher", lambda: asyncio.sleep(0), restart=False)
    assert [name for name, _ in downs] == ["dispatcher"]


async def test_a_task_ends_by_itself_unnoticed_once_the_server_closes() -> None:
    supervisor = Supervisor(downs := Downs())
    task = supervisor.task("dispatcher", lambda: asyncio.sleep(0), restart=False)
    supervisor.close()
    await task
    assert downs == []


async def test_a_change_between_the_look_and_the_wait_is_not_lost() -> None:
    wakeup = Wakeup()
    wakeup.set()
    wakeup.clear()
    await wakeup.wait(0)
    wakeup.set()
    async with asyncio.timeout(5):
        await wakeup.wait()


def test_every_thread_and_task_of_the_server_is_supervised() -> None:
    package = Path(fastlane_grpc.__file__).parent
    # Of reads and scrapes that several share the ends are told to those who wait, as is that of the last export of
    # traces; the others do not belong to a server.
    others = {
        package / "supervisor.py",
        package / "logs" / "cache.py",
        package / "prometheus" / "scrape.py",
        package / "tracing" / "otlp.py",
        *(package / "client").rglob("*"),
        *(package / "cli").rglob("*"),
    }
    started = {
        f"{path.relative_to(package)}:{node.lineno}"
        for path in package.rglob("*.py")
        if path not in others
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call)
        and ast.unparse(node.func).split(".")[-1] in {"Thread", "Timer", "create_task", "ensure_future"}
    }
    assert started == set()
