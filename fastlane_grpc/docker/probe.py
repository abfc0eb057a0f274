"""The probe of the recorder on a host: runs a container whose recorder writes a record that this server has to read.

The server must also be notified of the record's changes. Many things can be in the way: a data directory that the
engine sees elsewhere or not at all, SELinux, user namespaces, a disk mounted noexec.
"""

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

from fastlane_grpc.backend import CannotRun, Image
from fastlane_grpc.capture.handoff import RecordHandoff
from fastlane_grpc.capture.handoff_watcher import handoff_watcher
from fastlane_grpc.capture.recorder import LEAST_LOG_BYTES, PROGRAM_TARGET, Recorder
from fastlane_grpc.docker.engine import Engine
from fastlane_grpc.docker.engine_errors import EngineDown, EngineRefuses, container_gone, explained, passes
from fastlane_grpc.machine.shortage import is_shortage
from fastlane_grpc.record import Chunk, Position, RecordReader, Segment, Trailer

PROBE_LABEL = "fastlane.probe"
# An empty container starts in a quarter of a second; a busy engine takes longer.
PROBE_SECONDS = 20.0
# Pause between two looks at the record without inotify.
POLL_SECONDS = 0.05

log = structlog.get_logger(__name__)


class NotHere(Exception):
    """The recorder does not work on this host, for the reason in the message."""


class Probed(NamedTuple):
    """The result of a probe: what the recorder cannot do here (empty: nothing), and whether the probe was whole."""

    lacks: str
    whole: bool


def probe(engine: Engine, recorder: Recorder, *, owner: str) -> Probed:
    """Probe the recorder. Only one probe for each `owner` may run at a time.

    Raises NotHere, EngineDown, and OSError for a shortage, after which the probe may be repeated.
    """
    name = f"fastlane-probe-{secrets.token_hex(4)}"
    directory = recorder.data_dir / "recorder" / name
    try:
        _clear(engine, owner)
        with _image(engine, name, owner) as image:
            # The limit is so small that the output of the probe exceeds it.
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


def not_here(refusal: EngineRefuses, container_id: str = "") -> Exception:
    """Return the exception for a refusal: EngineDown for one that passes, as it says nothing about the recorder.

    A refusal that somebody has removed the container of the probe passes, too.
    """
    if container_id and container_gone(refusal.message, container_id):
        return _removed()
    if passes(refusal.message):
        return EngineDown(f"the engine fails for now: {explained(refusal.message)}")
    return NotHere(f"the engine refuses: {explained(refusal.message)}")


def _removed() -> EngineDown:
    return EngineDown("somebody removed the container that tries out the recorder; another one is tried")


def _run(engine: Engine, recorder: Recorder, image: Image, directory: Path, *, owner: str) -> Probed:
    handoff = RecordHandoff(directory)
    mount = handoff.make()
    body = recorder.wrap(_body(image, owner), image, mount, directory.name)
    container_id = engine.create(directory.name, body)
    try:
        with _watch(handoff.record) as watch, handoff_watcher.of(mount, handoff.record):
            try:
                engine.start(container_id)
            except EngineRefuses as refusal:
                raise not_here(refusal, container_id) from refusal
            woken, trailer = _wait(watch, handoff.record)
        if trailer is None:
            container = engine.inspect(container_id)
            if container is None:
                raise _removed()
            end = f"exited with {container.exit_code}" if container.ended else "did not end"
            raise NotHere(
                f"a container that had to write a record {end} "
                f"and this server sees no end of a record in {directory}: "
                "does the engine find the data directory under the same path?"
            )
        head, *rest = _kept(handoff.record)
        if trailer.exit_code != 0 or not head.startswith(b"fastlane recorder"):
            raise NotHere(
                f"the record of a container that had to write one is not right: it ended with {trailer.exit_code}"
            )
        if watch and not woken:
            raise NotHere(
                "the kernel does not tell of changes to a record: "
                "inotify does not work on the file system of the data directory"
            )
        if not any(rest):
            return Probed(
                "of a log beyond its limit only the head is kept: "
                "the file system of the data directory punches no holes",
                bool(watch),
            )
        return Probed("", bool(watch))
    finally:
        with suppress(EngineRefuses):
            engine.remove(container_id, force=True)


@contextmanager
def _watch(record: Path) -> Iterator[INotify | None]:
    """Yield a watch of the record; None if other programs of this user have taken all watches."""
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
    """Wait for the end of the record; return whether a notification came, and the trailer."""
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
            # The trailer was written before this look; the notification comes a moment later.
            woken = bool(watch.read(timeout=1000))
            break
    return woken, trailer


def _kept(record: Path) -> list[bytes]:
    """Return the kept output, split at the gaps."""
    kept, segment = [b""], Segment((), Position.BEGIN)
    reader = RecordReader(record)
    try:
        while not segment.trailer:
            segment = reader.read(segment.next)
            for entry in segment.entries:
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
        # As restricted as the container of a job can be.
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
    """Yield the tag of an empty image, so that the probe needs no image of a user."""
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
    """Remove what an interrupted probe of this owner left."""
    for container_id in engine.labelled(PROBE_LABEL, owner):
        with suppress(EngineRefuses):
            engine.remove(container_id, force=True)
    for image_id in engine.labelled_images(PROBE_LABEL, owner):
        with suppress(EngineRefuses):
            engine.remove_image(image_id)
