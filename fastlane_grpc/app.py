"""The server: its parts, opened in order and closed in reverse, and the notifications between them."""

import asyncio
import faulthandler
import gc
import os
import signal
import sys
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import asdict, dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, Self

import structlog
import uvloop

from fastlane_grpc.api import Inputs, OutputReader, Receivers, Service, payload
from fastlane_grpc.backend import BackendDown, capture_of
from fastlane_grpc.backoff import Backoff
from fastlane_grpc.call_log import CallLog
from fastlane_grpc.capture.capture import Capture, Captures
from fastlane_grpc.capture.kubelet import KubeletCapture, KubeletCaptures, NoNodeLogs
from fastlane_grpc.capture.pod_captures import PodCaptures
from fastlane_grpc.capture.relay_tokens import RelayTokens
from fastlane_grpc.capture.relayed import RelayedCapture, RelayedCaptures, RelayKit
from fastlane_grpc.config import AnyHostSettings, HostSettings, KubernetesHostSettings, Settings
from fastlane_grpc.counts import CallCounts, Counts
from fastlane_grpc.debugging import DebugDump, RecentLines, block_signals
from fastlane_grpc.dispatcher import LONGEST_SLEEP_SECONDS, Dispatcher
from fastlane_grpc.docker import (
    DEFAULT_MAX_LOG_BYTES,
    CaptureChoice,
    DockerBackend,
    DockerCaptures,
    Engine,
    capture_without_engine,
)
from fastlane_grpc.errors import CannotServe, ExecutionNotFound, ServerFailed, StoreFailed
from fastlane_grpc.execution import BackendRunner, Host, RemovedHostRunner, Step, Sweeper, UsageSampler, callers_trace
from fastlane_grpc.health_socket import open_health_socket
from fastlane_grpc.http.limits import HttpLimits
from fastlane_grpc.inputs import InputFiles
from fastlane_grpc.logs import Logs, Tails
from fastlane_grpc.machine.address import is_loopback
from fastlane_grpc.machine.data_directory import claimed, disk_bytes
from fastlane_grpc.machine.open_files import OpenFiles, raise_limit
from fastlane_grpc.model import Execution, PodCaptureMode, utc_now
from fastlane_grpc.notifications import LogEnd, MailSender, Notifier, SigningKeys, SmtpServer, WebhookSender
from fastlane_grpc.retention import Retention, RetentionLimits
from fastlane_grpc.rpc.relay import RelayServer
from fastlane_grpc.rpc.server import RpcServer
from fastlane_grpc.secrets import NamedSecrets
from fastlane_grpc.slots import HostSlots
from fastlane_grpc.store import Quota, Rules, Store, StoreHealth
from fastlane_grpc.supervisor import Supervisor
from fastlane_grpc.tracing import ADVICE, Tracing
from fastlane_grpc.trust import (
    Access,
    CertificateFiles,
    Certificates,
    TokenFile,
    TokensUnusable,
    read_authorities,
)
from fastlane_grpc.wakeup import Wakeup
from fastlane_grpc.watch import WatchHub

if TYPE_CHECKING:
    from fastlane_grpc.http.server import HttpServer
    from fastlane_grpc.kubernetes import ClusterApi
    from fastlane_grpc.prometheus import Metrics

# The time for queued writes when the server ends: a disk that hangs must not keep the server from ending.
_CLOSE_SECONDS = 5.0

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Ports:
    """The ports that a server listens on. `http` is 0 where HTTP is off."""

    rpc: int
    http: int


def serve(
    settings: Settings,
    ready: Callable[[Ports], None],
    step: Callable[[Step, str], None] = lambda step, execution_id: None,
    *,
    colors: bool = False,
    now: Callable[[], datetime] = utc_now,
    longest_sleep_seconds: float = LONGEST_SLEEP_SECONDS,
) -> None:
    """Serve until SIGTERM or SIGINT, and leave containers to the next server. Raises CannotServe, and ServerFailed
    where the server cannot continue.

    `ready` is called with the ports once the server answers calls. `step` is called for each step of each execution, on
    the thread of that execution. `colors` apply to the log on a terminal. `now`: the clock by which jobs are due and
    expire. The dispatcher looks at it at least every `longest_sleep_seconds`, as it may jump."""
    recent = RecentLines()
    _log_to_stderr(recent, colors=colors)
    os.umask(0o077)
    block_signals()
    faulthandler.enable()
    uvloop.run(_serve(settings, ready, step, now, longest_sleep_seconds, recent))


async def _serve(
    settings: Settings,
    ready: Callable[[Ports], None],
    step: Callable[[Step, str], None],
    now: Callable[[], datetime],
    longest_sleep_seconds: float,
    recent: RecentLines,
) -> None:
    stopping = _stop_signals(asyncio.get_running_loop())
    server = Server(settings, step, now=now, longest_sleep_seconds=longest_sleep_seconds, recent=recent)
    async with server:
        # What is there by now, mostly modules, stays until the end. A full collection that looks at all of it holds up
        # every stream for some 50 ms.
        gc.freeze()
        ready(Ports(server.port, server.http_port))
        await server.serve_until(stopping)


class Server:
    """A server made of parts: they open in order and close in reverse, also where opening one of them fails.

    An async context manager, created on its loop. Each `open_…` method opens one part, registers how to close that
    part, and needs only parts that were opened before. Tests replace parts by overriding these methods."""

    settings: Settings
    store: Store
    input_files: InputFiles
    logs: Logs
    tails: Tails
    watches: WatchHub
    dispatcher: Dispatcher
    retention: Retention
    notifier: Notifier
    service: Service
    rpc: RpcServer
    http: "HttpServer | None" = None
    # Those of TLS; None: connections are not encrypted.
    certificates: Certificates | None = None
    # The tokens in force; None: anybody may do anything.
    access: Access | None = None
    # Where calls are logged; None: nowhere.
    call_log: CallLog | None = None
    # None: no traces are exported.
    tracing: Tracing | None = None
    # The tokens of relays; None: no host is a cluster.
    relay_tokens: RelayTokens | None = None

    def __init__(
        self,
        settings: Settings,
        step: Callable[[Step, str], None] = lambda step, execution_id: None,
        *,
        now: Callable[[], datetime] = utc_now,
        longest_sleep_seconds: float = LONGEST_SLEEP_SECONDS,
        recent: RecentLines | None = None,
    ) -> None:
        """`now` and `longest_sleep_seconds`: see `serve`. `recent`: the lines of the log that a debug dump has; None:
        signals ask for none."""
        self.settings = settings
        self.step = step
        self.now = now
        self.longest_sleep_seconds = longest_sleep_seconds
        self.recent = recent
        self.loop = asyncio.get_running_loop()
        self._failure: asyncio.Future[NoReturn] = self.loop.create_future()
        self.supervisor = Supervisor(self._down)
        # Called in order, on the loop, with the executions of each commit.
        self.listeners: list[Callable[[Sequence[Execution]], None]] = []
        listeners = 1 + bool(settings.http_listen) + bool(settings.kubernetes_hosts)
        self.open_files = OpenFiles.of(raise_limit(), max_running=settings.max_running, listeners=listeners)
        self.store_health = StoreHealth()
        self.counts = Counts()
        self.hosts: Sequence[Host] = ()
        self._runners: Sequence[BackendRunner] = ()
        self._sweepers: dict[str, Sweeper] = {}
        self._engine_changed = Wakeup()

    @property
    def port(self) -> int:
        return self.rpc.port

    @property
    def http_port(self) -> int:
        return self.http.port if self.http else 0

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
        """Serve until `stopping` is done. Raises ServerFailed where the server cannot continue."""
        ends: list[asyncio.Future[Any]] = [stopping, self._failure]
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        if self._failure.done():
            self._failure.result()

    # ---- the parts, from the bottom up

    async def open(self, parts: AsyncExitStack) -> None:
        """Open all parts."""
        self.open_loop(parts)
        check_reach(self.settings)
        self.open_certificates(parts)
        self.open_data_dir(parts)
        self.open_debugging(parts)
        self.open_access(parts)
        self.open_call_log(parts)
        self.open_store(parts)
        self.open_inputs(parts)
        self.open_logs(parts)
        self.open_tails(parts)
        self.open_watches(parts)
        self.open_tracing(parts)
        await self.open_relays(parts)
        self.open_hosts(parts)
        self.open_dispatcher(parts)
        self.open_sweepers(parts)
        self.open_retention(parts)
        self.open_notifications(parts)
        await self.open_rpc(parts)
        await self.open_http(parts)

    def open_loop(self, parts: AsyncExitStack) -> None:
        """Log the errors of the loop's callbacks like all others."""
        parts.callback(self.loop.set_exception_handler, self.loop.get_exception_handler())
        self.loop.set_exception_handler(_log_loop_error)

    def open_certificates(self, parts: AsyncExitStack) -> None:
        """Read the files of TLS, if it is on."""
        settings = self.settings
        if settings.tls_cert and settings.tls_key:
            files = CertificateFiles(settings.tls_cert, settings.tls_key, settings.tls_client_ca)
            self.certificates = Certificates(files)

    def open_data_dir(self, parts: AsyncExitStack) -> None:
        """Lock the data directory until all other parts are closed: the next server may start then."""
        parts.enter_context(claimed(self.settings.data_dir))

    def open_debugging(self, parts: AsyncExitStack) -> None:
        """Write a debug dump at each signal for one. Opened early: a part may hang while it is opened."""
        if self.recent is None:
            return
        try:
            dump = DebugDump(self.settings, self._debug_facts, self.recent, loop=self.loop, supervisor=self.supervisor)
        except OSError as error:
            # A full disk is no reason not to serve.
            log.warning("no debug dumps can be written", fault=error.strerror)
        else:
            parts.callback(dump.close)

    def open_access(self, parts: AsyncExitStack) -> None:
        """Read the tokens, if calls need one."""
        if self.settings.auth != "tokens":
            return
        try:
            self.access = Access(TokenFile(self.settings.data_dir), self.now, public=self.settings.public)
        except TokensUnusable as error:
            raise CannotServe(str(error)) from error
        self.run(parts, "tokens", self.access.watch, restart=True)

    def open_call_log(self, parts: AsyncExitStack) -> None:
        """Open the access log and the slow-call log, if one is on. Closed after the last call."""
        settings = self.settings
        if settings.access_log or settings.slow_call:
            slow_seconds = settings.slow_call.total_seconds() if settings.slow_call else None
            self.call_log = CallLog(settings.access_log, slow_seconds=slow_seconds, supervisor=self.supervisor)
            parts.callback(self.call_log.close)

    def open_store(self, parts: AsyncExitStack) -> None:
        """Open the store, which is closed after all parts that write. Closing has a time limit."""
        self.store = _open_store(
            self.settings,
            self._committed,
            self.store_health.failed,
            self.loop,
            self.supervisor,
            self.now,
            self.counts,
        )
        parts.callback(self.store.close, _CLOSE_SECONDS)
        self.listeners += self.store.commit_listeners

    def open_inputs(self, parts: AsyncExitStack) -> None:
        """Find the contents of inputs, which calls store and executions read."""
        self.input_files = InputFiles(self.settings.data_dir / "inputs")

    def open_logs(self, parts: AsyncExitStack) -> None:
        """Open the files of logs and the system lines, which the threads of executions write."""
        self.logs = Logs(self.settings.data_dir / "logs")
        parts.callback(self.logs.close)

    def open_tails(self, parts: AsyncExitStack) -> None:
        """Open the readers of logs, with inotify and threads. Closed after the last call."""
        self.tails = Tails(
            self.logs, cache_bytes=self.settings.cache_bytes, loop=self.loop, max_open=self.open_files.max_open_logs
        )
        parts.callback(self.tails.close)
        self.listeners.append(self.tails.changed)

    def open_watches(self, parts: AsyncExitStack) -> None:
        """Run the hub of those who watch jobs. Closed after the last call."""
        self.watches = WatchHub(self.store)
        self.listeners.append(self.watches.changed)
        self.run(parts, "watches of jobs", self.watches.run, restart=True)

    def open_tracing(self, parts: AsyncExitStack) -> None:
        """Export traces of executions, if that is on. Closed after the last execution's thread."""
        if not self.settings.tracing:
            return
        try:
            from fastlane_grpc.tracing.otlp import OtlpExporter
        except ImportError as error:
            raise CannotServe(f"tracing is on, and OpenTelemetry is not installed: {ADVICE}") from error
        self.tracing = Tracing(self.store, OtlpExporter(self.store.instance, self.counts.spans))
        parts.push_async_callback(self.tracing.close)
        self.listeners.append(self.tracing.on_commit)
        self.run(parts, "traces", self.tracing.run, restart=True)

    async def open_relays(self, parts: AsyncExitStack) -> None:
        """Receive the output of pods, if a host is a cluster. Closed after the last execution's thread."""
        settings = self.settings
        if not settings.kubernetes_hosts:
            return
        self.relay_tokens = RelayTokens.kept_in(settings.data_dir)
        if not settings.relayed_hosts and not await self._has_relays():
            return
        relays = RelayServer(
            self.relay_tokens,
            self._relayed_directory,
            max_log_bytes=settings.max_log_bytes,
            max_connections=self.open_files.max_relays(sum(host.max_running for host in settings.kubernetes_hosts)),
            on_new_record=self.logs.new_record,
        )
        parts.push_async_callback(relays.stop)
        port = await relays.start(settings.relay_listen, self.certificates)
        _warn_of_plain_relays(settings, port)

    async def _has_relays(self) -> bool:
        """Whether relays of an earlier server still run, though no host is configured to have any."""
        left = [each.execution for each in await self.store.unfinished()]
        count = sum(capture_of(execution.handle) == RelayedCapture.name for execution in left)
        fault = _fault_of_plain_relays(self.settings)
        if count and fault:
            log.warning(f"the relays of {count} executions are not listened to: {fault}")
        return count > 0 and not fault

    async def _relayed_directory(self, execution_id: str) -> Path | None:
        """Return the directory of the record of an execution that has not ended; None: there is no such execution."""
        try:
            execution = await self.store.execution(execution_id)
        except ExecutionNotFound:
            return None
        return None if execution.state.final else self.logs.path(execution.id)

    def open_hosts(self, parts: AsyncExitStack) -> None:
        """Create the hosts. They listen from `open_sweepers` on, and are closed after the last execution's thread."""
        self.hosts = [self._host(each) for each in self.settings.hosts]
        parts.push_async_callback(self._close_hosts)

    def _host(self, configured: AnyHostSettings) -> Host:
        if isinstance(configured, KubernetesHostSettings):
            return self._kubernetes_host(configured)
        return self._docker_host(configured)

    def _docker_host(self, configured: HostSettings) -> Host:
        settings, instance = self.settings, self.store.instance
        engine = Engine(configured.engine, certificates=configured.engine_cert_dir)
        backend = DockerBackend(
            engine,
            instance=instance,
            host=configured.name,
            default_pids=settings.default_pids,
            allowed=configured.allowed,
            registries=settings.registries,
        )
        choice = CaptureChoice(
            configured.capture,
            settings.data_dir,
            instance=instance,
            max_log_bytes=settings.max_log_bytes,
            seen_as=configured.engine_data_dir,
            host=configured.name,
        )
        return Host(configured.name, backend, DockerCaptures(engine, choice), supervisor=self.supervisor)

    def _kubernetes_host(self, configured: KubernetesHostSettings) -> Host:
        # Imported here: a server of Docker hosts alone needs none of it.
        from fastlane_grpc.kubernetes import KubernetesBackend, api_of, pods_of

        try:
            api = api_of(configured)
        except BackendDown as error:
            raise CannotServe(f"host {configured.name!r}: {error}") from error
        backend = KubernetesBackend(
            api,
            instance=self.store.instance,
            host=configured.name,
            settings=pods_of(configured),
            registries=self.settings.registries,
            default_timeout=self.settings.default_timeout,
        )
        captures = self._captures_of_pods(configured, api)
        return Host(configured.name, backend, captures, supervisor=self.supervisor)

    def _captures_of_pods(self, configured: KubernetesHostSettings, api: "ClusterApi") -> Captures:
        from fastlane_grpc.kubernetes import PodLogs

        max_log_bytes = self.settings.max_log_bytes
        assert self.relay_tokens, "opened before the hosts"
        kit = RelayKit(
            configured.kit_image,
            configured.relay_address,
            self.relay_tokens,
            max_log_bytes,
            self._authorities_of_relays(),
            api.pod_of_account,
        )
        kubelet = KubeletCaptures(PodLogs(api), max_log_bytes=max_log_bytes)
        present = RelayedCaptures if configured.capture is PodCaptureMode.RELAY else KubeletCaptures
        return PodCaptures({RelayedCaptures.name: RelayedCaptures(kit), kubelet.name: kubelet}, present.name)

    def _authorities_of_relays(self) -> Callable[[], str]:
        """Return a function that returns the certificates by which relays know this server; empty: without TLS."""
        certificates, file = self.certificates, self.settings.relay_ca
        if certificates is None:
            return lambda: ""
        if file is None:
            return lambda: certificates.current().public
        authorities = read_authorities("relay_ca", file)
        return lambda: authorities

    def open_dispatcher(self, parts: AsyncExitStack) -> None:
        """Run the dispatcher until the last call was answered. Its containers are left to the next server."""
        settings = self.settings
        self._runners = [
            BackendRunner(
                self.store,
                self.logs,
                host,
                default_timeout=settings.default_timeout,
                step=self.step,
                inputs=self.input_files,
                secrets=NamedSecrets(settings.secrets),
                max_output_bytes=settings.max_output_bytes,
                trace_of=self.tracing.trace_of if self.tracing else callers_trace,
            )
            for host in self.hosts
        ]
        gone = RemovedHostRunner(
            self.store,
            self.logs,
            _capture_without_host,
            default_timeout=settings.default_timeout,
            step=self.step,
        )
        hosts = zip(self.hosts, self._runners, settings.hosts, strict=True)
        self.dispatcher = Dispatcher(
            self.store,
            [HostSlots(host, runner, each.max_running) for host, runner, each in hosts],
            removed=gone,
            max_running=settings.max_running,
            pools=settings.pools_of_hosts,
            supervisor=self.supervisor,
            now=self.now,
            longest_sleep_seconds=self.longest_sleep_seconds,
        )
        self.dispatcher.on_availability_change = self._engine_changed.set
        self.listeners.append(self.dispatcher.on_change)
        # Not restarted: a restarted dispatcher would adopt the executions of its own threads.
        self.run(parts, "dispatcher", self.dispatcher.run, restart=False)
        parts.push_async_callback(self.dispatcher.close)

    def open_sweepers(self, parts: AsyncExitStack) -> None:
        """Start a sweeper for each host, and the host's listener."""
        self._sweepers = {
            host.name: Sweeper(runner, host, self.supervisor)
            for host, runner in zip(self.hosts, self._runners, strict=True)
        }
        for host in self.hosts:
            parts.callback(self._sweepers[host.name].close)
            self._sweepers[host.name].start()
            host.start(partial(self._tell_host_changed, host))

    def open_retention(self, parts: AsyncExitStack) -> None:
        """Run retention until the server stops. A call that prunes then ends with ServerStopping."""
        self.retention = Retention(self.store, self.logs, _limits(self.settings), inputs=self.input_files)
        parts.callback(self.retention.close)
        self.listeners.append(self.retention.on_change)
        self.run(parts, "retention", self.retention.run, restart=True)

    def open_notifications(self, parts: AsyncExitStack) -> None:
        """Deliver notifications until the server stops. Attempts under way are made once more by the next server."""
        settings = self.settings
        self.signing_keys = SigningKeys(settings.webhook_secrets)
        log_end = LogEnd(self.logs, settings.secret_names)
        parts.callback(log_end.close)
        webhooks = WebhookSender(
            settings.webhook_networks,
            self.signing_keys,
            default_timeout=settings.webhook_timeout,
            payload=partial(payload, external_url=settings.external_url or "", secret_names=settings.secret_names),
        )
        parts.push_async_callback(webhooks.close)
        self.notifier = Notifier(
            self.store,
            webhooks=webhooks,
            mails=MailSender(
                _smtp_server(settings),
                log_end.lines,
                secret_names=settings.secret_names,
                external_url=settings.external_url or "",
            ),
            max_retries=settings.notify_retries,
            backoff=Backoff(settings.notify_backoff.total_seconds(), settings.notify_max_backoff.total_seconds()),
            counts=self.counts.notifications,
            now=self.now,
        )
        self.listeners.append(self.notifier.on_change)
        self.run(parts, "notifications", self.notifier.run, restart=True)

    async def open_rpc(self, parts: AsyncExitStack) -> None:
        """Serve the calls over gRPC."""
        inputs = Inputs(self.input_files, self.settings)
        parts.callback(inputs.close)
        outputs = OutputReader(self.logs)
        parts.callback(outputs.close)
        usage = UsageSampler(self.hosts)
        parts.callback(usage.close)
        self.service = Service(
            self.store,
            self.tails,
            self.dispatcher,
            self.retention,
            self.settings,
            self.watches,
            inputs,
            outputs,
            usage,
            Receivers(
                has_mail=bool(self.settings.smtp_host),
                has_key=self.signing_keys.has,
                networks=self.settings.webhook_networks,
            ),
        )
        self.listeners.append(self.service.job_watches.changed)
        self.listeners.append(self.service.unwatched_jobs.changed)
        self.rpc = RpcServer(
            self.service,
            self.settings,
            max_connections=self.open_files.max_connections,
            counts=self.counts,
            certificates=self.certificates,
            access=self.access,
            call_log=self.call_log,
        )
        parts.push_async_callback(self.rpc.stop)
        self.rpc.listen()
        _warn_of_reach(self.settings, self.settings.listen, self.port)
        # Set once here: health must answer before the first change of a host.
        await self.rpc.serving("engine", self.dispatcher.up)
        self.run(parts, "jobs that nobody watches", self.service.unwatched_jobs.run, restart=True)
        self.run(parts, "health of engines", self._tell_engine_health, restart=True)
        self.run(
            parts,
            "health of the store",
            lambda: self.store_health.watch(self.store, self.rpc.store_can_write),
            restart=True,
        )
        await self.rpc.start()
        await self._open_health_socket(parts)

    async def _open_health_socket(self, parts: AsyncExitStack) -> None:
        try:
            await open_health_socket(self.settings.data_dir, self.rpc.is_serving, parts)
        except OSError as error:
            # The health service of gRPC and the paths of HTTP tell the same.
            log.warning("the health of this server cannot be asked by `fastlane health`", fault=error.strerror)

    async def open_http(self, parts: AsyncExitStack) -> None:
        """Serve the calls over HTTP, unless that is off: opened last, closed first."""
        if not self.settings.http_listen:
            return
        # Imported here, as the metrics are: a server without HTTP starts sooner.
        from fastlane_grpc.http.server import HttpServer

        self.http = HttpServer(
            self.service,
            self.settings,
            self.rpc.is_serving,
            HttpLimits(max_connections=self.open_files.max_connections),
            scrape=self._metrics(parts).scrape,
            counts=self.counts,
            certificates=self.certificates,
            access=self.access,
            call_log=self.call_log,
            supervisor=self.supervisor,
        )
        parts.push_async_callback(self.http.stop)
        self.http.listen()
        _warn_of_reach(self.settings, self.settings.http_listen, self.http.port)
        await self.http.start()

    def _metrics(self, parts: AsyncExitStack) -> "Metrics":
        from fastlane_grpc.prometheus import Metrics, take_snapshot

        metrics = Metrics(
            lambda version: take_snapshot(
                version,
                self.settings,
                self.counts,
                self.store,
                self.tails,
                self.dispatcher,
                lambda: self.rpc.is_serving("server"),
            )
        )
        parts.callback(metrics.close)
        return metrics

    def run(
        self, parts: AsyncExitStack, name: str, work: Callable[[], Coroutine[Any, Any, None]], *, restart: bool
    ) -> None:
        """Run the endless work of a part until the part is closed."""
        parts.push_async_callback(_cancelled, self.supervisor.task(name, work, restart=restart))

    # ---- notifications between parts

    def _committed(self, executions: Sequence[Execution]) -> None:
        try:
            for listener in self.listeners:
                listener(executions)
        except Exception as error:
            # A part that missed a change would wait for it for ever.
            self.supervisor.down("announcing a commit", error)

    def _tell_host_changed(self, host: Host) -> None:
        with suppress(RuntimeError):  # the loop is closed: no part is left to notify
            self.loop.call_soon_threadsafe(self._host_changed, host)

    def _host_changed(self, host: Host) -> None:
        self.dispatcher.host_changed(host.name)
        self._engine_changed.set()
        _warn_of_duplicates(host, self.hosts)
        self._sweepers[host.name].wake()

    async def _tell_engine_health(self) -> None:
        while True:
            self._engine_changed.clear()
            await self.rpc.serving("engine", self.dispatcher.up)
            await self._engine_changed.wait()

    async def _close_hosts(self) -> None:
        # At the same time: each waits a moment for a thread that hangs.
        await asyncio.gather(*(asyncio.to_thread(host.close) for host in self.hosts))

    def _debug_facts(self) -> Mapping[str, Callable[[], object]]:
        """Return what each part tells in a debug dump. Called on another thread: nothing is changed, or waited for."""
        return {
            "health": lambda: {name: self.rpc.is_serving(name) for name in ("live", "server", "engine")},
            "store": lambda: {
                "writes_waiting": self.store.writes_waiting,
                "reads_waiting": self.store.reads_waiting,
                "commits": sum(self.counts.store.seconds.counts),
                "commit_seconds": round(self.counts.store.seconds.sum, 3),
                "new_jobs": self.counts.store.new_jobs.value,
                "failures": self.counts.store.failures.value,
                "claims": self.store.execution_counts.claims,
                "requeues": self.store.execution_counts.requeues,
                "starts": dict(self.store.execution_counts.starts),
                "ends": {
                    f"{state.name} {reason.name}": count
                    for (state, reason), count in self.store.execution_counts.ends.items()
                },
                "sqlite": self.store.sqlite_version,
            },
            "dispatcher": lambda: {
                "slots": self.settings.max_running,
                "slots_used": self.dispatcher.running,
                "claimed_waits": {str(each): count for each, count in self.dispatcher.claimed_waits.items()},
            },
            "hosts": lambda: [
                {
                    **asdict(state),
                    "engine_version": host.engine_version,
                    "error": host.error,
                    "last_error": host.last_error,
                    "last_error_time": host.last_error_time,
                }
                for host, state in zip(self.hosts, self.dispatcher.host_states, strict=True)
            ],
            "logs": lambda: {
                "open": self.tails.open_logs,
                "cache_bytes": self.tails.cache.bytes,
                "cache_reads": self.tails.cache.reads,
                "bytes_sent": dict(self.tails.bytes_sent),
            },
            "streams_open": lambda: self.service.streams_open,
            "grpc_calls": lambda: _calls(self.counts.grpc),
            "http_requests": lambda: _calls({" ".join(at): each for at, each in self.counts.http.items()}),
            "notification_attempts": lambda: {
                " ".join(map(str, key)): count for key, count in self.counts.notifications.attempts.items()
            },
        }

    # ---- failure

    def _down(self, name: str, error: BaseException) -> None:
        """Make `serve_until` raise ServerFailed. Called on any thread."""
        with suppress(RuntimeError):  # the loop is closed: it is down
            self.loop.call_soon_threadsafe(self._fail, name, error)

    def _fail(self, name: str, error: BaseException) -> None:
        if not self._failure.done():
            failed = ServerFailed(
                f"the server went down because of a defect: {name} failed with {error!r}; its log has more"
            )
            failed.__cause__ = error
            self._failure.set_exception(failed)
            # Retrieved here: a server that is closing already does not.
            self._failure.exception()


async def _cancelled(task: "asyncio.Task[None]") -> None:
    task.cancel()
    await asyncio.wait([task])


def _calls(counts: Mapping[str, CallCounts]) -> Mapping[str, object]:
    """Return counts of calls by their kind, without kinds that nobody has called."""
    return {
        kind: {"in_flight": each.in_flight, "ended": dict(each.ended), "seconds": round(each.seconds.sum, 3)}
        for kind, each in dict(counts).items()
        if each.in_flight or each.ended
    }


def _log_loop_error(loop: asyncio.AbstractEventLoop, context: Mapping[str, Any]) -> None:
    error = context.get("exception")
    log.error("a defect of fastlane: a callback failed", message=context.get("message"), exc_info=error)


def _open_store(
    settings: Settings,
    committed: Callable[[Sequence[Execution]], None],
    failed: Callable[[], None],
    loop: asyncio.AbstractEventLoop,
    supervisor: Supervisor,
    now: Callable[[], datetime],
    counts: Counts,
) -> Store:
    quota = Quota.of(settings.data_dir, max_waiting=settings.max_waiting, min_free_bytes=settings.min_free_bytes)
    try:
        return Store.open(
            settings.data_dir,
            on_commit=committed,
            loop=loop,
            quota=quota,
            secret_names=settings.secret_names,
            rules=Rules(default_history=settings.default_history, default_notifications=settings.default_notifications),
            on_failure=failed,
            supervisor=supervisor,
            now=now,
            pools=settings.pools_of_hosts,
            counts=counts.store,
        )
    except StoreFailed as error:
        raise CannotServe(str(error)) from error


def _limits(settings: Settings) -> RetentionLimits:
    """Return the limits of retention. Without a setting logs may take half of the disk; 0 bytes mean no limit."""
    total = settings.max_total_log_bytes
    if total is None:
        total = disk_bytes(settings.data_dir) // 2
    return RetentionLimits(
        settings.keep_logs, settings.keep_jobs, total or None, keep_deliveries=settings.keep_deliveries
    )


def _smtp_server(settings: Settings) -> SmtpServer | None:
    if not settings.smtp_host or not settings.smtp_from:
        return None
    return SmtpServer(
        settings.smtp_host,
        settings.smtp_port,
        settings.smtp_tls,
        settings.smtp_from,
        settings.smtp_user or "",
        settings.smtp_password_file,
    )


def _capture_without_host(directory: Path, execution: Execution, log_line: Callable[[str], None]) -> Capture:
    """Return the capture of an execution on a host that is not configured any more."""
    capture = capture_of(execution.handle)
    if capture == RelayedCapture.name:
        return RelayedCapture(directory, execution.id, None)
    if capture == KubeletCapture.name:
        left = KubeletCaptures(NoNodeLogs(), max_log_bytes=DEFAULT_MAX_LOG_BYTES)
        return left.for_existing(directory, execution, log_line)
    return capture_without_engine(directory, execution, log_line)


def _insecurities(settings: Settings) -> str:
    """Return what makes it unsafe to serve other machines; empty: nothing."""
    faults = []
    if not settings.tls_cert:
        faults.append("connections are not encrypted (tls_cert)")
    if settings.auth != "tokens" and not settings.tls_client_ca:
        faults.append("anyone can run containers, which is root on the engine's host (auth = tokens, or tls_client_ca)")
    return ", and ".join(faults)


def check_reach(settings: Settings) -> None:
    """Raise CannotServe where other machines reach a server that is not safe, unless that is wanted."""
    if settings.insecure:
        return
    faults = _insecurities(settings)
    for listen in (settings.listen, settings.http_listen):
        if listen and faults and not is_loopback(listen):
            raise CannotServe(
                f"other machines reach {listen}: {faults}; set these, listen on 127.0.0.1, or accept it with --insecure"
            )
    if settings.relayed_hosts and (fault := _fault_of_plain_relays(settings)):
        raise CannotServe(fault)


def _fault_of_plain_relays(settings: Settings) -> str:
    """Return what is wrong with listening for relays; empty: nothing, or it is accepted."""
    if settings.insecure or settings.tls_cert or is_loopback(settings.relay_listen):
        return ""
    return (
        f"pods would send their output to {settings.relay_listen}, and get secrets of jobs, in the clear "
        "(tls_cert); set tls_cert and tls_key, or accept it with --insecure"
    )


def _warn_of_plain_relays(settings: Settings, port: int) -> None:
    if not settings.tls_cert and not is_loopback(settings.relay_listen):
        address = f"{settings.relay_listen.rpartition(':')[0]}:{port}"
        log.warning(f"insecure: pods send their output to {address}, and get secrets, in the clear (tls_cert)")


def _warn_of_reach(settings: Settings, listen: str, port: int) -> None:
    if (faults := _insecurities(settings)) and not is_loopback(listen):
        log.warning(f"insecure: other machines reach {listen.rpartition(':')[0]}:{port}: {faults}")


def _warn_of_duplicates(host: Host, hosts: Sequence[Host]) -> None:
    """Warn of two hosts that are the same engine, which then runs as many containers as both allow.

    Not an error: on machines that were copied, different engines have the same id."""
    if not isinstance(host.backend, DockerBackend):
        # Two hosts may be one namespace on purpose: their pods have different nodes.
        return
    for other in hosts:
        if other is not host and host.up and host.engine_id and other.engine_id == host.engine_id:
            log.warning(
                "two hosts have the same engine id",
                host=host.name,
                other=other.name,
                engine_id=host.engine_id,
            )


def _log_to_stderr(recent: RecentLines, *, colors: bool) -> None:
    """Log to stderr: text on a terminal, else JSON. Tracebacks are logged without values, which may be secrets."""
    is_terminal = sys.stderr.isatty()
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            recent,
            structlog.dev.ConsoleRenderer(colors=colors, exception_formatter=structlog.dev.plain_traceback)
            if is_terminal
            else structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger("info"),
        logger_factory=lambda *_: _StderrLogger(sys.stderr),
        cache_logger_on_first_use=True,
    )


class _StderrLogger(structlog.WriteLogger):
    """A logger that drops lines which cannot be written: the disk is full, or the reader has gone.

    A line is written as one piece, under structlog's lock for the file: the access log may go there, too."""

    def msg(self, message: str) -> None:
        with suppress(OSError, ValueError):
            super().msg(message)

    log = debug = info = warn = warning = fatal = failure = err = error = critical = exception = msg


def _stop_signals(loop: asyncio.AbstractEventLoop) -> "asyncio.Future[None]":
    """Return a future that is done at the first SIGTERM or SIGINT. The second signal ends the process at once, which is
    safe: all that callers were told is on disk."""
    stopping: asyncio.Future[None] = loop.create_future()

    def stop() -> None:
        if stopping.done():
            os._exit(1)
        stopping.set_result(None)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    return stopping
