"""Builds the house, opens it and closes it in order. Who wakes whom is decided here, and nowhere else."""

import asyncio
import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial

import structlog
import uvloop

from fastlane_grpc.config import HostSettings, Settings
from fastlane_grpc.directory import claimed, disk_bytes
from fastlane_grpc.dispatcher import Dispatcher, HostPlaces
from fastlane_grpc.errors import CannotServe, DiskFull, ServerStopping, StoreFailed
from fastlane_grpc.logs import Logs, Tails
from fastlane_grpc.model import Execution
from fastlane_grpc.open_files import OpenFiles, raise_limit
from fastlane_grpc.rpc.server import RpcServer
from fastlane_grpc.runner import Captures, DockerRunner, GoneRunner, Host, HostDown, Step
from fastlane_grpc.service import Service
from fastlane_grpc.store import Fitness, Quota, Store
from fastlane_grpc.upkeep import Limits, Upkeep

# A container that could not be removed at its end is removed at the next sweep.
_SWEEP_SECONDS = 600.0
# What is queued to be written when the server ends has so long: a disk that hangs does not keep it from ending.
_CLOSE_SECONDS = 5.0

log = structlog.get_logger(__name__)


def serve(
    settings: Settings,
    ready: Callable[[int], None],
    step: Callable[[Step, str], None] = lambda step, execution_id: None,
    *,
    colors: bool = False,
) -> None:
    """Serves until SIGTERM or SIGINT; containers are left to the next server. Raises CannotServe.

    `ready` is told the port once calls are answered; `step` is told each step of each execution, by the runner's thread. `colors` are for
    a log that a person looks at.
    """
    _log_to_stderr(colors=colors)
    os.umask(0o077)
    open_files = OpenFiles.of(raise_limit(), max_running=settings.max_running)
    with claimed(settings.data_dir):
        uvloop.run(_serve(settings, open_files, ready, step))


async def _serve(settings: Settings, open_files: OpenFiles, ready: Callable[[int], None], step: Callable[[Step, str], None]) -> None:
    loop = asyncio.get_running_loop()
    stopping = _stop_signals(loop)

    # The store knows nobody upstairs: what it commits is told to whoever is in `listeners`, on the loop.
    listeners: list[Callable[[Sequence[Execution]], None]] = []

    def committed(executions: Sequence[Execution]) -> None:
        for listener in listeners:
            listener(executions)

    fitness = Fitness()
    store = _open_store(settings, committed, fitness.failed, loop)
    logs = Logs(settings.data_dir / "logs")
    tails = Tails(logs, cache_bytes=settings.cache_bytes, loop=loop, max_open=open_files.max_open_logs)
    hosts = [_host(each, store, settings) for each in settings.hosts]
    runners = [
        DockerRunner(store, logs, host, default_timeout=settings.default_timeout, default_pids=settings.default_pids, step=step)
        for host in hosts
    ]
    gone = GoneRunner(
        store, logs, settings.data_dir, default_timeout=settings.default_timeout, default_pids=settings.default_pids, step=step
    )
    places = [HostPlaces(host, runner, each.max_running) for host, runner, each in zip(hosts, runners, settings.hosts, strict=True)]
    dispatcher = Dispatcher(store, places, gone=gone, max_running=settings.max_running)
    upkeep = Upkeep(store, logs, _limits(settings))
    listeners += [dispatcher.news, tails.changed, upkeep.news]
    service = Service(store, tails, dispatcher, upkeep, settings)
    server = RpcServer(service, settings, max_connections=open_files.max_connections)

    sweeping = {host.name: threading.Event() for host in hosts}
    for host, runner in zip(hosts, runners, strict=True):
        # A daemon, as every thread that waits for an engine: one that hangs does not keep the server from ending.
        threading.Thread(target=_sweep, args=(runner, host, sweeping[host.name]), name=f"sweep-{host.name}", daemon=True).start()
    telling: set[asyncio.Task[None]] = set()

    def host_changed(host: Host) -> None:
        dispatcher.host_changed(host.name)
        task = loop.create_task(server.serving("engine", dispatcher.up))
        telling.add(task)
        task.add_done_callback(telling.discard)
        _warn_of_twins(host, hosts)
        sweeping[host.name].set()

    def tell_host_changed(host: Host) -> None:
        loop.call_soon_threadsafe(host_changed, host)

    # Until a host was reached nothing has changed, and health has to answer all the same.
    await server.serving("engine", dispatcher.up)
    for host in hosts:
        host.start(partial(tell_host_changed, host))
    dispatching = loop.create_task(dispatcher.run())
    keeping_up = loop.create_task(upkeep.run())
    watching = loop.create_task(fitness.watch(store, server.store_can_write))
    await server.start()
    ready(server.port)
    try:
        # These end by themselves only with a defect. A server that runs no jobs, or fills its disk, must not go on as if all were well.
        await asyncio.wait([stopping, dispatching, keeping_up, watching], return_when=asyncio.FIRST_COMPLETED)
    finally:
        log.info("stopping")
        keeping_up.cancel()
        watching.cancel()
        upkeep.close()
        await dispatcher.close()
        await server.stop()
        tails.close()
        # Beside each other: one that hangs is waited for, for a moment.
        await asyncio.gather(*(asyncio.to_thread(host.close) for host in hosts))
        store.close(_CLOSE_SECONDS)
    for task in (dispatching, keeping_up, watching):
        if task.done() and not task.cancelled():
            task.result()


def _open_store(
    settings: Settings,
    committed: Callable[[Sequence[Execution]], None],
    failed: Callable[[], None],
    loop: asyncio.AbstractEventLoop,
) -> Store:
    quota = Quota.of(settings.data_dir, max_waiting=settings.max_waiting, min_free_bytes=settings.min_free_bytes)
    try:
        return Store.open(
            settings.data_dir,
            on_commit=committed,
            loop=loop,
            quota=quota,
            secret_names=settings.secret_names,
            on_failure=failed,
        )
    except StoreFailed as error:
        raise CannotServe(str(error)) from error


def _limits(settings: Settings) -> Limits:
    """Zero bytes: that was turned off. None: it was not said."""
    total = settings.max_total_log_bytes
    if total is None:
        total = disk_bytes(settings.data_dir) // 2
    return Limits(settings.keep_logs, settings.keep_jobs, total or None)


def _host(configured: HostSettings, store: Store, settings: Settings) -> Host:
    captures = Captures(
        configured.capture,
        settings.data_dir,
        instance=store.instance,
        max_log_bytes=settings.max_log_bytes,
        seen_as=configured.engine_data_dir,
        host=configured.name,
    )
    return Host(configured.name, configured.engine, instance=store.instance, captures=captures)


def _warn_of_twins(host: Host, hosts: Sequence[Host]) -> None:
    """Two hosts that are one engine work; but that engine gets as many containers as both may have. Not refused: machines that were copied
    with an engine on them have engines that say the same of themselves."""
    for other in hosts:
        if other is not host and host.up and host.engine_id and other.engine_id == host.engine_id:
            log.warning("two hosts say that they are the same engine", host=host.name, other=other.name, engine_id=host.engine_id)


def _sweep(runner: DockerRunner, host: Host, sweeping: threading.Event) -> None:
    """Removes what executions that are over have left on the engine: when it is there again, and now and then."""
    while True:
        sweeping.wait(_SWEEP_SECONDS)
        sweeping.clear()
        if not host.up:
            continue
        try:
            runner.sweep()
        except ServerStopping:
            return
        except (HostDown, DiskFull, StoreFailed) as error:
            log.info("left-over containers are removed later", reason=str(error))


def _log_to_stderr(*, colors: bool) -> None:
    """One line for each change of state: for people on a terminal, as JSON elsewhere. Tracebacks without the values of variables: these may
    be secrets."""
    for_people = sys.stderr.isatty()
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.dev.ConsoleRenderer(colors=colors, exception_formatter=structlog.dev.plain_traceback)
            if for_people
            else structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger("info"),
        logger_factory=lambda *_: _StderrLogger(sys.stderr),
        cache_logger_on_first_use=True,
    )


class _StderrLogger(structlog.PrintLogger):
    """A log that cannot be written (a full disk, a reader that is gone) is no reason to do anything less well."""

    def msg(self, message: str) -> None:
        with suppress(OSError, ValueError):
            super().msg(message)

    log = debug = info = warn = warning = fatal = failure = err = error = critical = exception = msg


def _stop_signals(loop: asyncio.AbstractEventLoop) -> "asyncio.Future[None]":
    """Done at the first SIGTERM or SIGINT. The second one ends the process where it stands: what was answered is on disk."""
    stopping: asyncio.Future[None] = loop.create_future()

    def stop() -> None:
        if stopping.done():
            os._exit(1)
        stopping.set_result(None)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    return stopping
