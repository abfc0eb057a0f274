"""The events of pods: one list and one watch for all pods of an instance.

A watch that the server ends goes on at the version that it reached. If the server has forgotten that version, a new
list tells what was missed.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from fastlane_grpc.backend import (
    BackendDown,
    BackendEvent,
    Container,
    ContainerEvent,
    Interruption,
    UnreadableEvent,
)
from fastlane_grpc.kubernetes.api_errors import ClusterRefuses
from fastlane_grpc.kubernetes.cluster_api import ClusterApi, Watch
from fastlane_grpc.kubernetes.pod_body import INSTANCE_LABEL
from fastlane_grpc.kubernetes.pod_state import container_of, execution_of, handle_of

# The answer to a version that the server has forgotten.
_GONE = 410


class _Forgotten(Exception):
    """The server does not know the version of the list any more."""


@dataclass(frozen=True, slots=True)
class _Seen:
    """A pod as it was last seen."""

    execution_id: str
    started: bool = False
    ended: bool = False
    # Why it was not started when it was last seen.
    wait: str = ""
    interruption: Interruption | None = None


class PodEvents:
    """Implements EventStream over the pods of an instance. Begins with a list: its pods are the first events."""

    def __init__(self, api: ClusterApi, instance: str) -> None:
        """Raises BackendDown, and BackendRefuses if the account may not list pods."""
        self._api = api
        self._labels = f"{INSTANCE_LABEL}={instance}"
        self._silence_seconds: float | None = None
        self._seen: dict[str, _Seen] = {}
        self._watch: Watch | None = None
        self._cut = False
        self._pending: list[Mapping[str, Any]] | None
        self._pending, self._version = api.pods(self._labels)

    def events(self) -> Iterator[BackendEvent]:
        while not self._cut:
            yield from self._listed()
            try:
                yield from self._watched()
            except _Forgotten:
                self._pending, self._version = self._asked_again()

    def set_timeout(self, seconds: float | None) -> None:
        """Set how long a silence may last, from the next watch on."""
        self._silence_seconds = seconds

    def cut(self) -> None:
        self._cut = True
        if self._watch is not None:
            self._watch.cut()

    def _listed(self) -> Iterator[BackendEvent]:
        """Yield what the last list has that was not seen, and the ends of pods that it lacks."""
        pods, self._pending = self._pending, None
        if pods is None:
            return
        there = set()
        for pod in pods:
            there.add(handle_of(pod).uid)
            yield from self._changes(pod)
        for uid in self._seen.keys() - there:
            yield from self._deleted(uid)

    def _watched(self) -> Iterator[BackendEvent]:
        """Yield the events of one watch. Raises OSError, TimeoutError and _Forgotten."""
        try:
            watch = self._watch = self._api.watch(self._labels, self._version, silence_seconds=self._silence_seconds)
        except ClusterRefuses as refusal:
            if refusal.status == _GONE:
                raise _Forgotten from refusal
            raise OSError(refusal.message) from refusal
        except BackendDown as error:
            raise OSError(str(error)) from error
        if self._cut:
            watch.cut()
        for line in watch.lines():
            yield from self._read(line)

    def _asked_again(self) -> tuple[list[Mapping[str, Any]], str]:
        try:
            return self._api.pods(self._labels)
        except (BackendDown, ClusterRefuses) as error:
            raise OSError(str(error)) from error

    def _read(self, line: bytes) -> Iterator[BackendEvent]:
        try:
            event = json.loads(line)
            kind, about = event["type"], event["object"]
            if kind == "ERROR":
                code, message = about.get("code"), str(about.get("message", ""))
            else:
                code, message = 0, ""
                self._version = str(about["metadata"]["resourceVersion"])
                changes = list(self._of(kind, about))
        # Nested deeper than the parser goes, it raises RecursionError.
        except (ValueError, RecursionError, KeyError, TypeError, AttributeError):
            yield UnreadableEvent("it is no event of a pod", line)
            return
        if kind != "ERROR":
            yield from changes
        elif code == _GONE:
            raise _Forgotten
        else:
            raise OSError(f"the API server ended the watch: {message}")

    def _of(self, kind: str, about: Mapping[str, Any]) -> Iterator[BackendEvent]:
        if kind in {"ADDED", "MODIFIED"}:
            yield from self._changes(about)
        elif kind == "DELETED":
            yield from self._changes(about)
            yield from self._deleted(handle_of(about).uid)

    def _changes(self, pod: Mapping[str, Any]) -> Iterator[BackendEvent]:
        """Yield the start and the end of a pod, each when it is first seen, and each reason of a wait before."""
        uid, container = handle_of(pod).uid, container_of(pod)
        before = self._seen.get(uid) or _Seen(execution_of(pod))
        started = container.start_time is not None
        # A container that is not started, for good or for now, is an event too: somebody has to look why.
        wait = _why_not_started(container)
        self._seen[uid] = _Seen(
            *(before.execution_id, before.started or started, before.ended or container.ended),
            wait,
            container.interruption,
        )
        if not before.started and (started or wait not in {"", before.wait}):
            yield ContainerEvent(before.execution_id, uid, False, None, _nanoseconds(container.start_time))
        if container.ended and not before.ended:
            time = _nanoseconds(container.end_time)
            yield ContainerEvent(before.execution_id, uid, True, container.exit_code, time, container.interruption)

    def _deleted(self, uid: str) -> Iterator[BackendEvent]:
        """Yield the end of a pod that is gone, unless its end was seen."""
        seen = self._seen.pop(uid, None)
        if seen is not None and not seen.ended:
            yield ContainerEvent(seen.execution_id, uid, True, None, _nanoseconds(None), seen.interruption)


def _why_not_started(container: Container) -> str:
    if container.start_failure:
        return container.start_failure.text
    return container.start_wait.text if container.start_wait else ""


def _nanoseconds(time: datetime | None) -> int:
    return int((time or datetime.now(UTC)).timestamp() * 1e9)
