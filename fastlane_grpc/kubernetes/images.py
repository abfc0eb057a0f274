"""Images as their registries have them: a pod runs its command under the recorder, so the command must be known.

What was read is kept by its digest. What a tag names is asked again after some time.
"""

import asyncio
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import TypeAlias, TypeVar

from fastlane_grpc.backend import CannotRun, Image, PullFailed
from fastlane_grpc.machine.shortage import outlast
from fastlane_grpc.model import Assignment, JobSpec, PullPolicy, Reason
from fastlane_grpc.recorder import ARCHITECTURES
from fastlane_grpc.registry import Credentials, Reference, RegistryClient, credentials_of_job, read_image
from fastlane_grpc.secrets import RegistryCredentials
from fastlane_grpc.supervisor import thread

# Time for which a tag is taken to name what it named: many jobs of one image at a time ask its registry once.
FRESH_SECONDS = 60.0
# A look-up takes three small requests, and three more where the registry wants a token.
LOOK_UP_SECONDS = 60.0
MOST_IMAGES = 256

K = TypeVar("K")
V = TypeVar("V")
# What decides which image a job gets: its name, the credential that it asks for, and its task.
_Key: TypeAlias = tuple[str, str, str]


class RegistryImages:
    """The images of the jobs of one host. May be used from any thread.

    `architecture` is that of all nodes, as Docker names it; empty: any that the recorder is made for.
    """

    def __init__(self, credentials: RegistryCredentials, architecture: str = "") -> None:
        self._credentials = credentials
        self._architectures = [architecture] if architecture else [*ARCHITECTURES]
        self._lock = threading.Lock()
        self._by_digest: OrderedDict[str, Image] = OrderedDict()
        self._by_key: OrderedDict[_Key, tuple[float, Image]] = OrderedDict()

    def known(self, assignment: Assignment) -> Image | None:
        """Return the image of the job, an empty one if the job says itself what it runs; None: it is to be looked up.

        Raises CannotRun if it has to be looked up and must not be.
        """
        spec = assignment.spec
        if not (unknown := _unknown(spec)):
            return Image("", "", (), ())
        if spec.pull_policy is PullPolicy.NEVER:
            raise CannotRun(
                Reason.REFUSED_BY_ENGINE,
                f"the nodes of a cluster do not tell the {unknown} of an image, and the job's pull policy NEVER keeps "
                f"the server from asking its registry: set `{unknown}` in the job",
            )
        reference = Reference.parse(spec.image)
        with self._lock:
            if reference.digest:
                return self._by_digest.get(reference.digest)
            read_time, image = self._by_key.get(_key(assignment), (0.0, None))
            return image if image and time.monotonic() < read_time + FRESH_SECONDS else None

    def architecture(self, digest: str) -> str:
        """Return the architecture of an image that was read; empty: it has several, or is not known any more."""
        with self._lock:
            image = self._by_digest.get(digest)
            return image.architecture if image else ""

    def look_up(
        self, assignment: Assignment, *, on_line: Callable[[str], None], on_end: Callable[[Exception | None], None]
    ) -> "ImageLookUp":
        """Look up the image of the job in the background: then it is known, or `on_end` is called with the failure."""
        return ImageLookUp(self, assignment, on_line=on_line, on_end=on_end)

    def credentials(self, assignment: Assignment, registry: str) -> Credentials:
        """Return the credentials for the registry of a job's image. Raises CannotRun and PullFailed."""
        spec = assignment.spec
        return credentials_of_job(self._credentials, spec.registry_credential, assignment.execution.task_id, registry)

    async def read(self, assignment: Assignment, reference: Reference, credentials: Credentials) -> None:
        """Read the image of the job, and keep it. Raises CannotRun and PullFailed."""
        async with RegistryClient.connected(reference, credentials.credential, seconds=LOOK_UP_SECONDS) as client:
            image = await read_image(client, reference, self._architectures)
        with self._lock:
            _keep(self._by_digest, image.digest, image)
            _keep(self._by_key, _key(assignment), (time.monotonic(), image))


class ImagesOfNodes:
    """Images that the nodes alone look at: a pod that runs its command plainly takes whatever its image says."""

    def known(self, assignment: Assignment) -> Image:
        return Image("", "", (), ())

    def architecture(self, digest: str) -> str:
        return ""

    def look_up(
        self, assignment: Assignment, *, on_line: Callable[[str], None], on_end: Callable[[Exception | None], None]
    ) -> "NoLookUp":
        on_end(None)
        return NoLookUp()


class NoLookUp:
    """Implements Pull: there is nothing to look up."""

    def cancel(self) -> None:
        """Do nothing."""


class ImageLookUp:
    """Implements Pull: one look-up on a thread of its own, so that the execution can receive commands meanwhile."""

    def __init__(
        self,
        images: RegistryImages,
        assignment: Assignment,
        *,
        on_line: Callable[[str], None],
        on_end: Callable[[Exception | None], None],
    ) -> None:
        self._images = images
        self._assignment = assignment
        self._on_line = on_line
        self._on_end = on_end
        self._lock = threading.Lock()
        self._cancelled = False
        self._cancel: Callable[[], object] = lambda: None
        if not _unknown(assignment.spec):
            on_end(None)
            return
        # `on_end` also gets a defect, which the execution raises; without a call the execution would wait for ever.
        outlast(thread(f"look-up-{assignment.spec.image}", self._run, on_failure=on_end).start)

    def cancel(self) -> None:
        with self._lock:
            self._cancelled = True
            self._cancel()

    def _run(self) -> None:
        name, credentials = self._assignment.spec.image, Credentials()
        try:
            reference = Reference.parse(name)
            credentials = self._images.credentials(self._assignment, reference.registry)
            if credentials.problem:
                self._on_line(f"looking up {name} without credentials: {credentials.problem}")
            self._ask(reference, credentials)
        except CannotRun as error:
            self._on_end(credentials.added_to(error, "looked up"))
        except PullFailed as error:
            self._on_end(error)
        except asyncio.CancelledError:
            self._on_end(PullFailed("the look-up was cancelled"))
        else:
            self._on_end(None)

    def _ask(self, reference: Reference, credentials: Credentials) -> None:
        with asyncio.Runner() as runner:
            runner.run(self._read(runner.get_loop(), reference, credentials))
            with self._lock:
                # The loop is about to be closed.
                self._cancel = lambda: None

    async def _read(self, loop: asyncio.AbstractEventLoop, reference: Reference, credentials: Credentials) -> None:
        task = asyncio.current_task()
        assert task is not None
        with self._lock:
            self._cancel = lambda: loop.call_soon_threadsafe(task.cancel)
            if self._cancelled:
                return
        try:
            await self._images.read(self._assignment, reference, credentials)
        finally:
            with self._lock:
                self._cancel = lambda: None


def _keep(images: OrderedDict[K, V], key: K, value: V) -> None:
    """Keep a value as the newest, and so many at most."""
    images[key] = value
    images.move_to_end(key)
    if len(images) > MOST_IMAGES:
        images.popitem(last=False)


def _unknown(spec: JobSpec) -> str:
    """Return what must be known of the image, as the job does not say it; empty: nothing."""
    if not spec.entrypoint:
        return "entrypoint"
    # Root writes the inputs, and then becomes the user.
    return "user" if spec.inputs and not spec.user else ""


def _key(assignment: Assignment) -> _Key:
    spec = assignment.spec
    return (spec.image, spec.registry_credential, assignment.execution.task_id)
