"""A host: one engine, and the one thread that listens to it. Whoever watches an execution is told when its container
begins and ends.

All are told when the engine goes away: it may come back another, and what happened in between is for each to find out.
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
from fastlane_grpc.docker.http import MAX_LINE_BYTES, EngineDown, EngineRefuses, Wire
from fastlane_grpc.model import Availability, HostReport, container_name, utc_now
from fastlane_grpc.runner import Began, Died, EngineBack, EngineGone, Mailbox, Order
from fastlane_grpc.supervisor import ALONE, Supervisor

# A frozen engine keeps its connections: so often it is asked whether it is there, and so long it may take to say so.
PING_SECONDS = 10
PING_ANSWER_SECONDS = 5
# Pauses between tries to reach an engine that is gone.
RECONNECTS = Backoff(0.1, 2.0)
# After an event that could not be read executions look at their containers; not more often than that, however many of
# these come.
LOOK_AGAIN_SECONDS = 1.0
# Enough for a thread that only has to see that it is to end.
CLOSE_SECONDS = 0.5
# How far back an engine is asked for what it remembers.
RECALL_SECONDS = 5
# What is asked for of what happens to containers.
EVENTS = ["start", "unpause", "die"]

log = structlog.get_logger(__name__)


class Host:
    """The engine at `address` (`unix:///path` or `tcp://host:port`). `up` says whether it answers, and containers can
    be captured."""

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
        # Of the last time it answered; empty before, and where the engine does not tell.
        self.engine_id = self.engine_version = ""
        # What it last said when it failed. It stays when the host is up again.
        self.last_error = ""
        self.last_error_time: datetime | None = None
        # Whether the log says so.
        self._logged_down = False
        self._ping_seconds = ping_seconds
        self._on_change: Callable[[], None] = lambda: None
        self._watchers: dict[str, Mailbox] = {}
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._wire: Wire | None = None
        # Kinds of events that were not understood and were logged; and whether executions are still to look for what
        # such an event told.
        self._not_understood: set[str] = set()
        self._missed = False
        self._looked_at = 0.0
        self._thread = supervisor.thread(f"host-{name}", self._listen, restart=True)

    def start(self, on_change: Callable[[], None]) -> None:
        """Begins to listen; the engine need not be there. `on_change` is called whenever `up` has changed, on some
        thread."""
        self._on_change = on_change
        self._thread.start()

    def close(self) -> None:
        """Ends the listening; tells nobody. A thread that waits for a hanging engine is left to it: as a daemon it
        delays no end."""
        with self._lock:
            self._closing.set()
            if self._wire is not None:
                self._wire.cut()
        if self._thread.ident is not None:
            self._thread.join(CLOSE_SECONDS)

    @contextmanager
    def watching(self, execution_id: str, mailbox: Mailbox) -> Iterator[None]:
        """For as long as it lasts, what happens to the execution's container, and to the engine, is put into its
        mailbox."""
        with self._lock:
            self._watchers[execution_id] = mailbox
        try:
            yield
        finally:
            with self._lock:
                del self._watchers[execution_id]

    def doubt(self) -> None:
        """Somebody got no answer: looks whether the engine is there. One that is not is marked down before this
        returns."""
        self._look()

    def _listen(self) -> None:
        failures = 0
        while not self._closing.is_set():
            try:
                # The answer begins a moment before the engine takes us for a listener. What it heard in between it
                # remembers; to be told of an end twice does no harm.
                wire = self.engine.events(self._filters(), since=f"{time.time() - RECALL_SECONDS:.9f}")
            except (EngineDown, EngineRefuses) as error:
                log.debug("host not reached", host=self.name, error=str(error))
                self._failed(str(error))
                self._closing.wait(RECONNECTS.pause_seconds(failures))
                failures += 1
                continue
            failures = 0
            with self._lock:
                self._wire = wire
                if self._closing.is_set():
                    wire.cut()
            why = "a defect of fastlane, see the server's log"
            try:
                self._follow(wire)
                why = "the engine went away: it broke off the stream of its events"
            finally:
                # Whatever ended it, nobody hears the engine now: a host that stayed up would leave its executions
                # waiting for their ends.
                self._not_followed(wire, why)

    def _follow(self, wire: Wire) -> None:
        """Listens until the connection breaks."""
        heard_since = boottime()
        wire.patience(self._ping_seconds)
        self._tell_all(EngineBack())
        self._settle()
        while True:
            try:
                for line in wire.lines():
                    self._heard(line, heard_since)
                return
            except TimeoutError:
                self._look()
                self._look_for_missed()
            except OSError:
                return

    def _not_followed(self, wire: Wire, why: str) -> None:
        wire.cut()
        with self._lock:
            self._wire = None
        if not self._closing.is_set():
            self._failed(why)
            self._set_up(False)
            self._tell_all(EngineGone(boottime()))
        self.engine.forget()

    def _heard(self, line: bytes, heard_since: float) -> None:
        event = _read_event(line)
        if isinstance(event, str):
            self._pass_over(event, line)
        else:
            with self._lock:
                mailbox = self._watchers.get(event.execution_id)
            # A container made from an image that was committed from one of ours has our labels too. The name is one
            # container's alone.
            if mailbox is not None and event.container_name == container_name(event.execution_id):
                mailbox.put(
                    Died(event.exit_code, event.time_ns, heard_since, event.container_id) if event.died else Began()
                )
        self._look_for_missed()

    def _pass_over(self, fault: str, line: bytes) -> None:
        """An event of a shape that nobody knows may have told of an end."""
        self._missed = True
        if fault not in self._not_understood:
            self._not_understood.add(fault)
            log.warning(
                "an event of the engine is passed over",
                host=self.name,
                fault=fault,
                line=line[:200].decode(errors="replace"),
            )

    def _look_for_missed(self) -> None:
        """Executions look for what was passed over, once for all of it."""
        if self._missed and boottime() >= self._looked_at + LOOK_AGAIN_SECONDS:
            self._missed, self._looked_at = False, boottime()
            self._tell_all(EngineBack())

    def _look(self) -> None:
        try:
            self.engine.ping(min(self._ping_seconds, PING_ANSWER_SECONDS))
        except (EngineDown, EngineRefuses) as error:
            self._failed(str(error))
            self._set_up(False)
        else:
            # An engine that is going down may answer still, while nobody hears its events any more.
            if self._wire is not None and self.captures.in_use:
                self._set_up(True)
            elif self._wire is not None:
                self._settle()

    def _settle(self) -> None:
        """An engine that answers is up once it is known how its containers are captured."""
        try:
            self._identify()
            self.captures.settle(self.engine)
        except EngineDown as error:
            log.info("host does not answer", host=self.name, error=str(error))
            self._failed(str(error))
            self._set_up(False)
        else:
            if not self.captures.in_use:
                self._failed(self._no_capture)
            self._set_up(self.captures.in_use != "")

    def _identify(self) -> None:
        """Which engine it is. One behind a proxy that does not let us ask is as good as any."""
        with suppress(EngineRefuses):
            info = self.engine.info()
            self.engine_id, self.engine_version = info.id, info.version

    @property
    def availability(self) -> Availability:
        return Availability.UP if self.up else Availability.DOWN

    def report(self, *, running: int, max_running: int) -> HostReport:
        """All that is to be told of it; how many executions it has and may have is known to others."""
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
        """Why it takes nothing; empty if it does."""
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

    def _tell_all(self, order: Order) -> None:
        with self._lock:
            watchers = list(self._watchers.values())
        for mailbox in watchers:
            mailbox.put(order)

    def _filters(self) -> Mapping[str, Sequence[str]]:
        return {"type": ["container"], "label": [f"{INSTANCE_LABEL}={self.instance}"], "event": EVENTS}


class _Event(NamedTuple):
    """What the engine tells of a container."""

    execution_id: str
    container_name: str
    container_id: str
    died: bool
    exit_code: int | None
    time_ns: int


def _read_event(line: bytes) -> _Event | str:
    """The event; or what is wrong with it."""
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
