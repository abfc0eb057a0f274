"""Restores a backup into an empty directory. The next server there starts no job until its hosts are resumed."""

import os
import shutil
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from tarfile import TarError
from typing import BinaryIO

from fastlane_grpc.backup.files import DirectoryTarget, files_of
from fastlane_grpc.backup.manifest import (
    DATABASE,
    MANIFEST,
    MAX_MANIFEST_BYTES,
    BackupError,
    Manifest,
    is_record,
)
from fastlane_grpc.errors import StoreFailed
from fastlane_grpc.store.offline import hold, instance_of

# The name of the database until all else is there: a server does not start with logs and without a database.
_UNFINISHED = "restoring.db"


@dataclass(frozen=True, slots=True)
class Restored:
    """The backup that was restored, and the number of executions that wait until a host is resumed."""

    manifest: Manifest
    waiting: int


def restore(source: str, data_dir: Path, *, stream: BinaryIO, now: datetime) -> Restored:
    """Restore a backup: a directory, a tar, or, for `-`, a tar on `stream`. BackupError: the directory is as empty as
    it was."""
    try:
        data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        if found := sorted({each.name for each in data_dir.iterdir()} - {"lost+found"}):
            raise BackupError(
                f"{data_dir} is not empty, it has {found[0]}: a backup is restored into an empty directory"
            )
        data_dir.chmod(0o700)
    except OSError as error:
        raise BackupError(f"cannot use {data_dir}: {error.strerror}") from error
    try:
        try:
            return _restore(source, data_dir, stream, now)
        except TarError as error:
            raise BackupError(f"{source} is not a tar, or is cut off: {error}") from error
        except OSError as error:
            raise BackupError(f"cannot restore {source}: {error}") from error
    except BaseException:
        _empty(data_dir)
        raise


def _restore(source: str, data_dir: Path, stream: BinaryIO, now: datetime) -> Restored:
    target, manifest, records, record_bytes = DirectoryTarget(data_dir), None, 0, 0
    for name, file, size in files_of(source, stream):
        try:
            if name == MANIFEST:
                manifest = Manifest.of_json(file.read(MAX_MANIFEST_BYTES))
                continue
            target.add(_UNFINISHED if name == DATABASE else name, file, size)
        except FileExistsError as error:
            raise BackupError(f"{name} is there twice: this is not a backup that `fastlane backup` made") from error
        if is_record(name):
            records, record_bytes = records + 1, record_bytes + size
    if manifest is None:
        raise BackupError(f"{source} has no {MANIFEST}: the backup was not finished, or is cut off")
    if (records, record_bytes) != (manifest.records, manifest.record_bytes):
        raise BackupError(
            f"{source} has {records} records of {record_bytes} bytes, and {MANIFEST} tells of {manifest.records} of"
            f" {manifest.record_bytes}: files are missing or were added"
        )
    unfinished = data_dir / _UNFINISHED
    try:
        if instance_of(unfinished) != manifest.instance:
            raise BackupError(f"{DATABASE} and {MANIFEST} of {source} are of two instances")
        waiting = hold(unfinished, f"restored from a backup of {manifest.time:%Y-%m-%d %H:%M} UTC", now)
    except StoreFailed as error:
        raise BackupError(f"{DATABASE} of {source} is damaged or missing: {error}") from error
    os.sync()
    unfinished.rename(data_dir / DATABASE)
    _sync(data_dir)
    return Restored(manifest, waiting)


def _sync(directory: Path) -> None:
    opened = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def _empty(directory: Path) -> None:
    for path in directory.iterdir():
        if path.is_dir() and not path.is_symlink():
            if path.name != "lost+found":
                shutil.rmtree(path)
        else:
            path.unlink()
