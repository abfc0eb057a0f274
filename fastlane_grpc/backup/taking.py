"""Takes a backup of a data directory, also while a server serves it.

The database comes first, then the records: so each job has at least as much of its log as it had at that moment. The
contents of inputs come last: a job that the copy of the database has was stored after them."""

import os
from collections.abc import Iterator
from datetime import datetime
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import BinaryIO

from fastlane_grpc.backup.files import Target, opened_target
from fastlane_grpc.backup.manifest import (
    DATABASE,
    MANIFEST,
    RELAY_KEY,
    TOKENS,
    BackupError,
    Manifest,
    is_input,
    is_of_relay,
    is_record,
)
from fastlane_grpc.errors import StoreFailed
from fastlane_grpc.record import open_record
from fastlane_grpc.store.offline import copy_database


def back_up(data_dir: Path, target: str, *, output: BinaryIO, version: str, now: datetime) -> Manifest:
    """Back up a data directory to a new directory, a new tar, or, for `-`, as a tar to `output`. Return what is in the
    backup. BackupError: nothing that looks like a complete backup is left."""
    if not (data_dir / DATABASE).is_file():
        raise BackupError(f"there is no {data_dir / DATABASE}: set --data-dir as the server has it")
    with opened_target(target, output) as opened:
        instance = _add_database(opened, data_dir, _room_beside(target))
        for name in (TOKENS, RELAY_KEY):
            _add_if_there(opened, name, data_dir / name)
        records = record_bytes = 0
        for name in record_names(data_dir):
            if size := _add_record(opened, name, data_dir / name):
                records, record_bytes = records + 1, record_bytes + size
        for name in (*relay_names(data_dir), *input_names(data_dir)):
            # One that was deleted meanwhile is used by no job.
            _add_if_there(opened, name, data_dir / name)
        manifest = Manifest(instance, now, version, records, record_bytes)
        text = manifest.as_json()
        opened.add(MANIFEST, BytesIO(text), len(text))
    return manifest


def record_names(data_dir: Path) -> Iterator[str]:
    """Yield the names of all records below the data directory, oldest day first."""
    logs = data_dir / "logs"
    for day in _names(logs):
        for execution_id in _names(logs / day):
            for record in ("log", "system", "outputs"):
                name = f"logs/{day}/{execution_id}/{record}"
                if is_record(name):
                    yield name


def relay_names(data_dir: Path) -> Iterator[str]:
    """Yield the names of all files about relays below the data directory."""
    logs = data_dir / "logs"
    for day in _names(logs):
        for execution_id in _names(logs / day):
            for file in ("relay", "relay-pod"):
                name = f"logs/{day}/{execution_id}/{file}"
                if is_of_relay(name):
                    yield name


def input_names(data_dir: Path) -> Iterator[str]:
    """Yield the names of all whole contents of inputs below the data directory."""
    for checksum in _names(data_dir / "inputs"):
        if is_input(name := f"inputs/{checksum}"):
            yield name


def _names(directory: Path) -> list[str]:
    try:
        return sorted(path.name for path in directory.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []


def _room_beside(target: str) -> Path | None:
    """Return where a copy of the database has room; None: where temporary files are."""
    return None if target == "-" else Path(target).absolute().parent


def _add_database(target: Target, data_dir: Path, room: Path | None) -> str:
    try:
        with TemporaryDirectory(prefix=".fastlane-backup-", dir=room) as directory:
            copy = Path(directory) / DATABASE
            instance = copy_database(data_dir / DATABASE, copy)
            with copy.open("rb") as file:
                target.add(DATABASE, file, os.fstat(file.fileno()).st_size)
    except StoreFailed as error:
        raise BackupError(str(error)) from error
    return instance


def _add_if_there(target: Target, name: str, path: Path) -> None:
    try:
        with path.open("rb") as file:
            target.add(name, file, os.fstat(file.fileno()).st_size)
    except FileNotFoundError:
        return


def _add_record(target: Target, name: str, path: Path) -> int:
    """Add a record, as long as it is now. Return its size; 0: it was pruned meanwhile, or has nothing in it."""
    try:
        file = os.fdopen(open_record(path, os.O_RDONLY), "rb")
    except FileNotFoundError:
        return 0
    with file:
        if size := os.fstat(file.fileno()).st_size:
            target.add(name, file, size)
    return size
