"""A host: one engine, and the one thread that listens to it. Whoever watches an execution is told when its container begins and ends.

All are told when the engine goes away: it may come back another, and what happened in between is for each to find out.
"""

import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime

import structlog

from fastlane_grpc.model import Availability, HostReport, container_name, utc_now
from fastlane_grpc.runner.captures import Captures
from fastlane_grpc.runner.clock import boottime
from fastlane_grpc.runner.engine import EXECUTION_LABEL, INSTANCE_LABEL, Engine
from fastlane_grpc.runner.orders import Began, Died, EngineBack, EngineGone, Order, Orders
from fastlane_grpc.runner.wire import EngineDown, EngineRefuses, Wire

# A frozen engine keeps its connections: so often it is asked whether it is there, and so long it may take to say so.
PING_SECONDS = 10
PING_ANSWER_SECONDS = 5
# Pauses between tries to reach an engine that is gone.
FIRST_PAUSE_SECONDS = 0.1
LONGEST_PAUSE_SECONDS = 2.0
# Enough for a thread that only has to see that it is to end.
CLOSE_SECONDS = 0.5
# How far back an engine is asked for what it remembers.
RECALL_SECONDS = 5

log = structlog.get_logger(__name__)


class Host:
    """The engine at `address` (`unix:///path` or `tcp://host:port`). `up` says whether it answers, and containers can be captured."""

    def __init__(self, name: str, address: str, *, instance: str, captures: Captures, ping_seconds: float = PING_SECONDS) -> None:
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
        self._ping_seconds = ping_seconds
        self._on_change: Callable[[], None] = lambda: None
        self._watchers: dict[str, Orders] = {}
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._wire: Wire | None = None
        self._thread = threading.Thread(target=self._listen, name=f"host-{name}", daemon=True)

    def start(self, on_change: Callable[[], None]) -> None:
        """Begins to listen; the engine need not be there. `on_change` is called whenever `up` has changed, on some thread."""
        self._on_change = on_change
        self._thread.start()

    def close(self) -> None:
        """Ends the listening; tells nobody. A thread that waits for a hanging engine is left to it: as a daemon it delays no end."""
        with self._lock:
            self._closing.set()
            if self._wire is not None:
                self._wire.cut()
        self._thread.join(CLOSE_SECONDS)

    @contextmanager
    def watching(self, execution_id: str, orders: Orders) -> Iterator[None]:
        """For as long as it lasts, what happens to the execution's container, and to the engine, is put into its orders."""
        with self._lock:
            self._watchers[execution_id] = orders
        try:
            yield
        finally:
            with self._lock:
                del self._watchers[execution_id]

    def doubt(self) -> None:
        """Somebody got no answer: looks whether the engine is there. One that is not is marked down before this returns."""
        self._look()

    def _listen(self) -> None:
        pause = FIRST_PAUSE_SECONDS
        while not self._closing.is_set():
            try:
                # The answer begins a moment before the engine takes us for a listener. What it heard in between it remembers; to be told of
                # an end twice does no harm.
                wire = self.engine.events(self._filters(), since=f"{time.time() - RECALL_SECONDS:.9f}")
            except (EngineDown, EngineRefuses) as error:
                log.debug("host not reached", host=self.name, error=str(error))
                self._failed(str(error))
                self._closing.wait(pause)
                pause = min(pause * 2, LONGEST_PAUSE_SECONDS)
                continue
            pause = FIRST_PAUSE_SECONDS
            with self._lock:
                self._wire = wire
                if self._closing.is_set():
                    wire.cut()
            self._follow(wire)
            self.engine.forget()

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
                break
            except TimeoutError:
                self._look()
            except OSError:
                break
        wire.cut()
        with self._lock:
            self._wire = None
        if not self._closing.is_set():
            self._failed("the engine went away: it broke off the stream of its events")
            self._set_up(False)
            self._tell_all(EngineGone(boottime()))

    def _heard(self, line: bytes, heard_since: float) -> None:
        event = json.loads(line)
        about = event["Actor"]["Attributes"]
        with self._lock:
            orders = self._watchers.get(about.get(EXECUTION_LABEL, ""))
        # A container made from an image that was committed from one of ours has our labels too. The name is one container's alone.
        if orders is None or about.get("name") != container_name(about[EXECUTION_LABEL]):
            return
        if event["Action"] == "die":
            code = about.get("exitCode", "")
            orders.put(Died(int(code) if code.isdigit() else None, event["timeNano"], heard_since, event["Actor"].get("ID", "")))
        else:
            orders.put(Began())

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
            if not self._closing.is_set():
                self.last_error, self.last_error_time = why, utc_now()

    def _set_up(self, up: bool) -> None:
        with self._lock:
            if up == self.up or self._closing.is_set():
                return
            self.up = up
        log.info("host is up" if up else "host is down", host=self.name)
        self._on_change()

    def _tell_all(self, order: Order) -> None:
        with self._lock:
            watchers = list(self._watchers.values())
        for orders in watchers:
            orders.put(order)

    def _filters(self) -> Mapping[str, Sequence[str]]:
        return {"type": ["container"], "label": [f"{INSTANCE_LABEL}={self.instance}"], "event": ["start", "unpause", "die"]}
