"""The client of a Docker engine: one method for each API call that a runner needs.

A call returns a value, or raises EngineDown or EngineRefuses. It goes through the SDK's client (`sdk_client.py`), but
for the few that `http.py` names. A call of the SDK takes some 0.4 ms of a processor, one of `http.py` 0.1 ms; a
container is started in some 200 ms.
"""

import json
import struct
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from io import BufferedReader
from pathlib import Path
from socket import SO_PEERCRED, SOL_SOCKET
from typing import Any, BinaryIO
from urllib.parse import urlencode

from fastlane_grpc.backend import Container, Image, Info
from fastlane_grpc.clock import engine_time
from fastlane_grpc.docker.address import EngineAddress
from fastlane_grpc.docker.engine_errors import EngineDown, EngineRefuses, container_gone, diagnosis, passes
from fastlane_grpc.docker.handle import DockerHandle
from fastlane_grpc.docker.http import EngineContent, EngineRequest
from fastlane_grpc.docker.sdk_client import SdkClient, asked
from fastlane_grpc.machine.shortage import outlast

_READ_BYTES = 1 << 18
# Somebody looks, and statistics that come late are of no use.
_STATS_SECONDS = 2.5

INSTANCE_LABEL = "fastlane.instance"
HOST_LABEL = "fastlane.host"
EXECUTION_LABEL = "fastlane.execution"
JOB_LABEL = "fastlane.job"
TASK_LABEL = "fastlane.task"


def container_name(execution_id: str) -> str:
    """Return the name of the container of an execution. An engine has at most one container of a name."""
    return f"fastlane-{execution_id}"


class Engine:
    """One Docker engine, at an address as EngineAddress takes it. Every method may be called from any thread."""

    def __init__(self, address: str, *, certificates: Path | None = None, answer_seconds: float = 30) -> None:
        self.address = address
        self._address = EngineAddress(address, certificates)
        self._answer_seconds = answer_seconds
        self._client: SdkClient | None = None

    def ping(self, timeout_seconds: float) -> str:
        """Return the version of the engine's API. Only a ping detects a hung engine, which accepts connections."""
        request = EngineRequest(
            self._address, "GET", "/_ping", connect_seconds=timeout_seconds, answer_seconds=timeout_seconds
        )
        request.cut()
        return request.headers.get("Api-Version", "1.41")

    def epoch(self) -> str:
        """Return a name for the run of the engine's process from its start to its end; empty if that is not known.

        Raises EngineDown if no engine runs.
        """
        path = self._address.socket_path
        if path is None:
            return ""
        with self._address.connect(self._answer_seconds) as connection:
            process, _, _ = struct.unpack("3i", connection.getsockopt(SOL_SOCKET, SO_PEERCRED, struct.calcsize("3i")))
        # If systemd listens instead of the engine, the engine's pid file beside the socket has the process.
        return _epoch_of(process) or _epoch_of(_number_in(path.with_suffix(".pid")))

    def info(self) -> Info:
        versions, info = self._versions(), self._facts()
        return Info(str(info.get("ID", "")), str(versions.get("Version", "")), str(versions.get("Arch", "")))

    def facts(self) -> Mapping[str, Any]:
        """Return all facts of the engine, by the names of its API."""
        return {**self._facts(), "Arch": self._versions().get("Arch", "")}

    def forget(self) -> None:
        """Forget the API version and all connections, as the engine went away. The next may have another version."""
        client, self._client = self._client, None
        if client is not None and self._address.dear:
            client.close()

    # -- images

    def image(self, name: str) -> Image | None:
        """Return the image; None if the engine does not have it."""
        answer = self._found("the look for an image", lambda client: client.inspect_image(name))
        return answer and _image(answer)

    def make_image(self, name: str, tar: bytes, *, label: str, value: str) -> None:
        """Create an image with only these files and this label."""
        repository, _, tag = name.partition(":")
        query = urlencode({"fromSrc": "-", "repo": repository, "tag": tag, "changes": f"LABEL {label}={value}"})
        headers = {"Content-Type": "application/x-tar"}
        lines = self._request(
            "POST", f"/images/create?{query}", headers=headers, body=tar, answer_seconds=self._answer_seconds
        ).whole()
        if b'"error"' in lines:
            raise EngineRefuses(500, lines.decode("utf-8", "replace"))

    def remove_image(self, name: str) -> None:
        """Remove an image. An image that does not exist counts as removed."""
        self._found("the removal of an image", lambda client: client.remove_image(name, force=True))

    def labelled_images(self, label: str, value: str) -> Sequence[str]:
        """Return the ids of all images with this label."""
        listed = self._read("a list of images", lambda client: client.images(filters={"label": f"{label}={value}"}))
        return [each["Id"] for each in listed]

    def pull(self, repository: str, tag: str, registry_auth: str, *, silence_seconds: float) -> EngineRequest:
        """Start a pull, and return its progress as lines of JSON.

        A cut ends the pull. Reading raises TimeoutError after a silence of `silence_seconds`.
        """
        query = urlencode({"fromImage": repository, "tag": tag})
        headers = {"X-Registry-Auth": registry_auth} if registry_auth else {}
        return self._request("POST", f"/images/create?{query}", headers=headers, answer_seconds=silence_seconds)

    # -- containers

    def create(self, name: str, body: Mapping[str, Any]) -> str:
        """Create a container, and return its id."""
        answer = self._asked(
            "the creation of a container", lambda client: client.create_container_from_config(dict(body), name)
        )
        return str(answer["Id"])

    def unpack(self, container_id: str, archive: Iterable[bytes]) -> None:
        """Unpack a tar archive at the root of a container. Raises what the iteration of `archive` raises, too."""
        query = urlencode({"path": "/", "noOverwriteDirNonDir": "true"})
        headers = {"Content-Type": "application/x-tar"}
        path = f"/containers/{container_id}/archive?{query}"
        self._request("PUT", path, headers=headers, body=archive, answer_seconds=self._answer_seconds).cut()

    def archive(self, container_id: str, path: str) -> BinaryIO | None:
        """Open a tar archive of a path in a container; None: the container has no such path. EngineRefuses: there is
        no such container."""
        query = f"/containers/{container_id}/archive?{urlencode({'path': path})}"
        try:
            request = self._request("GET", query, answer_seconds=self._answer_seconds)
        except EngineRefuses as refusal:
            if refusal.status == 404 and not container_gone(refusal.message, container_id):
                return None
            raise
        return BufferedReader(EngineContent(request), _READ_BYTES)

    def start(self, container_id: str) -> None:
        """Start a container: sent once, without a limit on the wait. After EngineDown it may start or not."""
        self._request("POST", f"/containers/{container_id}/start", answer_seconds=None).cut()

    def kill(self, container_id: str, signal: str, *, answer_seconds: float | None = None) -> None:
        """Send a signal to the main process; a paused container goes on.

        `answer_seconds` replaces the usual limit on the wait for the answer.
        """
        path = f"/containers/{container_id}/kill?{urlencode({'signal': signal})}"
        self._request("POST", path, answer_seconds=answer_seconds or self._answer_seconds).cut()

    def stats(self, container_id: str) -> Mapping[str, Any] | None:
        """Return the statistics of a container as they are now; None: there is no such container."""
        path = f"/containers/{container_id}/stats?stream=false&one-shot=true"
        try:
            answer = json.loads(self._request("GET", path, answer_seconds=_STATS_SECONDS).whole())
        except EngineRefuses as refusal:
            if refusal.status == 404:
                return None
            raise
        except ValueError as error:
            raise EngineDown(f"the engine's statistics are no JSON: {error}") from error
        return answer if isinstance(answer, Mapping) else None

    def inspect(self, name: str) -> Container | None:
        """Return the container; None if there is none. Waits for its lock."""
        found = self.inspect_with_labels(name)
        return found and found[0]

    def inspect_with_labels(self, name: str) -> tuple[Container, Mapping[str, str]] | None:
        """Return the container and its labels; None if there is none. Waits for its lock."""
        answer = self._inspected(name)
        return answer and (_container(answer), answer["Config"].get("Labels") or {})

    def mounts(self, container_id: str) -> Mapping[Path, Path] | None:
        """Return the mounts of a container, from the path inside to the path on the engine's machine.

        None: there is no such container.
        """
        answer = self._inspected(container_id)
        return answer and {
            Path(each["Destination"]): Path(each["Source"]) for each in answer["Mounts"] if each.get("Source")
        }

    def labelled(self, label: str, value: str) -> Sequence[str]:
        """Return the ids of all containers with this label. Takes no container's lock."""
        return [each["Id"] for each in self._listed(f"{label}={value}")]

    def containers(self, instance: str, host: str = "") -> Mapping[str, str]:
        """Return the execution of each container of this instance, or of this host only, by container id.

        Takes no container's lock.
        """
        listed = self.listed(instance)
        return {each: labels[EXECUTION_LABEL] for each, labels in listed.items() if host in {"", labels[HOST_LABEL]}}

    def listed(self, instance: str) -> Mapping[str, Mapping[str, str]]:
        """Return the labels of each container of this instance, by container id. Takes no container's lock."""
        answer = self._listed(f"{INSTANCE_LABEL}={instance}")
        labelled = {each["Id"]: (defaultdict(str, each["Labels"]), each["Names"]) for each in answer}
        # A container from an image that was committed from an execution's container has the same labels. Only the name
        # tells the two apart.
        return {
            found: labels
            for found, (labels, names) in labelled.items()
            if f"/{container_name(labels[EXECUTION_LABEL])}" in names
        }

    def remove(self, container_id: str, *, force: bool) -> None:
        """Remove a container with its anonymous volumes.

        A container that does not exist, or is being removed, counts as removed.
        """
        try:
            self._found(
                "the removal of a container", lambda client: client.remove_container(container_id, v=True, force=force)
            )
        except EngineRefuses as refusal:
            if "is already in progress" not in refusal.message:
                raise

    def of_all_instances(self) -> Sequence[Mapping[str, Any]]:
        """Return the containers of all fastlane instances, as the engine lists them. Takes no container's lock."""
        return [
            each
            for each in self._listed(INSTANCE_LABEL)
            if f"/{container_name(each['Labels'].get(EXECUTION_LABEL, ''))}" in each["Names"]
        ]

    # -- streams

    def attach(self, container_id: str) -> EngineRequest:
        """Attach to a container, and return its output from now on as frames."""
        path = f"/containers/{container_id}/attach?stream=1&stdout=1&stderr=1&logs=0"
        return self._request("POST", path, upgrade=True, answer_seconds=self._answer_seconds)

    def events(self, filters: Mapping[str, Sequence[str]], *, since: str) -> EngineRequest:
        """Return events of containers as lines of JSON: those after `since` that it remembers, and new ones."""
        return self._request(
            "GET",
            f"/events?{urlencode({'filters': json.dumps(filters), 'since': since})}",
            answer_seconds=self._answer_seconds,
        )

    @property
    def local(self) -> bool:
        """Whether the engine is on this machine, and so shares its clock and files."""
        return self._address.local

    # -- requests

    def _versions(self) -> Mapping[str, Any]:
        versions: Mapping[str, Any] = self._read("its version", lambda client: client.version())
        return versions

    def _facts(self) -> Mapping[str, Any]:
        facts: Mapping[str, Any] = self._read("its facts", lambda client: client.info())
        return facts

    def _inspected(self, name: str) -> Any:
        return self._found("the look for a container", lambda client: client.inspect_container(name))

    def _listed(self, label: str) -> Sequence[Mapping[str, Any]]:
        listed: Sequence[Mapping[str, Any]] = self._read(
            "a list of containers", lambda client: client.containers(all=True, filters={"label": label})
        )
        return listed

    def _found(self, what: str, call: Callable[[Any], Any]) -> Any:
        """Return the answer of a call; None for status 404."""
        try:
            return self._read(what, call)
        except EngineRefuses as refusal:
            if refusal.status == 404:
                return None
            raise

    def _read(self, what: str, call: Callable[[Any], Any]) -> Any:
        """Return the answer of a call that only reads, or that may be repeated."""
        try:
            return self._asked(what, call)
        except EngineRefuses as refusal:
            # An engine that cannot even read is as good as down: nothing is wrong with the request.
            if refusal.status >= 500 and passes(refusal.message):
                raise EngineDown(f"the engine fails for now: {refusal.message}") from refusal
            raise

    def _asked(self, what: str, call: Callable[[Any], Any]) -> Any:
        client = self._connected()
        return asked(what, lambda: call(client))

    def _connected(self) -> SdkClient:
        client = self._client
        if client is None:
            version = self.ping(self._answer_seconds)
            self._client = client = SdkClient(self._address, version, self._answer_seconds)
        return client

    def _request(self, method: str, path: str, **options: Any) -> EngineRequest:
        return EngineRequest(self._address, method, f"/v{self._connected().api_version}{path}", **options)


def _container(answer: Mapping[str, Any]) -> Container:
    state, start_time = answer["State"], engine_time(answer["State"].get("StartedAt", ""))
    status, error = state["Status"], state.get("Error", "")
    return Container(
        handle=DockerHandle(answer["Id"]).packed(),
        alive=status in {"running", "paused", "restarting"},
        ended=status in {"exited", "dead", "removing"} and start_time is not None,
        exit_code=state["ExitCode"],
        start_failure=diagnosis(error) if error else None,
        out_of_memory=state.get("OOMKilled", False),
        stop_signal=answer["Config"].get("StopSignal", ""),
        start_time=start_time,
        end_time=engine_time(state.get("FinishedAt", "")),
        program=next(iter(answer["Config"].get("Cmd") or ()), None),
    )


def _image(answer: Mapping[str, Any]) -> Image:
    config = answer.get("Config") or {}
    return Image(
        str(answer["Id"]), str(answer.get("Architecture", "")), config.get("Entrypoint") or (), config.get("Cmd") or ()
    )


def _epoch_of(process: int) -> str:
    """Return boot id, process id and start time, which are never used twice together.

    Empty if the process is not an engine, or is invisible here.
    """
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
