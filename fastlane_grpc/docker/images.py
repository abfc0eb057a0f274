"""How an image comes to be on a host, and what it means when it does not: ours to try again, or the job's to end
with."""

import json
import re
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import docker.auth
import docker.errors

from fastlane_grpc.clock import boottime
from fastlane_grpc.docker.credentials import credentials_for
from fastlane_grpc.docker.engine import Engine
from fastlane_grpc.docker.engine_errors import Refusal, explained, refusal_of
from fastlane_grpc.docker.http import EngineDown, EngineRefuses, EngineRequest
from fastlane_grpc.machine.shortage import outlast
from fastlane_grpc.model import Reason
from fastlane_grpc.supervisor import thread

# An engine that pulls says something all the time; this long a silence means that it waits for a registry that will not
# answer.
SILENCE_SECONDS = 300
# A line about the progress of a pull at most so often.
PROGRESS_SECONDS = 5


class CannotRun(Exception):
    """It cannot be run like this: nobody is down, and trying again would not help."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail


class PullFailed(Exception):
    """The pull failed for what may pass: `reason` is that of its execution if it does not. The registry asks to wait
    `retry_seconds`."""

    def __init__(
        self, message: str, *, reason: Reason = Reason.REGISTRY_UNAVAILABLE, retry_seconds: float = 0.0
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.retry_seconds = retry_seconds


def _says(*texts: str) -> re.Pattern[str]:
    return re.compile("|".join(texts), re.IGNORECASE)


# What engines and registries write, from the most telling to the least. Nobody documents these texts: they are those of
# engines 20.10 to 28 and of the distribution library.
_MEANINGS = (
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
    (
        _says("(manifest|name) unknown", "not found", "no such image"),
        Reason.IMAGE_NOT_FOUND,
        "the registry has no such image",
    ),
    (
        _says("invalid (reference|repository|tag)", "must be lowercase"),
        Reason.IMAGE_NOT_FOUND,
        "this is not the name of an image",
    ),
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
    """Repository, and tag or digest, which is `latest` where there is none: without one an engine would pull every
    tag."""
    repository, at, digest = name.partition("@")
    if at:
        return repository, digest
    # A colon before the last slash belongs to the registry's port.
    head, slash, last = name.rpartition("/")
    last, _, tag = last.partition(":")
    return f"{head}{slash}{last}", tag or "latest"


# Some registries say in the message how long to wait, as Go writes a duration; the header that says it the engine keeps
# to itself.
_RETRY_AFTER = re.compile(r"retry-after:? ((?:[0-9.]+(?:h|ms|m|s|us|µs|ns))+)", re.IGNORECASE)
_UNITS = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9}


def pull_failure(name: str, message: str) -> CannotRun | PullFailed:
    """What a failed pull means."""
    said = _without_name(name, message)
    if _PASSING.search(said):
        return PullFailed(message, retry_seconds=_retry_seconds(said))
    if refusal_of(said) is Refusal.PASSING:
        return PullFailed(explained(message), reason=Reason.REFUSED_BY_ENGINE)
    for pattern, reason, meaning in _MEANINGS:
        if pattern.search(said):
            return CannotRun(reason, f"{name} could not be pulled: {meaning}. The engine says: {message}")
    return PullFailed(message)


def _without_name(name: str, message: str) -> str:
    """A message without the path of the image, which may have any words in it: team/access-denied."""
    repository, _ = image_parts(name)
    for path in (repository, repository.partition("/")[2]):
        if "/" in path:
            message = message.replace(path, "")
    return message


def _retry_seconds(message: str) -> float:
    found = _RETRY_AFTER.search(message)
    if found is None:
        return 0.0
    parts = re.findall(r"([0-9.]+)(h|ms|m|s|us|µs|ns)", found[1], re.IGNORECASE)
    try:
        return sum(float(number) * _UNITS[unit.lower()] for number, unit in parts)
    except ValueError:
        return 0.0


class Pull:
    """One pull, on a thread of its own: whoever waits for it can still be told something else. `on_end` gets its
    failure, or None."""

    def __init__(
        self, engine: Engine, name: str, *, on_line: Callable[[str], None], on_end: Callable[[Exception | None], None]
    ) -> None:
        self._engine = engine
        self._name = name
        self._on_line = on_line
        self._on_end = on_end
        self._request: EngineRequest | None = None
        self._lock = threading.Lock()
        self._cancelled = False
        # Why there are no credentials for the registry, though there may be some.
        self._problem = ""
        # A defect, too, is handed to whoever waits, who raises it; without a word from here they would wait for ever.
        outlast(thread(f"pull-{name}", self._run, on_failure=on_end).start)

    def cancel(self) -> None:
        """Nobody waits any more: the connection is cut, on which the engine ends the pull, unless another one shares
        it."""
        with self._lock:
            self._cancelled = True
            if self._request is not None:
                self._request.cut()

    def _run(self) -> None:
        try:
            self._pull()
        except CannotRun as error:
            self._on_end(self._with_problem(error))
        except (PullFailed, EngineDown) as error:
            self._on_end(error)
        except EngineRefuses as error:
            self._on_end(self._with_problem(pull_failure(self._name, error.message)))
        except TimeoutError:
            self._on_end(PullFailed(f"nothing was heard of the pull for {SILENCE_SECONDS} s"))
        except OSError as error:
            self._on_end(EngineDown(f"the engine broke off the pull: {error}"))
        else:
            self._on_end(None)

    def _with_problem(self, failure: CannotRun | PullFailed) -> CannotRun | PullFailed:
        """With why there were no credentials, if that may be why the registry refused: some call a private image
        unknown."""
        if (
            self._problem
            and isinstance(failure, CannotRun)
            and failure.reason in {Reason.IMAGE_DENIED, Reason.IMAGE_NOT_FOUND}
        ):
            return CannotRun(failure.reason, f"{failure.detail}. It was pulled without credentials: {self._problem}")
        return failure

    def _pull(self) -> None:
        repository, tag = image_parts(self._name)
        credentials = credentials_for(_registry(self._name, repository))
        self._problem = credentials.problem
        if self._problem:
            self._on_line(f"pulling {self._name} without credentials: {self._problem}")
        request = self._engine.pull(repository, tag, credentials.header, silence_seconds=SILENCE_SECONDS)
        with self._lock:
            self._request = request
            if self._cancelled:
                request.cut()
        progress, done = Progress(), False
        for line in request.lines():
            message = _message(line)
            if "error" in message:
                raise pull_failure(self._name, str(message["error"]))
            done = done or str(message.get("status")).startswith("Status: ")
            if (said := progress.said(message)) and not self._cancelled:
                self._on_line(f"pulling {self._name}: {said}")
        if not done:
            raise EngineDown("the engine broke off the pull")


def _message(line: bytes) -> dict[str, object]:
    try:
        message = json.loads(line)
    except ValueError:
        message = None
    if not isinstance(message, dict):
        raise PullFailed(f"of the pull's progress it said what cannot be read: {line[:200]!r}")
    return message


# What engines say of a layer on its way, and when they have it. Its bytes are those to be loaded; to unpack it has a
# count of its own.
_LAYER_WAITS = {"Pulling fs layer", "Waiting", "Downloading", "Verifying Checksum", "Download complete", "Extracting"}
_LAYER_LOADED = {"Verifying Checksum", "Download complete", "Extracting", "Pull complete"}
_LAYER_DONE = {"Pull complete", "Already exists"}


@dataclass
class Progress:
    """How far the layers of an image are, said now and then: those that are done of those there are, and bytes loaded
    of those known of."""

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


def _registry(name: str, repository: str) -> str:
    try:
        registry, _ = docker.auth.resolve_repository_name(repository)
    except docker.errors.InvalidRepository as error:
        raise CannotRun(Reason.IMAGE_NOT_FOUND, f"{name} is not the name of an image: {error}") from error
    return registry
