"""Whether the recorder works on a host: a container is run whose recorder has to write a record that this server reads,
and is woken for.

Anything may be in the way: a data directory that the engine sees elsewhere or not at all, SELinux, user namespaces, a
disk mount noexec."""

import errno
import io
import secrets
import shutil
import tarfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import structlog
from inotify_simple import INotify, flags

from fastlane_grpc.capture.handoff import RecordHandoff
from fastlane_grpc.capture.handoff_watcher import handoff_watcher
from fastlane_grpc.capture.recorder import LEAST_LOG_BYTES, PROGRAM_TARGET, Recorder
from fastlane_grpc.docker.engine import Engine, Image
from fastlane_grpc.docker.engine_errors import explained, passes
from fastlane_grpc.docker.http import EngineDown, EngineRefuses
from fastlane_grpc.docker.images import CannotRun
from fastlane_grpc.machine.shortage import is_shortage
from fastlane_grpc.record import Chunk, Position, RecordReader, Stretch, Trailer

PROBE_LABEL = "fastlane.probe"
# A container of nothing starts in a quarter of a second; an engine with much to do takes its time.
PROBE_SECONDS = 20.0
# Where the kernel cannot tell of changes: how often it is looked for some.
POLL_SECONDS = 0.05

log = structlog.get_logger(__name__)


class NotHere(Exception):
    """The recorder does not work on this host; the message says why."""


class Probed(NamedTuple):
    """What the recorder cannot do here, though it works (empty: nothing); and whether all was tried that bears on
    it."""

    lacks: str
    whole: bool


def probe(engine: Engine, recorder: Recorder, *, owner: str) -> Probed:
    """Raises NotHere; EngineDown; OSError of a shortage, after which it may be tried again. One at a time for each
    `owner`."""
    name = f"fastlane-probe-{secrets.token_hex(4)}"
    directory = recorder.data_dir / "recorder" / name
    try:
        _clear(engine, owner)
        with _image(engine, name, owner) as image:
            # So small a limit that what the probe prints goes beyond it.
            limited = replace(recorder, max_log_bytes=LEAST_LOG_BYTES)
            return _run(engine, limited, Image(image, "", (), ()), directory, owner=owner)
    except EngineRefuses as refusal:
        raise not_here(refusal) from refusal
    except CannotRun as error:
        raise NotHere(str(error)) from error
    except OSError as error:
        if is_shortage(error):
            raise
        raise NotHere(f"the data directory cannot be used for it: {error}") from error
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def not_here(refusal: EngineRefuses) -> Exception:
    """What a refusal means. One that passes says nothing of the recorder, and must not have everything captured by
    attach from now on."""
    if passes(refusal.message):
        return EngineDown(f"the engine fails for now: {explained(refusal.message)}")
    return NotHere(f"the engine refuses: {explained(refusal.message)}")


def _run(engine: Engine, recorder: Recorder, image: Image, directory: Path, *, owner: str) -> Probed:
    handoff = RecordHandoff(directory)
    mount = handoff.make()
    body = recorder.wrap(_body(image, owner), image, mount, directory.name)
    container_id = engine.create(directory.name, body)
    try:
        with _watch(handoff.record) as watch, handoff_watcher.of(mount, handoff.record):
            engine.start(container_id)
            woken, trailer = _wait(watch, handoff.record)
        if trailer is None:
            container = engine.inspect(container_id)
            ended = container is not None and container.ended
            raise NotHere(
                f"a container that had to write a record {f'exited with {container.exit_code}' if container and ended else 'did not end'} "
                f"and this server sees no end of a record in {directory}: does the engine find the data directory under the same path?"
            )
        head, *rest = _kept(handoff.record)
        if trailer.exit_code != 0 or not head.startswith(b"fastlane recorder"):
            raise NotHere(
                f"the record of a container that had to write one is not right: it ended with {trailer.exit_code}"
            )
        if watch and not woken:
            raise NotHere(
                "the kernel does not tell of changes to a record: inotify does not work on the file system of the data directory"
            )
        if not any(rest):
            return Probed(
                "of a log beyond its limit only the head is kept: the file system of the data directory punches no holes",
                bool(watch),
            )
        return Probed("", bool(watch))
    finally:
        with suppress(EngineRefuses):
            engine.remove(container_id, force=True)


@contextmanager
def _watch(record: Path) -> Iterator[INotify | None]:
    """A watch of the record; None where none is to be had, as other programs of this user have them all."""
    try:
        watch = INotify()
    except OSError as error:
        log.warning("inotify is not tried out: it has no instance for this server", error=str(error))
        yield None
        return
    with watch:
        try:
            watch.add_watch(record, flags.MODIFY)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            log.warning("inotify is not tried out: it has no watch for this server", error=str(error))
            yield None
        else:
            yield watch


def _wait(watch: INotify | None, record: Path) -> tuple[bool, Trailer | None]:
    """Whether news came, and the end of the record; at once when all is there that can come."""
    until, woken, trailer = time.monotonic() + PROBE_SECONDS, watch is None, None
    while (left := until - time.monotonic()) > 0 and not (woken and trailer):
        if watch is None:
            time.sleep(POLL_SECONDS)
        else:
            woken = bool(watch.read(timeout=max(int(min(left, 1.0) * 1000), 1))) or woken
        reader = RecordReader(record)
        try:
            trailer = reader.trailer()
        finally:
            reader.close()
        if trailer and not woken and watch:
            # Written before this look, told a moment later.
            woken = bool(watch.read(timeout=1000))
            break
    return woken, trailer


def _kept(record: Path) -> list[bytes]:
    """The output that was kept, cut where some is missing."""
    kept, stretch = [b""], Stretch((), Position.BEGIN)
    reader = RecordReader(record)
    try:
        while not stretch.trailer:
            stretch = reader.read(stretch.next)
            for entry in stretch.entries:
                if isinstance(entry, Chunk):
                    kept[-1] += entry.data
                else:
                    kept.append(b"")
    finally:
        reader.close()
    return kept


def _body(image: Image, owner: str) -> dict[str, object]:
    return {
        "Image": image.digest,
        "Entrypoint": None,
        "Cmd": [PROGRAM_TARGET, "--probe"],
        "Labels": {PROBE_LABEL: owner},
        # As much as a job gets at most, in what could be in the way.
        "User": "65534",
        "HostConfig": {
            "LogConfig": {"Type": "none"},
            "NetworkMode": "none",
            "PidsLimit": 16,
            "ReadonlyRootfs": True,
            "CapDrop": ["ALL"],
            "SecurityOpt": ["no-new-privileges"],
        },
    }


@contextmanager
def _image(engine: Engine, name: str, owner: str) -> Iterator[str]:
    """One of nothing: no image of anybody's is needed."""
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w") as files:
        directory = tarfile.TarInfo("tmp")
        directory.type, directory.mode = tarfile.DIRTYPE, 0o1777
        files.addfile(directory)
    tag = f"{name}:1"
    engine.make_image(tag, tar.getvalue(), label=PROBE_LABEL, value=owner)
    try:
        yield tag
    finally:
        with suppress(EngineRefuses):
            engine.remove_image(tag)


def _clear(engine: Engine, owner: str) -> None:
    """What a probe of this server left that was killed."""
    for container_id in engine.labelled(PROBE_LABEL, owner):
        with suppress(EngineRefuses):
            engine.remove(container_id, force=True)
    for image_id in engine.labelled_images(PROBE_LABEL, owner):
        with suppress(EngineRefuses):
            engine.remove_image(image_id)
