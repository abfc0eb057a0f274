"""The server: its parts, in the order in which they open; closed in reverse. Who wakes whom is decided here, and
nowhere else."""

import asyncio
import os
import signal
import sys
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from functools import partial
from typing import Any, NoReturn, Self

import structlog
import uvloop

from fastlane_grpc.capture.choice import CaptureChoice
from fastlane_grpc.config import HostSettings, Settings
from fastlane_grpc.dispatcher import Dispatcher, HostPlaces
from fastlane_grpc.errors import CannotServe, ServerFailed, StoreFailed
from fastlane_grpc.execution import DockerRunner, Host, RemovedHostRunner, Step, Sweeper
from fastlane_grpc.logs import Logs, Tails
from fastlane_grpc.machine.address import is_loopback
from fastlane_grpc.machine.data_directory import claimed, disk_bytes
from fastlane_grpc.machine.open_files import OpenFiles, raise_limit
from fastlane_grpc.model import Execution
from fastlane_grpc.retention import Limits, Retention
from fastlane_grpc.rpc.server import RpcServer
from fastlane_grpc.service import Service
from fastlane_grpc.store import Quota, Store, StoreHealth
from fastlane_grpc.supervisor import Supervisor
from fastlane_grpc.wakeup import Wakeup

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
    """Serves until SIGTERM or SIGINT; containers are left to the next server. Raises CannotServe, and ServerFailed
    where it cannot go on.

    `ready` is told the port once calls are answered; `step` is told each step of each execution, by the runner's
    thread. `colors` are for a log that a person looks at."""
    _log_to_stderr(colors=colors)
    os.umask(0o077)
    uvloop.run(_serve(settings, ready, step))


async def _serve(settings: Settings, ready: Callable[[int], None], step: Callable[[Step, str], None]) -> None:
    stopping = _stop_signals(asyncio.get_running_loop())
    async with Server(settings, step) as server:
        ready(server.port)
        await server.serve_until(stopping)


class Server:
    """A server made of parts: they open in order and close in reverse, also where opening one of them fails.

    An async context manager, made on the loop that it is to run on. Each `open_…` method opens one part, says how it is
    closed, and needs only parts that were opened before; a test replaces parts by overriding these methods."""

    settings: Settings
    store: Store
    logs: Logs
    tails: Tails
    dispatcher: Dispatcher
    upkeep: Retention
    service: Service
    rpc: RpcServer

    def __init__(self, settings: Settings, step: Callable[[Step, str], None] = lambda step, execution_id: None) -> None:
        self.settings = settings
        self.step = step
        self.loop = asyncio.get_running_loop()
        self._failure: asyncio.Future[NoReturn] = self.loop.create_future()
        self.supervisor = Supervisor(self._down)
        # What the store commits is told to each of them, on the loop, in their order; the store knows nobody upstairs.
        self.listeners: list[Callable[[Sequence[Execution]], None]] = []
        self.open_files = OpenFiles.of(raise_limit(), max_running=settings.max_running)
        self.fitness = StoreHealth()
        self.hosts: Sequence[Host] = ()
        self._runners: Sequence[DockerRunner] = ()
        self._sweepers: dict[str, Sweeper] = {}
        self._engine_changed = Wakeup()

    @property
    def port(self) -> int:
        return self.rpc.port

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as parts:
            try:
                await self.open(parts)
            except BaseException:
                self.supervisor.close()
                raise
            self._parts = parts.pop_all()
        return self

    async def __aexit__(self, *raised: object) -> None:
        log.info("stopping")
        self.supervisor.close()
        await self._parts.aclose()

    async def serve_until(self, stopping: "asyncio.Future[None]") -> None:
        """Serve until that is done. Raises ServerFailed where the server cannot go on."""
        ends: list[asyncio.Future[Any]] = [stopping, self._failure]
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        if self._failure.done():
            self._failure.result()

    # ---- the parts, from the bottom up

    async def open(self, parts: AsyncExitStack) -> None:
        """Open all parts."""
        self.open_loop(parts)
        self.open_data_dir(parts)
        self.open_store(parts)
        self.open_logs(parts)
        self.open_tails(parts)
        self.open_hosts(parts)
        self.open_dispatcher(parts)
        self.open_sweepers(parts)
        self.open_upkeep(parts)
        await self.open_rpc(parts)

    def open_loop(self, parts: AsyncExitStack) -> None:
        """What fails in a callback of the loop is logged as everything else is. Until the end."""
        parts.callback(self.loop.set_exception_handler, self.loop.get_exception_handler())
        self.loop.set_exception_handler(_log_loop_error)

    def open_data_dir(self, parts: AsyncExitStack) -> None:
        """The lock on the data directory: until all else is closed, as the next server may begin then."""
        parts.enter_context(claimed(self.settings.data_dir))

    def open_store(self, parts: AsyncExitStack) -> None:
        """The store outlives everybody who writes; what hangs in it is not waited for for ever."""
        self.store = _open_store(self.settings, self._committed, self.fitness.failed, self.loop, self.supervisor)
        parts.callback(self.store.close, _CLOSE_SECONDS)

    def open_logs(self, parts: AsyncExitStack) -> None:
        """Fastlane's own lines: they are written until no execution is on a thread."""
        self.logs = Logs(self.settings.data_dir / "logs")
        parts.callback(self.logs.close)

    def open_tails(self, parts: AsyncExitStack) -> None:
        """Readers of logs, with inotify and threads: until no call is left that reads."""
        self.tails = Tails(
            self.logs, cache_bytes=self.settings.cache_bytes, loop=self.loop, max_open=self.open_files.max_open_logs
        )
        parts.callback(self.tails.close)
        self.listeners.append(self.tails.changed)

    def open_hosts(self, parts: AsyncExitStack) -> None:
        """The hosts listen from the moment on that there is somebody to be told, and until no execution waits for what
        they hear."""
        settings = self.settings
        self.hosts = [_host(each, self.store, settings, self.supervisor) for each in settings.hosts]
        parts.push_async_callback(self._close_hosts)

    def open_dispatcher(self, parts: AsyncExitStack) -> None:
        """The dispatcher runs until the last call was answered; then it leaves the containers to the next server."""
        settings = self.settings
        self._runners = [
            DockerRunner(
                self.store,
                self.logs,
                host,
                default_timeout=settings.default_timeout,
                default_pids=settings.default_pids,
                step=self.step,
            )
            for host in self.hosts
        ]
        gone = RemovedHostRunner(
            self.store,
            self.logs,
            settings.data_dir,
            default_timeout=settings.default_timeout,
            default_pids=settings.default_pids,
            step=self.step,
        )
        hosts = zip(self.hosts, self._runners, settings.hosts, strict=True)
        self.dispatcher = Dispatcher(
            self.store,
            [HostPlaces(host, runner, each.max_running) for host, runner, each in hosts],
            gone=gone,
            max_running=settings.max_running,
            supervisor=self.supervisor,
        )
        self.listeners.append(self.dispatcher.news)
        # Not restarted: it would take up again what is on its threads.
        self.run(parts, "dispatcher", self.dispatcher.run, restart=False)
        parts.push_async_callback(self.dispatcher.close)

    def open_sweepers(self, parts: AsyncExitStack) -> None:
        """A sweeper for each host, which begins to listen now."""
        self._sweepers = {
            host.name: Sweeper(runner, host, self.supervisor)
            for host, runner in zip(self.hosts, self._runners, strict=True)
        }
        for host in self.hosts:
            parts.callback(self._sweepers[host.name].close)
            self._sweepers[host.name].start()
            host.start(partial(self._tell_host_changed, host))

    def open_upkeep(self, parts: AsyncExitStack) -> None:
        """Retention: until the server stops, at which a call that prunes is told so."""
        self.upkeep = Retention(self.store, self.logs, _limits(self.settings))
        parts.callback(self.upkeep.close)
        self.listeners.append(self.upkeep.news)
        self.run(parts, "upkeep", self.upkeep.run, restart=True)

    async def open_rpc(self, parts: AsyncExitStack) -> None:
        """The calls: last to begin, first to end."""
        self.service = Service(self.store, self.tails, self.dispatcher, self.upkeep, self.settings)
        self.rpc = RpcServer(self.service, self.settings, max_connections=self.open_files.max_connections)
        parts.push_async_callback(self.rpc.stop)
        self.rpc.listen()
        if not is_loopback(self.settings.listen):
            address = f"{self.settings.listen.rpartition(':')[0]}:{self.port}"
            log.warning(
                f"anybody who reaches {address} can run containers, which is root on the engine's host; "
                "there is no authentication"
            )
        # Until a host was reached nothing has changed, and health has to answer all the same.
        await self.rpc.serving("engine", self.dispatcher.up)
        self.run(parts, "health of engines", self._tell_engine_health, restart=True)
        self.run(
            parts, "health of the store", lambda: self.fitness.watch(self.store, self.rpc.store_can_write), restart=True
        )
        await self.rpc.start()

    def run(
        self, parts: AsyncExitStack, name: str, work: Callable[[], Coroutine[Any, Any, None]], *, restart: bool
    ) -> None:
        """Run endless work of a part until that part is closed."""
        parts.push_async_callback(_cancelled, self.supervisor.task(name, work, restart=restart))

    # ---- who wakes whom

    def _committed(self, executions: Sequence[Execution]) -> None:
        try:
            for listener in self.listeners:
                listener(executions)
        except Exception as error:
            # Who missed a change would wait for it for ever.
            self.supervisor.down("announcing a commit", error)

    def _tell_host_changed(self, host: Host) -> None:
        with suppress(RuntimeError):  # the loop is closed: nobody is there to be told
            self.loop.call_soon_threadsafe(self._host_changed, host)

    def _host_changed(self, host: Host) -> None:
        self.dispatcher.host_changed(host.name)
        self._engine_changed.set()
        _warn_of_twins(host, self.hosts)
        self._sweepers[host.name].wake()

    async def _tell_engine_health(self) -> None:
        while True:
            self._engine_changed.clear()
            await self.rpc.serving("engine", self.dispatcher.up)
            await self._engine_changed.wait()

    async def _close_hosts(self) -> None:
        # Beside each other: one that hangs is waited for, for a moment.
        await asyncio.gather(*(asyncio.to_thread(host.close) for host in self.hosts))

    # ---- the end that nobody asked for

    def _down(self, name: str, error: BaseException) -> None:
        """Called on any thread."""
        with suppress(RuntimeError):  # the loop is closed: it is down
            self.loop.call_soon_threadsafe(self._fail, name, error)

    def _fail(self, name: str, error: BaseException) -> None:
        if not self._failure.done():
            failed = ServerFailed(
                f"the server went down because of a defect: {name} failed with {error!r}; its log has more"
            )
            failed.__cause__ = error
            self._failure.set_exception(failed)
            # Where the server is closing already nobody asks any more.
            self._failure.exception()


async def _cancelled(task: "asyncio.Task[None]") -> None:
    task.cancel()
    await asyncio.wait([task])


def _log_loop_error(loop: asyncio.AbstractEventLoop, context: Mapping[str, Any]) -> None:
    error = context.get("exception")
    log.error("a defect of fastlane: a callback failed", message=context.get("message"), exc_info=error)


def _open_store(
    settings: Settings,
    committed: Callable[[Sequence[Execution]], None],
    failed: Callable[[], None],
    loop: asyncio.AbstractEventLoop,
    supervisor: Supervisor,
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
            supervisor=supervisor,
        )
    except StoreFailed as error:
        raise CannotServe(str(error)) from error


def _limits(settings: Settings) -> Limits:
    """Zero bytes: that was turned off. None: it was not said."""
    total = settings.max_total_log_bytes
    if total is None:
        total = disk_bytes(settings.data_dir) // 2
    return Limits(settings.keep_logs, settings.keep_jobs, total or None)


def _host(configured: HostSettings, store: Store, settings: Settings, supervisor: Supervisor) -> Host:
    captures = CaptureChoice(
        configured.capture,
        settings.data_dir,
        instance=store.instance,
        max_log_bytes=settings.max_log_bytes,
        seen_as=configured.engine_data_dir,
        host=configured.name,
    )
    return Host(configured.name, configured.engine, instance=store.instance, captures=captures, supervisor=supervisor)


def _warn_of_twins(host: Host, hosts: Sequence[Host]) -> None:
    """Two hosts that are one engine work; but that engine gets as many containers as both may have. Not refused:
    machines that were copied with an engine on them have engines that say the same of themselves."""
    for other in hosts:
        if other is not host and host.up and host.engine_id and other.engine_id == host.engine_id:
            log.warning(
                "two hosts say that they are the same engine",
                host=host.name,
                other=other.name,
                engine_id=host.engine_id,
            )


def _log_to_stderr(*, colors: bool) -> None:
    """One line for each change of state: for people on a terminal, as JSON elsewhere. Tracebacks without the values of
    variables: these may be secrets."""
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
    """Done at the first SIGTERM or SIGINT. The second one ends the process where it stands: what was answered is on
    disk."""
    stopping: asyncio.Future[None] = loop.create_future()

    def stop() -> None:
        if stopping.done():
            os._exit(1)
        stopping.set_result(None)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    return stopping
