"""A host: one engine, and the thread that listens to its events and puts them into the mailboxes of executions.

When the engine goes away and comes back, every watching execution gets EngineGone and EngineBack, and checks for itself
what happened in between.
"""

import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from typing import NamedTuple

import structlog

from fastlane_grpc.backoff import Backoff
from fastlane_grpc.capture.choice import CaptureChoice
from fastlane_grpc.clock import boottime
from fastlane_grpc.docker.engine import EXECUTION_LABEL, INSTANCE_LABEL, Engine
from fastlane_grpc.docker.http import MAX_LINE_BYTES, EngineDown, EngineRefuses, EngineRequest
from fastlane_grpc.execution.events import Died, EngineBack, EngineGone, Started
from fastlane_grpc.model import Availability, HostReport, container_name, utc_now
from fastlane_grpc.runner import Event, Mailbox
from fastlane_grpc.supervisor import ALONE, Supervisor

# Pause between pings, and the time that an answer may take. A frozen engine keeps its connections: only a ping tells.
PING_SECONDS = 10
PING_ANSWER_SECONDS = 5
# Pauses between tries to connect to an engine.
RECONNECTS = Backoff(0.1, 2.0)
# Least time between two resyncs, in which executions inspect their containers after an event that could not be read.
RESYNC_SECONDS = 1.0
# The longest wait for the listening thread at the end.
CLOSE_SECONDS = 0.5
# How far back the engine is asked for its past events.
RECALL_SECONDS = 5
# The events of containers that the engine is asked for.
EVENTS = ["start", "unpause", "die"]

log = structlog.get_logger(__name__)


class Host:
    """The engine at `address` (`unix:///path` or `tcp://host:port`).

    `up` says that the engine answers and that it is known how to capture the output of its containers.
    """

    def __init__(
        self,
        name: str,
        address: str,
        *,
        instance: str,
        captures: CaptureChoice,
        ping_seconds: float = PING_SECONDS,
        supervisor: Supervisor = ALONE,
    ) -> None:
        self.name = name
        self.instance = instance
        self.captures = captures
        self.up = False
        self.engine = Engine(address)
        # As of the engine's last answer; empty before, and if the engine does not tell.
        self.engine_id = self.engine_version = ""
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
        self._request: EngineRequest | None = None
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
            if self._request is not None:
                self._request.cut()
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
                # The answer begins a moment before the engine registers the listener. `since` brings the events of that
                # moment; an event that comes twice does no harm.
                request = self.engine.events(self._filters(), since=f"{time.time() - RECALL_SECONDS:.9f}")
            except (EngineDown, EngineRefuses) as error:
                log.debug("host not reached", host=self.name, error=str(error))
                self._failed(str(error))
                self._closing.wait(RECONNECTS.pause_seconds(failures))
                failures += 1
                continue
            failures = 0
            with self._lock:
                self._request = request
                if self._closing.is_set():
                    request.cut()
            why = "a defect of fastlane, see the server's log"
            try:
                self._follow(request)
                why = "the engine went away: it broke off the stream of its events"
            finally:
                # Whatever ended the stream, no event arrives now: executions on a host that stayed up would wait for
                # ever.
                self._not_followed(request, why)

    def _follow(self, request: EngineRequest) -> None:
        """Handle events until the connection breaks."""
        heard_since = boottime()
        request.set_timeout(self._ping_seconds)
        self._broadcast(EngineBack())
        self._determine_capture()
        while True:
            try:
                for line in request.lines():
                    self._received(line, heard_since)
                return
            except TimeoutError:
                self._check()
                self._resync_executions()
            except OSError:
                return

    def _not_followed(self, request: EngineRequest, why: str) -> None:
        request.cut()
        with self._lock:
            self._request = None
        if not self._closing.is_set():
            self._failed(why)
            self._set_up(False)
            self._broadcast(EngineGone(boottime()))
        self.engine.forget()

    def _received(self, line: bytes, heard_since: float) -> None:
        event = _read_event(line)
        if isinstance(event, str):
            self._skip_event(event, line)
        else:
            with self._lock:
                mailbox = self._watchers.get(event.execution_id)
            # A container from an image that was committed from an execution's container has the same labels. Only the
            # name is unique.
            if mailbox is not None and event.container_name == container_name(event.execution_id):
                mailbox.put(
                    Died(event.exit_code, event.time_ns, heard_since, event.container_id) if event.died else Started()
                )
        self._resync_executions()

    def _skip_event(self, fault: str, line: bytes) -> None:
        """Skip an event that cannot be read, and note a resync, as the event may have been the end of a container."""
        self._missed = True
        if fault not in self._not_understood:
            self._not_understood.add(fault)
            log.warning(
                "an event of the engine is passed over",
                host=self.name,
                fault=fault,
                line=line[:200].decode(errors="replace"),
            )

    def _resync_executions(self) -> None:
        """Have executions check what they missed, once for all skipped events."""
        if self._missed and boottime() >= self._resync_time + RESYNC_SECONDS:
            self._missed, self._resync_time = False, boottime()
            self._broadcast(EngineBack())

    def _check(self) -> None:
        try:
            self.engine.ping(min(self._ping_seconds, PING_ANSWER_SECONDS))
        except (EngineDown, EngineRefuses) as error:
            self._failed(str(error))
            self._set_up(False)
        else:
            # An engine that is going down may still answer, while its event stream has ended.
            if self._request is not None and self.captures.in_use:
                self._set_up(True)
            elif self._request is not None:
                self._determine_capture()

    def _determine_capture(self) -> None:
        """Mark the host up once it is known how the output of its containers is captured."""
        try:
            self._identify()
            self.captures.determine(self.engine)
        except EngineDown as error:
            log.info("host does not answer", host=self.name, error=str(error))
            self._failed(str(error))
            self._set_up(False)
        else:
            if not self.captures.in_use:
                self._failed(self._no_capture)
            self._set_up(self.captures.in_use != "")

    def _identify(self) -> None:
        """Note the id and version of the engine. An engine behind a proxy may refuse to tell."""
        with suppress(EngineRefuses):
            info = self.engine.info()
            self.engine_id, self.engine_version = info.id, info.version

    @property
    def availability(self) -> Availability:
        return Availability.UP if self.up else Availability.DOWN

    def report(self, *, running: int, max_running: int) -> HostReport:
        """Return the state of the host; the dispatcher knows the numbers of executions."""
        with self._lock:
            return HostReport(
                self.name,
                self.engine.address,
                self.availability,
                running,
                max_running,
                self.last_error,
                self.last_error_time,
                self.engine_version,
                self.captures.in_use,
                self.captures.reason,
            )

    @property
    def error(self) -> str:
        """Why the host takes no executions; empty if it takes some."""
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

    def _filters(self) -> Mapping[str, Sequence[str]]:
        return {"type": ["container"], "label": [f"{INSTANCE_LABEL}={self.instance}"], "event": EVENTS}


class _Event(NamedTuple):
    """An event of a container."""

    execution_id: str
    container_name: str
    container_id: str
    died: bool
    exit_code: int | None
    time_ns: int


def _read_event(line: bytes) -> _Event | str:
    """Return the event, or the fault that makes the line unreadable."""
    try:
        event = json.loads(line)
    # Nested deeper than the parser goes, it raises RecursionError.
    except (ValueError, RecursionError):
        return "it is not JSON" if len(line) < MAX_LINE_BYTES else f"it is longer than {MAX_LINE_BYTES} bytes"
    actor = event.get("Actor") if isinstance(event, dict) else None
    about = actor.get("Attributes") if isinstance(actor, dict) else None
    if not isinstance(actor, dict) or not isinstance(about, dict):
        return "it names no container"
    action, time_ns, code = event.get("Action"), event.get("timeNano"), str(about.get("exitCode", ""))
    if action not in EVENTS:
        return "it is of a kind that was not asked for"
    if not isinstance(time_ns, int):
        return "it has no time"
    exit_code = int(code) if code.isascii() and code.isdigit() and len(code) < 10 else None
    container_id = str(actor.get("ID", ""))
    return _Event(
        str(about.get(EXECUTION_LABEL, "")),
        str(about.get("name", "")),
        container_id,
        action == "die",
        exit_code,
        time_ns,
    )
