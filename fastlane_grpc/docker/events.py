"""The events of a Docker engine: which ones are asked for, and how their lines are read."""

import json
import time
from collections.abc import Iterator

from fastlane_grpc.backend import BackendEvent, ContainerEvent, UnreadableEvent
from fastlane_grpc.docker.engine import EXECUTION_LABEL, INSTANCE_LABEL, Engine, container_name
from fastlane_grpc.docker.http import MAX_LINE_BYTES, EngineRequest

# How far back the engine is asked for its past events.
RECALL_SECONDS = 5
# The events of containers that the engine is asked for.
EVENTS = ["start", "unpause", "die"]


class DockerEvents:
    """Implements EventStream over a stream of the engine, which a silence or `cut` ends."""

    def __init__(self, engine: Engine, instance: str) -> None:
        filters = {"type": ["container"], "label": [f"{INSTANCE_LABEL}={instance}"], "event": EVENTS}
        # The answer begins a moment before the engine registers the listener. `since` brings the events of that
        # moment; an event that comes twice does no harm.
        self._request: EngineRequest = engine.events(filters, since=f"{time.time() - RECALL_SECONDS:.9f}")

    def events(self) -> Iterator[BackendEvent]:
        for line in self._request.lines():
            if event := read_event(line):
                yield event

    def set_timeout(self, seconds: float | None) -> None:
        self._request.set_timeout(seconds)

    def cut(self) -> None:
        self._request.cut()


def read_event(line: bytes) -> BackendEvent | None:
    """Return the event; None if it is about a container that is no execution's."""
    event = _parsed(line)
    return UnreadableEvent(event, line) if isinstance(event, str) else event


def _parsed(line: bytes) -> ContainerEvent | str | None:
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
    execution_id = str(about.get(EXECUTION_LABEL, ""))
    # A container from an image that was committed from an execution's container has the same labels. Only the name is
    # unique.
    if about.get("name") != container_name(execution_id):
        return None
    exit_code = int(code) if code.isascii() and code.isdigit() and len(code) < 10 else None
    return ContainerEvent(execution_id, str(actor.get("ID", "")), action == "die", exit_code, time_ns)
