"""A host: one backend, and the thread that listens to its events and puts them into the mailboxes of executions.

When the backend goes away and comes back, every watching execution gets EngineGone and EngineBack, and checks for
itself what happened in between.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime

import structlog

from fastlane_grpc.backend import Backend, BackendDown, BackendRefuses, ContainerEvent, EventStream, UnreadableEvent
from fastlane_grpc.backoff import Backoff
from fastlane_grpc.capture.capture import Captures
from fastlane_grpc.clock import boottime
from fastlane_grpc.execution.concurrency_limit import ConcurrencyLimit
from fastlane_grpc.execution.events import Died, EngineBack, EngineGone, Started
from fastlane_grpc.model import Availability, HostKind, HostReport, Nodes, utc_now
from fastlane_grpc.runner import Event, Mailbox
from fastlane_grpc.supervisor import ALONE, Supervisor

# Pause between pings, and the time that an answer may take. A frozen engine keeps its connections: only a ping tells.
PING_SECONDS = 10
PING_ANSWER_SECONDS = 5
# Pauses between tries to connect to an engine.
RECONNECTS = Backoff(0.1, 2.0)
# Least time between two resyncs, in which executions inspect their containers after an event that could not be read.
RESYNC_SECONDS = 1.0
# Time after which the nodes of a cluster are counted again.
NODES_SECONDS = 60.0
# Executions of a host whose containers have ended, and which are brought to their end at the same time. Thousands that
# end together would keep the interpreter from calls. Ends that an engine does not answer count for this time.
ENDS_AT_ONCE = 32
END_HANG_SECONDS = 0.5
# The longest wait for the listening thread at the end.
CLOSE_SECONDS = 0.5

log = structlog.get_logger(__name__)


class Host:
    """A backend under the name that executions have for the host.

    `up` says that the backend answers and that it is known how to capture the output of its containers.
    """

    def __init__(
        self,
        name: str,
        backend: Backend,
        captures: Captures,
        *,
        ping_seconds: float = PING_SECONDS,
        supervisor: Supervisor = ALONE,
    ) -> None:
        self.name = name
        self.backend = backend
        self.captures = captures
        self.up = False
        self.ends = ConcurrencyLimit(ENDS_AT_ONCE, hang_seconds=END_HANG_SECONDS)
        # As of the engine's last answer; empty before, and if the engine does not tell.
        self.engine_id = self.engine_version = ""
        self._nodes: Nodes | None = None
        self._identified_time = 0.0
        # The last failure. The text stays when the host is up again.
        self.last_error = ""
        self.last_error_time: datetime | None = None
        # Whether the failure was logged.
        self._logged_down = False
        self._ping_seconds = ping_seconds
        self._on_change: Callable[[], None] = lambda: None
        self._watchers: dict[str, Mailbox] = {}
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._stream: EventStream | None = None
        # Faults of unreadable events that were logged already; and whether a resync is due because of such an event.
        self._not_understood: set[str] = set()
        self._missed = False
        self._resync_time = 0.0
        self._thread = supervisor.thread(f"host-{name}", self._listen, restart=True)

    def start(self, on_change: Callable[[], None]) -> None:
        """Start listening; the engine need not be up. `on_change` is called after a change of `up`."""
        self._on_change = on_change
        self._thread.start()

    def close(self) -> None:
        """Stop listening, without an event to anybody.

        A thread that waits for a hung engine is left behind: as a daemon, it does not delay the end of the process.
        """
        with self._lock:
            self._closing.set()
            if self._stream is not None:
                self._stream.cut()
        if self._thread.ident is not None:
            self._thread.join(CLOSE_SECONDS)

    @contextmanager
    def watching(self, execution_id: str, mailbox: Mailbox) -> Iterator[None]:
        """Put the events of the execution's container and of the engine into this mailbox, within the context."""
        with self._lock:
            self._watchers[execution_id] = mailbox
        try:
            yield
        finally:
            with self._lock:
                del self._watchers[execution_id]

    def check_now(self) -> None:
        """Check now whether the engine answers. A host whose engine does not is marked down before this returns."""
        self._check()

    def _listen(self) -> None:
        failures = 0
        while not self._closing.is_set():
            try:
                stream = self.backend.events()
            except (BackendDown, BackendRefuses) as error:
                log.debug("host not reached", host=self.name, error=str(error))
                self._failed(str(error))
                self._closing.wait(RECONNECTS.pause_seconds(failures))
                failures += 1
                continue
            failures = 0
            with self._lock:
                self._stream = stream
                if self._closing.is_set():
                    stream.cut()
            why = "a defect of fastlane, see the server's log"
            try:
                self._follow(stream)
                why = "the engine went away: it broke off the stream of its events"
            finally:
                # Whatever ended the stream, no event arrives now: executions on a host that stayed up would wait for
                # ever.
                self._not_followed(stream, why)

    def _follow(self, stream: EventStream) -> None:
        """Handle events until the connection breaks."""
        heard_since = boottime()
        stream.set_timeout(self._ping_seconds)
        self._broadcast(EngineBack())
        self._determine_capture()
        while True:
            try:
                for event in stream.events():
                    self._received(event, heard_since)
                return
            except TimeoutError:
                self._check()
                self._resync_executions()
                self._count_nodes()
            except OSError:
                return

    def _not_followed(self, stream: EventStream, why: str) -> None:
        stream.cut()
        with self._lock:
            self._stream = None
        if not self._closing.is_set():
            self._failed(why)
            self._set_up(False)
            self._broadcast(EngineGone(boottime()))
        self.backend.forget()

    def _received(self, event: ContainerEvent | UnreadableEvent, heard_since: float) -> None:
        if isinstance(event, UnreadableEvent):
            self._skip_event(event)
        else:
            with self._lock:
                mailbox = self._watchers.get(event.execution_id)
            if mailbox is not None:
                mailbox.put(
                    Died(event.exit_code, event.time_ns, heard_since, event.container_id, event.interruption)
                    if event.died
                    else Started()
                )
        self._resync_executions()
        self._count_nodes()

    def _skip_event(self, event: UnreadableEvent) -> None:
        """Skip an event that cannot be read, and note a resync, as the event may have been the end of a container."""
        self._missed = True
        if event.fault not in self._not_understood:
            self._not_understood.add(event.fault)
            log.warning(
                "an event of the engine is passed over",
                host=self.name,
                fault=event.fault,
                line=event.line[:200].decode(errors="replace"),
            )

    def _resync_executions(self) -> None:
        """Have executions check what they missed, once for all skipped events."""
        if self._missed and boottime() >= self._resync_time + RESYNC_SECONDS:
            self._missed, self._resync_time = False, boottime()
            self._broadcast(EngineBack())

    def _check(self) -> None:
        try:
            self.backend.ping(min(self._ping_seconds, PING_ANSWER_SECONDS))
        except (BackendDown, BackendRefuses) as error:
            self._failed(str(error))
            self._set_up(False)
        else:
            # An engine that is going down may still answer, while its event stream has ended.
            if self._stream is not None and self.captures.in_use:
                self._set_up(True)
            elif self._stream is not None:
                self._determine_capture()

    def _determine_capture(self) -> None:
        """Mark the host up once it is known how the output of its containers is captured."""
        try:
            self._identify()
            self.captures.determine()
        except BackendDown as error:
            log.info("host does not answer", host=self.name, error=str(error))
            self._failed(str(error))
            self._set_up(False)
        else:
            if not self.captures.in_use:
                self._failed(self._no_capture)
            self._set_up(self.captures.in_use != "")

    def _identify(self) -> None:
        """Note the id and version of the engine. An engine behind a proxy may refuse to tell."""
        with suppress(BackendRefuses):
            info = self.backend.info()
            self.engine_id, self.engine_version, self._nodes = info.id, info.version, info.nodes
        self._identified_time = boottime()

    def _count_nodes(self) -> None:
        """Count the nodes of a cluster again, if that was long ago. Pings find a cluster that does not answer."""
        if self.backend.kind is HostKind.KUBERNETES and boottime() >= self._identified_time + NODES_SECONDS:
            self._identified_time = boottime()
            with suppress(BackendDown):
                self._identify()

    @property
    def availability(self) -> Availability:
        return Availability.UP if self.up else Availability.DOWN

    def report(self, *, running: int, max_running: int) -> HostReport:
        """Return the state of the host; the dispatcher knows the numbers of executions."""
        with self._lock:
            return HostReport(
                self.name,
                self.backend.address,
                self.availability,
                running,
                max_running,
                self.last_error,
                self.last_error_time,
                self.engine_version,
                self.captures.in_use,
                self.captures.reason,
                kind=self.backend.kind,
                nodes=self._nodes,
            )

    @property
    def error(self) -> str:
        """Return why the host takes no executions; empty if it takes some."""
        if self.up:
            return ""
        if self.captures.reason and not self.captures.in_use:
            return f"host {self.name!r} takes nothing: {self._no_capture}"
        return f"host {self.name!r} does not answer" + (f": {self.last_error}" if self.last_error else "")

    @property
    def _no_capture(self) -> str:
        return f"capture = recorder is set and the recorder does not work: {self.captures.reason}"

    def _failed(self, why: str) -> None:
        with self._lock:
            if self._closing.is_set():
                return
            self.last_error, self.last_error_time = why, utc_now()
            was_logged, self._logged_down = self._logged_down, True
        if not was_logged:
            log.warning(f"host {self.name!r} is down: {why}; trying again", host=self.name)

    def _set_up(self, up: bool) -> None:
        with self._lock:
            if up == self.up or self._closing.is_set():
                return
            self.up = up
            if up:
                self._logged_down = False
        if up:
            log.info(f"host {self.name!r} is up", host=self.name)
        self._on_change()

    def _broadcast(self, event: Event) -> None:
        with self._lock:
            watchers = list(self._watchers.values())
        for mailbox in watchers:
            mailbox.put(event)
