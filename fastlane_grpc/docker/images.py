"""The pull of an image, with its progress, and the classification of a failed pull.

A failure either may pass, so that a later try may succeed (PullFailed), or ends the job (CannotRun).
"""

import json
import re
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import docker.auth
import docker.errors

from fastlane_grpc.backend import CannotRun, PullFailed, RefusalKind
from fastlane_grpc.clock import boottime
from fastlane_grpc.docker.engine import Engine
from fastlane_grpc.docker.engine_errors import EngineDown, EngineRefuses, explained, refusal_of
from fastlane_grpc.docker.http import EngineRequest
from fastlane_grpc.machine.shortage import outlast
from fastlane_grpc.model import Reason
from fastlane_grpc.registry import Credentials, credentials_for
from fastlane_grpc.supervisor import thread

# An engine that pulls reports progress all the time. A silence of this length means a registry that does not answer.
SILENCE_SECONDS = 300
# Least time between two lines about the progress of a pull.
PROGRESS_SECONDS = 5


def _pattern(*texts: str) -> re.Pattern[str]:
    return re.compile("|".join(texts), re.IGNORECASE)


# Error texts of engines and registries, from the most specific to the least. These texts are not documented: they are
# those of engines 20.10 to 28 and of the distribution library.
_MEANINGS = (
    (
        _pattern(
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
        _pattern("denied", "unauthorized", "no basic auth credentials", "authentication required", "forbidden"),
        Reason.IMAGE_DENIED,
        "the registry refused; check the name, and log in to the registry on the server's machine (docker login)",
    ),
    (
        _pattern("(manifest|name) unknown", "not found", "no such image"),
        Reason.IMAGE_NOT_FOUND,
        "the registry has no such image",
    ),
    (
        _pattern("invalid (reference|repository|tag)", "must be lowercase"),
        Reason.IMAGE_NOT_FOUND,
        "this is not the name of an image",
    ),
)
# Failures of the network, of which some contain the same words, may pass.
_PASSING = _pattern(
    "too ?many ?requests",
    "no such host",
    "i/o timeout",
    "connection re(fused|set)",
    "TLS handshake",
    "server misbehaving",
    r"status:? 5\d\d",
)


def image_parts(name: str) -> tuple[str, str]:
    """Return the repository, and the tag or digest: `latest` by default, as an engine pulls every tag without one."""
    repository, at, digest = name.partition("@")
    if at:
        return repository, digest
    # A colon before the last slash belongs to the registry's port.
    head, slash, last = name.rpartition("/")
    last, _, tag = last.partition(":")
    return f"{head}{slash}{last}", tag or "latest"


# Some registries put the time to wait into the message, as a duration in Go's format. The engine hides their header.
_RETRY_AFTER = re.compile(r"retry-after:? ((?:[0-9.]+(?:h|ms|m|s|us|µs|ns))+)", re.IGNORECASE)
_UNITS = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9}


def pull_failure(name: str, message: str) -> CannotRun | PullFailed:
    """Return the exception for the error message of a failed pull."""
    text = _without_name(name, message)
    if _PASSING.search(text):
        return PullFailed(message, retry_seconds=_retry_seconds(text))
    if refusal_of(text) is RefusalKind.PASSING:
        return PullFailed(explained(message), reason=Reason.REFUSED_BY_ENGINE)
    for pattern, reason, meaning in _MEANINGS:
        if pattern.search(text):
            return CannotRun(reason, f"{name} could not be pulled: {meaning}. The engine says: {message}")
    return PullFailed(message)


def _without_name(name: str, message: str) -> str:
    """Return a message without the path of the image, which may contain any words: team/access-denied."""
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


class DockerPull:
    """One pull on a thread of its own, so that the execution can receive commands meanwhile.

    `on_end` is called with the failure, or None.
    """

    def __init__(
        self,
        engine: Engine,
        name: str,
        *,
        on_line: Callable[[str], None],
        on_end: Callable[[Exception | None], None],
        credentials_for: Callable[[str], Credentials] = credentials_for,
    ) -> None:
        """`credentials_for` returns the credentials for a registry. It may raise CannotRun and PullFailed."""
        self._engine = engine
        self._name = name
        self._credentials_for = credentials_for
        self._on_line = on_line
        self._on_end = on_end
        self._request: EngineRequest | None = None
        self._lock = threading.Lock()
        self._cancelled = False
        self._credentials = Credentials()
        # `on_end` also gets a defect, which the execution raises; without a call the execution would wait for ever.
        outlast(thread(f"pull-{name}", self._run, on_failure=on_end).start)

    def cancel(self) -> None:
        """Cut the connection. The engine then ends the pull, unless another pull shares it."""
        with self._lock:
            self._cancelled = True
            if self._request is not None:
                self._request.cut()

    def _run(self) -> None:
        try:
            self._pull()
        except CannotRun as error:
            self._on_end(self._credentials.added_to(error, "pulled"))
        except (PullFailed, EngineDown) as error:
            self._on_end(error)
        except EngineRefuses as error:
            failure = pull_failure(self._name, error.message)
            self._on_end(self._credentials.added_to(failure, "pulled") if isinstance(failure, CannotRun) else failure)
        except TimeoutError:
            self._on_end(PullFailed(f"nothing was heard of the pull for {SILENCE_SECONDS} s"))
        except OSError as error:
            self._on_end(EngineDown(f"the engine broke off the pull: {error}"))
        else:
            self._on_end(None)

    def _pull(self) -> None:
        repository, tag = image_parts(self._name)
        credentials = self._credentials = self._credentials_for(_registry(self._name, repository))
        if credentials.problem:
            self._on_line(f"pulling {self._name} without credentials: {credentials.problem}")
        request = self._engine.pull(repository, tag, credentials.header, silence_seconds=SILENCE_SECONDS)
        with self._lock:
            self._request = request
            if self._cancelled:
                request.cut()
        progress, done = PullProgress(), False
        for line in request.lines():
            message = _message(line)
            if "error" in message:
                raise pull_failure(self._name, str(message["error"]))
            done = done or str(message.get("status")).startswith("Status: ")
            if (report := progress.report(message)) and not self._cancelled:
                self._on_line(f"pulling {self._name}: {report}")
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


# The states of a layer that engines report. Only the bytes to load are counted, not those to unpack.
_LAYER_WAITS = {"Pulling fs layer", "Waiting", "Downloading", "Verifying Checksum", "Download complete", "Extracting"}
_LAYER_LOADED = {"Verifying Checksum", "Download complete", "Extracting", "Pull complete"}
_LAYER_DONE = {"Pull complete", "Already exists"}


@dataclass
class PullProgress:
    """The progress of a pull: finished layers of known layers, and loaded bytes of known bytes."""

    done: dict[str, bool] = field(default_factory=dict)
    loaded: dict[str, tuple[int, int]] = field(default_factory=dict)
    report_time: float = field(default_factory=boottime)

    def report(self, message: Mapping[str, object]) -> str:
        """Return the progress after this message; empty if there was a line less than PROGRESS_SECONDS ago."""
        self._update(message)
        if not self.done or boottime() < self.report_time + PROGRESS_SECONDS:
            return ""
        self.report_time = boottime()
        return str(self)

    def __str__(self) -> str:
        layers = f"{sum(self.done.values())} of {len(self.done)} layers"
        if not self.loaded:
            return layers
        current, total = (sum(numbers) for numbers in zip(*self.loaded.values(), strict=True))
        return f"{layers}, {current / 1e6:.1f} of {total / 1e6:.1f} MB"

    def _update(self, message: Mapping[str, object]) -> None:
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
