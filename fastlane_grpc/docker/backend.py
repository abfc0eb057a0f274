"""The Docker backend: implements Backend and Captures over one engine."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from fastlane_grpc.backend import (
    CannotRun,
    Container,
    Handle,
    Image,
    ImageGone,
    Info,
    LeftContainer,
    NameTaken,
    NotRunning,
    Wrapper,
)
from fastlane_grpc.capture.capture import Capture
from fastlane_grpc.config import RegistrySettings
from fastlane_grpc.docker.capture_choice import CaptureChoice
from fastlane_grpc.docker.container_body import container_body
from fastlane_grpc.docker.engine import EXECUTION_LABEL, HOST_LABEL, INSTANCE_LABEL, Engine, container_name
from fastlane_grpc.docker.engine_errors import EngineRefuses, gone_or
from fastlane_grpc.docker.events import DockerEvents
from fastlane_grpc.docker.handle import DockerHandle, unpacked
from fastlane_grpc.docker.images import DockerPull
from fastlane_grpc.docker.usage import usage_of
from fastlane_grpc.model import NOTHING_ALLOWED, Allowed, Assignment, Execution, HostKind, JobSpec, Reason, Usage
from fastlane_grpc.registry import credentials_of_job
from fastlane_grpc.secrets import RegistryCredentials


class DockerBackend:
    """Implements Backend over `engine`, for the host called `host` of the instance."""

    starts_at_once = True
    keeps_images = True
    kind = HostKind.DOCKER

    def __init__(
        self,
        engine: Engine,
        *,
        instance: str,
        host: str,
        default_pids: int,
        allowed: Allowed = NOTHING_ALLOWED,
        registries: Sequence[RegistrySettings] = (),
    ) -> None:
        """`registries`: the operator's credentials."""
        self.engine = engine
        self.address = engine.address
        self._instance = instance
        self._host = host
        self._default_pids = default_pids
        self._allowed = allowed
        self._credentials = RegistryCredentials(registries)

    # -- images

    def image(self, assignment: Assignment) -> Image | None:
        name = assignment.spec.image
        try:
            return self.engine.image(name)
        except EngineRefuses as refusal:
            if refusal.status != 400:
                raise
            raise CannotRun(
                Reason.IMAGE_NOT_FOUND, f"the engine does not take {name!r} for an image: {refusal.message}"
            ) from refusal

    def pull(
        self, assignment: Assignment, *, on_line: Callable[[str], None], on_end: Callable[[Exception | None], None]
    ) -> DockerPull:
        spec, task_id = assignment.spec, assignment.execution.task_id
        credentials = partial(credentials_of_job, self._credentials, spec.registry_credential, task_id)
        return DockerPull(self.engine, spec.image, on_line=on_line, on_end=on_end, credentials_for=credentials)

    def architecture(self, image_digest: str) -> str:
        image = self.engine.image(image_digest)
        return image.architecture if image else ""

    # -- containers

    def create(self, assignment: Assignment, image: Image, wrapper: Wrapper) -> Handle:
        self._check_allowed(assignment.spec)
        try:
            body = container_body(assignment, instance=self._instance, default_pids=self._default_pids)
        except ValueError as error:
            raise CannotRun(Reason.REFUSED_BY_ENGINE, f"the command is none: {error}") from error
        try:
            container_id = self.engine.create(container_name(assignment.execution.id), wrapper.wrap(body, image))
        except EngineRefuses as refusal:
            if refusal.status == 409:
                raise NameTaken(refusal.diagnosis) from refusal
            if refusal.status == 404 and "no such image" in refusal.message.lower():
                raise ImageGone(refusal.diagnosis) from refusal
            raise
        return DockerHandle(container_id, wrapper.name).packed()

    def _check_allowed(self, spec: JobSpec) -> None:
        """Raise CannotRun. The settings may have changed since the enqueue."""
        if refused := [*self._allowed.refused(spec)]:
            wishes, settings = [each.wish for each in refused], dict.fromkeys(each.setting for each in refused)
            raise CannotRun(
                Reason.REFUSED_BY_ENGINE,
                f"host {self._host!r} does not allow the {' and the '.join(wishes)}: see {' and '.join(settings)}",
            )

    def before_start(self, handle: Handle) -> Handle:
        return replace(unpacked(handle.text), epoch=self.engine.epoch()).packed()

    def start(self, handle: Handle) -> None:
        try:
            self.engine.start(handle.container_id)
        except EngineRefuses as refusal:
            raise gone_or(refusal, handle.container_id) from refusal

    def revoke(self, handle: Handle) -> bool:
        """Return False: the engine starts a container at once."""
        return False

    def inspect(self, handle: Handle) -> Container | None:
        return self.engine.inspect(handle.container_id)

    def usage(self, handle: Handle) -> Usage | None:
        stats = self.engine.stats(handle.container_id)
        return usage_of(stats) if stats else None

    def find(self, execution: Execution) -> Container | None:
        name = container_name(execution.id)
        found = self.engine.inspect_with_labels(name)
        if found is None:
            return None
        container, labels = found
        if (labels.get(INSTANCE_LABEL), labels.get(EXECUTION_LABEL)) != (self._instance, execution.id):
            detail = f"the engine has a container called {name} that this server did not make: remove or rename it"
            raise CannotRun(Reason.REFUSED_BY_ENGINE, detail)
        return container

    def signal(
        self, handle: Handle, signal: str, *, grace_seconds: float = 0, answer_seconds: float | None = None
    ) -> None:
        try:
            self.engine.kill(handle.container_id, signal, answer_seconds=answer_seconds)
        except EngineRefuses as refusal:
            if refusal.status in {404, 409}:
                raise NotRunning(refusal.diagnosis) from refusal
            raise

    def remove(self, handle: Handle, *, force: bool) -> None:
        self.engine.remove(handle.container_id, force=force)

    def containers(self) -> Sequence[LeftContainer]:
        # By the name of the host, too: two hosts may be one engine, and each removes its own containers only.
        return [
            LeftContainer(DockerHandle(found).packed(), labels[EXECUTION_LABEL], labels[HOST_LABEL] == self._host)
            for found, labels in self.engine.listed(self._instance).items()
        ]

    def restarted(self, handle: Handle) -> bool | None:
        before, now = unpacked(handle.text).epoch, self.engine.epoch()
        return before != now if before and now else None

    # -- the engine itself

    def events(self) -> DockerEvents:
        return DockerEvents(self.engine, self._instance)

    def ping(self, timeout_seconds: float) -> None:
        self.engine.ping(timeout_seconds)

    def info(self) -> Info:
        return self.engine.info()

    def forget(self) -> None:
        self.engine.forget()


class DockerCaptures:
    """Implements Captures: the ways of capture that `choice` finds to work with the engine."""

    def __init__(self, engine: Engine, choice: CaptureChoice) -> None:
        self._engine = engine
        self._choice = choice

    @property
    def in_use(self) -> str:
        return self._choice.in_use

    @property
    def reason(self) -> str:
        return self._choice.reason

    def determine(self) -> None:
        self._choice.determine(self._engine)

    def for_new(self, directory: Path, execution_id: str, log_line: Callable[[str], None]) -> Capture:
        return self._choice.for_new(self._engine, directory, execution_id, log_line)

    def for_existing(self, directory: Path, execution: Execution, log_line: Callable[[str], None]) -> Capture:
        return self._choice.for_existing(self._engine, directory, execution, log_line)
