"""How an image comes to be on a host, and what it means when it does not: ours to try again, or the job's to end with."""

import json
import re
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import docker.auth
import docker.errors
import docker.utils.config

from fastlane_grpc.model import Reason
from fastlane_grpc.runner.clock import boottime
from fastlane_grpc.runner.engine import Engine
from fastlane_grpc.runner.wire import EngineDown, EngineRefuses, Wire
from fastlane_grpc.supervisor import thread

# An engine that pulls says something all the time; this long a silence means that it waits for a registry that will not answer.
SILENCE_SECONDS = 300
# A line about the progress of a pull at most so often.
PROGRESS_SECONDS = 5


class Refused(Exception):
    """It cannot be run like this: nobody is down, and trying again would not help."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail


class RegistryFails(Exception):
    """The pull failed for what may pass."""


def _says(*texts: str) -> re.Pattern[str]:
    return re.compile("|".join(texts), re.IGNORECASE)


# What engines and registries write, from the most telling to the least. Nobody documents these texts: they are those of engines 20.10 to
# 28 and of the distribution library.
_MEANINGS = (
    (_says("no space left on device", "disk quota exceeded"), Reason.REFUSED_BY_ENGINE, "the engine's disk is full"),
    (
        _says(
            "no matching manifest",
            "(does not match the specified|cannot be used on this) platform",
            "failed to register layer",
            "unsupported (media|manifest|layer)",
            "unknown (blob|layer)",
            "layer verification failed",
            "invalid (tar|checksum|rootfs)",
        ),
        Reason.IMAGE_UNUSABLE,
        "the image cannot be used here",
    ),
    (
        _says("denied", "unauthorized", "no basic auth credentials", "authentication required", "forbidden"),
        Reason.IMAGE_DENIED,
        "the registry refused; check the name, and log in to the registry on the server's machine (docker login)",
    ),
    (_says("(manifest|name) unknown", "not found", "no such image"), Reason.IMAGE_NOT_FOUND, "the registry has no such image"),
    (_says("invalid (reference|repository|tag)", "must be lowercase"), Reason.IMAGE_NOT_FOUND, "this is not the name of an image"),
)
# Some of these words are also used of what is on the way to the registry, and may pass.
_PASSING = _says(
    "too ?many ?requests",
    "no such host",
    "i/o timeout",
    "connection re(fused|set)",
    "TLS handshake",
    "server misbehaving",
    r"status:? 5\d\d",
)


def image_parts(name: str) -> tuple[str, str]:
    """Repository, and tag or digest, which is `latest` where there is none: without one an engine would pull every tag."""
    repository, at, digest = name.partition("@")
    if at:
        return repository, digest
    # A colon before the last slash belongs to the registry's port.
    head, slash, last = name.rpartition("/")
    last, _, tag = last.partition(":")
    return f"{head}{slash}{last}", tag or "latest"


def pull_failure(name: str, message: str) -> Refused | RegistryFails:
    """What a failed pull means."""
    if not _PASSING.search(message):
        for pattern, reason, meaning in _MEANINGS:
            if pattern.search(message):
                return Refused(reason, f"{name} could not be pulled: {meaning}. The engine says: {message}")
    return RegistryFails(message)


class Pull:
    """One pull, on a thread of its own: whoever waits for it can still be told something else. `on_end` gets its failure, or None."""

    def __init__(self, engine: Engine, name: str, *, on_line: Callable[[str], None], on_end: Callable[[Exception | None], None]) -> None:
        self._engine = engine
        self._name = name
        self._on_line = on_line
        self._on_end = on_end
        self._wire: Wire | None = None
        self._lock = threading.Lock()
        self._given_up = False
        # A defect, too, is handed to whoever waits, who raises it; without a word from here they would wait for ever.
        thread(f"pull-{name}", self._run, on_failure=on_end).start()

    def give_up(self) -> None:
        """Nobody waits any more: the connection is cut, on which the engine ends the pull, unless another one shares it."""
        with self._lock:
            self._given_up = True
            if self._wire is not None:
                self._wire.cut()

    def _run(self) -> None:
        try:
            self._pull()
        except (Refused, RegistryFails, EngineDown) as error:
            self._on_end(error)
        except EngineRefuses as error:
            self._on_end(pull_failure(self._name, error.message))
        except TimeoutError:
            self._on_end(RegistryFails(f"nothing was heard of the pull for {SILENCE_SECONDS} s"))
        except OSError as error:
            self._on_end(EngineDown(f"the engine broke off the pull: {error}"))
        else:
            self._on_end(None)

    def _pull(self) -> None:
        repository, tag = image_parts(self._name)
        wire = self._engine.pull(repository, tag, _registry_auth(self._name, repository), silence_seconds=SILENCE_SECONDS)
        with self._lock:
            self._wire = wire
            if self._given_up:
                wire.cut()
        progress, done = Progress(), False
        for line in wire.lines():
            message = _message(line)
            if "error" in message:
                raise pull_failure(self._name, str(message["error"]))
            done = done or str(message.get("status")).startswith("Status: ")
            if (said := progress.said(message)) and not self._given_up:
                self._on_line(f"pulling {self._name}: {said}")
        if not done:
            raise EngineDown("the engine broke off the pull")


def _message(line: bytes) -> dict[str, object]:
    try:
        message = json.loads(line)
    except ValueError:
        message = None
    if not isinstance(message, dict):
        raise RegistryFails(f"of the pull's progress it said what cannot be read: {line[:200]!r}")
    return message


# What engines say of a layer on its way, and when they have it. Its bytes are those to be loaded; to unpack it has a count of its own.
_LAYER_WAITS = {"Pulling fs layer", "Waiting", "Downloading", "Verifying Checksum", "Download complete", "Extracting"}
_LAYER_LOADED = {"Verifying Checksum", "Download complete", "Extracting", "Pull complete"}
_LAYER_DONE = {"Pull complete", "Already exists"}


@dataclass
class Progress:
    """How far the layers of an image are, said now and then: those that are done of those there are, and bytes loaded of those known of."""

    done: dict[str, bool] = field(default_factory=dict)
    loaded: dict[str, tuple[int, int]] = field(default_factory=dict)
    said_at: float = field(default_factory=boottime)

    def said(self, message: Mapping[str, object]) -> str:
        """What there is to say after the engine said this; empty if something was said just now."""
        self._hear(message)
        if not self.done or boottime() < self.said_at + PROGRESS_SECONDS:
            return ""
        self.said_at = boottime()
        return str(self)

    def __str__(self) -> str:
        layers = f"{sum(self.done.values())} of {len(self.done)} layers"
        if not self.loaded:
            return layers
        current, total = (sum(numbers) for numbers in zip(*self.loaded.values(), strict=True))
        return f"{layers}, {current / 1e6:.1f} of {total / 1e6:.1f} MB"

    def _hear(self, message: Mapping[str, object]) -> None:
        status, layer, detail = message.get("status"), str(message.get("id")), message.get("progressDetail")
        if status in _LAYER_WAITS or status in _LAYER_DONE:
            self.done[layer] = status in _LAYER_DONE
        current, total = (detail.get("current", 0), detail.get("total")) if isinstance(detail, dict) else (0, None)
        if status == "Downloading" and isinstance(current, int) and isinstance(total, int) and total:
            self.loaded[layer] = (current, total)
        elif status in _LAYER_LOADED and layer in self.loaded:
            whole = self.loaded[layer][1]
            self.loaded[layer] = (whole, whole)


def _registry_auth(name: str, repository: str) -> str:
    """What `docker login` left for this registry, read anew each time: a login takes effect without a restart."""
    try:
        registry, _ = docker.auth.resolve_repository_name(repository)
    except docker.errors.InvalidRepository as error:
        raise Refused(Reason.IMAGE_NOT_FOUND, f"{name} is not the name of an image: {error}") from error
    try:
        config = docker.auth.load_config().resolve_authconfig(registry)
        return docker.auth.encode_header(config).decode() if config else ""
    # The last four are what the SDK makes of a file that is JSON and not as `docker login` writes it.
    except (docker.errors.DockerException, OSError, ValueError, TypeError, AttributeError, KeyError) as error:
        file = docker.utils.config.find_config_file()
        detail = f"{name} could not be pulled: the credentials for registry {registry} cannot be read from {file!r}: {error}"
        raise Refused(Reason.IMAGE_DENIED, f"{detail}; mend that file on the server's machine, or log in anew (docker login)") from error
