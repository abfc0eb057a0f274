"""The calls of a Docker engine that a runner needs, each with its answer as a value and its failures as two: it is
down, or it refuses.

Spoken over connections of our own. The SDK opens one for each call too, as its pools are kept by URL, and spends three
times the CPU on it (measured: 0.66 ms against 0.22): with five calls for each container that was a tenth of what the
engine itself needs to start one."""

import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from socket import SO_PEERCRED, SOL_SOCKET
from typing import Any
from urllib.parse import quote, urlencode

from fastlane_grpc.clock import engine_time
from fastlane_grpc.docker.engine_errors import passes
from fastlane_grpc.docker.http import EngineDown, EngineRefuses, EngineRequest, connect
from fastlane_grpc.machine.shortage import outlast
from fastlane_grpc.model import container_name

INSTANCE_LABEL = "fastlane.instance"
HOST_LABEL = "fastlane.host"
EXECUTION_LABEL = "fastlane.execution"
JOB_LABEL = "fastlane.job"
TASK_LABEL = "fastlane.task"


@dataclass(frozen=True, slots=True)
class Container:
    """A container as it is now. `start_time` is None for one that never ran, whatever else the engine says of it."""

    id: str
    status: str
    labels: Mapping[str, str]
    exit_code: int
    error: str
    out_of_memory: bool
    stop_signal: str
    start_time: datetime | None
    end_time: datetime | None
    # What it runs, or its recorder does; None: that is not known.
    program: str | None = None

    @property
    def alive(self) -> bool:
        return self.status in {"running", "paused", "restarting"}

    @property
    def ended(self) -> bool:
        return self.status in {"exited", "dead", "removing"} and self.start_time is not None


@dataclass(frozen=True, slots=True)
class Image:
    """An image on the engine. `architecture` is as Docker calls it ("amd64"); what the image does not say is empty."""

    digest: str
    architecture: str
    entrypoint: Sequence[str]
    command: Sequence[str]


@dataclass(frozen=True, slots=True)
class Info:
    """What an engine says of itself. `id` is its own for as long as its data directory lasts."""

    id: str
    version: str
    architecture: str


class Engine:
    """One Docker engine, at `unix:///path` or `tcp://host:port`. Every method may be called from any thread."""

    def __init__(self, address: str, *, answer_seconds: float = 30) -> None:
        self.address = address
        self._answer_seconds = answer_seconds
        self._version = ""

    def ping(self, timeout_seconds: float) -> str:
        """The version of its API. An engine that hangs still accepts connections: only this tells."""
        request = EngineRequest(
            self.address, "GET", "/_ping", connect_seconds=timeout_seconds, answer_seconds=timeout_seconds
        )
        request.cut()
        return request.headers.get("Api-Version", "1.41")

    def epoch(self) -> str:
        """Names this life of the engine, from its start to its end; empty where that cannot be told. Not there at all:
        EngineDown."""
        with connect(self.address, self._answer_seconds) as connection:
            if not self.address.startswith("unix://"):
                return ""
            process, _, _ = struct.unpack("3i", connection.getsockopt(SOL_SOCKET, SO_PEERCRED, struct.calcsize("3i")))
        # Where systemd listens in the engine's place, the engine's own note beside the socket tells.
        note = Path(self.address.removeprefix("unix://")).with_suffix(".pid")
        return _epoch_of(process) or _epoch_of(_number_in(note))

    def info(self) -> Info:
        versions, info = self._asked("GET", "/version"), self._asked("GET", "/info")
        return Info(str(info.get("ID", "")), str(versions.get("Version", "")), str(versions.get("Arch", "")))

    def facts(self) -> Mapping[str, Any]:
        """All that it says of itself, by the names of its API."""
        return {**self._asked("GET", "/info"), "Arch": self._asked("GET", "/version").get("Arch", "")}

    def forget(self) -> None:
        """The engine went away. The one that comes may be of another version."""
        self._version = ""

    # -- images

    def image(self, name: str) -> Image | None:
        """None: the engine does not have it."""
        answer = self._found("GET", f"/images/{quote(name, safe='/:@')}/json")
        return answer and _image(answer)

    def make_image(self, name: str, tar: bytes, *, label: str, value: str) -> None:
        """An image with these files and this label, and nothing else."""
        repository, _, tag = name.partition(":")
        query = urlencode({"fromSrc": "-", "repo": repository, "tag": tag, "changes": f"LABEL {label}={value}"})
        headers = {"Content-Type": "application/x-tar"}
        lines = self._request(
            "POST", f"/images/create?{query}", headers=headers, body=tar, answer_seconds=self._answer_seconds
        ).whole()
        if b'"error"' in lines:
            raise EngineRefuses(500, lines.decode("utf-8", "replace"))

    def remove_image(self, name: str) -> None:
        """One that is not there is removed."""
        self._found("DELETE", f"/images/{quote(name, safe='/:@')}?{urlencode({'force': 1})}")

    def labelled_images(self, label: str, value: str) -> Sequence[str]:
        """The ids of all images with this label."""
        filters = json.dumps({"label": [f"{label}={value}"]})
        return [each["Id"] for each in self._asked("GET", f"/images/json?{urlencode({'filters': filters})}")]

    def pull(self, repository: str, tag: str, registry_auth: str, *, silence_seconds: float) -> EngineRequest:
        """The pull's progress, as lines of JSON. Cutting it ends the pull. After so long a silence reading it raises
        TimeoutError."""
        query = urlencode({"fromImage": repository, "tag": tag})
        headers = {"X-Registry-Auth": registry_auth} if registry_auth else {}
        return self._request("POST", f"/images/create?{query}", headers=headers, answer_seconds=silence_seconds)

    # -- containers

    def create(self, name: str, body: Mapping[str, Any]) -> str:
        """The id of the new container."""
        return str(self._asked("POST", f"/containers/create?{urlencode({'name': name})}", body)["Id"])

    def start(self, container_id: str) -> None:
        """Sent once, and waited for as long as it takes. EngineDown: nobody knows whether it starts."""
        self._request("POST", f"/containers/{container_id}/start", answer_seconds=None).cut()

    def kill(self, container_id: str, signal: str, *, answer_seconds: float | None = None) -> None:
        """Sends a signal to the main process; one that is paused goes on. `answer_seconds`: another time than usual for
        the answer."""
        self._asked(
            "POST", f"/containers/{container_id}/kill?{urlencode({'signal': signal})}", answer_seconds=answer_seconds
        )

    def inspect(self, name: str) -> Container | None:
        """None: there is no such container. Waits for the container's lock, which another call may hold."""
        answer = self._found("GET", f"/containers/{name}/json")
        return answer and _container(answer)

    def mounts(self, container_id: str) -> Mapping[Path, Path] | None:
        """What is mounted into a container: from where it is inside to where it is on the engine's machine. None: no
        such container."""
        answer = self._found("GET", f"/containers/{container_id}/json")
        return answer and {
            Path(each["Destination"]): Path(each["Source"]) for each in answer["Mounts"] if each.get("Source")
        }

    def labelled(self, label: str, value: str) -> Sequence[str]:
        """The ids of all containers with this label. Takes no container's lock."""
        filters = json.dumps({"label": [f"{label}={value}"]})
        return [
            each["Id"] for each in self._asked("GET", f"/containers/json?{urlencode({'all': 1, 'filters': filters})}")
        ]

    def containers(self, instance: str, host: str = "") -> Mapping[str, str]:
        """All containers that this instance made, or only those it made for this host, by id, with the execution each
        is for. Takes no container's lock."""
        of_host = [f"{HOST_LABEL}={host}"] if host else []
        filters = json.dumps({"label": [f"{INSTANCE_LABEL}={instance}", *of_host]})
        answer = self._asked("GET", f"/containers/json?{urlencode({'all': 1, 'filters': filters})}")
        labelled = {each["Id"]: (each["Labels"].get(EXECUTION_LABEL, ""), each["Names"]) for each in answer}
        # One that somebody made from an image committed from ours has our labels too, and is not ours.
        return {
            found: execution
            for found, (execution, names) in labelled.items()
            if f"/{container_name(execution)}" in names
        }

    def remove(self, container_id: str, *, force: bool) -> None:
        """Removes it, with its anonymous volumes. One that is not there, or is being removed, is removed."""
        try:
            self._found("DELETE", f"/containers/{container_id}?{urlencode({'v': 1, 'force': int(force)})}")
        except EngineRefuses as refusal:
            if "is already in progress" not in refusal.message:
                raise

    def of_all_instances(self) -> Sequence[Mapping[str, Any]]:
        """Every container that any fastlane made, as the engine lists it. Takes no container's lock."""
        filters = json.dumps({"label": [INSTANCE_LABEL]})
        listed = self._asked("GET", f"/containers/json?{urlencode({'all': 1, 'filters': filters})}")
        return [
            each for each in listed if f"/{container_name(each['Labels'].get(EXECUTION_LABEL, ''))}" in each["Names"]
        ]

    # -- streams

    def attach(self, container_id: str) -> EngineRequest:
        """What the container prints from now on, as frames."""
        path = f"/containers/{container_id}/attach?stream=1&stdout=1&stderr=1&logs=0"
        return self._request("POST", path, upgrade=True, answer_seconds=self._answer_seconds)

    def events(self, filters: Mapping[str, Sequence[str]], *, since: str) -> EngineRequest:
        """What happens to containers from now on, and what did since, as far as the engine remembers it: lines of
        JSON."""
        return self._request(
            "GET",
            f"/events?{urlencode({'filters': json.dumps(filters), 'since': since})}",
            answer_seconds=self._answer_seconds,
        )

    def _found(self, method: str, path: str) -> Any:
        """The answer; None if there is no such thing."""
        try:
            return self._asked(method, path)
        except EngineRefuses as refusal:
            if refusal.status == 404:
                return None
            raise

    @property
    def local(self) -> bool:
        """Whether it is on this machine, so that its clock is ours."""
        return self.address.startswith("unix://")

    def _asked(
        self, method: str, path: str, body: Mapping[str, Any] | None = None, *, answer_seconds: float | None = None
    ) -> Any:
        content = b"" if body is None else json.dumps(body).encode()
        try:
            request = self._request(method, path, body=content, answer_seconds=answer_seconds or self._answer_seconds)
        except EngineRefuses as refusal:
            # An engine that cannot even look is as good as gone for now: nothing is wrong with what it was asked for.
            if method == "GET" and refusal.status >= 500 and passes(refusal.message):
                raise EngineDown(f"the engine fails for now: {refusal.message}") from refusal
            raise
        answer = request.whole()
        try:
            return json.loads(answer) if answer else None
        except ValueError as error:
            raise EngineDown(f"the engine broke off its answer: {error}") from error

    def _request(self, method: str, path: str, **options: Any) -> EngineRequest:
        self._version = self._version or self.ping(self._answer_seconds)
        return EngineRequest(self.address, method, f"/v{self._version}{path}", **options)


def _container(answer: Mapping[str, Any]) -> Container:
    state = answer["State"]
    return Container(
        id=answer["Id"],
        status=state["Status"],
        labels=answer["Config"].get("Labels") or {},
        exit_code=state["ExitCode"],
        error=state.get("Error", ""),
        out_of_memory=state.get("OOMKilled", False),
        stop_signal=answer["Config"].get("StopSignal", ""),
        start_time=engine_time(state.get("StartedAt", "")),
        end_time=engine_time(state.get("FinishedAt", "")),
        program=next(iter(answer["Config"].get("Cmd") or ()), None),
    )


def _image(answer: Mapping[str, Any]) -> Image:
    config = answer.get("Config") or {}
    return Image(
        str(answer["Id"]), str(answer.get("Architecture", "")), config.get("Entrypoint") or (), config.get("Cmd") or ()
    )


def _epoch_of(process: int) -> str:
    """Process id and start time, within one boot: together never used twice. Empty if it is not an engine, or cannot be
    seen from here."""
    try:
        stat = outlast(Path(f"/proc/{process}/stat").read_text)
        boot = outlast(Path("/proc/sys/kernel/random/boot_id").read_text).strip()
    except OSError:
        return ""
    # The name is in parentheses and may hold some itself; the start time is the twentieth field after it.
    name, _, fields = stat.partition("(")[2].rpartition(")")
    return f"{boot}/{process}/{fields.split()[19]}" if name == "dockerd" else ""


def _number_in(file: Path) -> int:
    try:
        return int(outlast(file.read_text))
    except (OSError, ValueError):
        return 0
