"""The data directory, the database in it, and the containers that belong to it."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from fastlane_grpc.docker.diagnostics import Found
from fastlane_grpc.doctor.finding import Finding, fail, ok, warn
from fastlane_grpc.errors import StoreFailed
from fastlane_grpc.machine.data_directory import (
    NETWORK,
    file_system,
    foreign_directory,
    free_bytes,
    free_inodes,
    is_full,
    least_free_bytes,
    least_free_inodes,
)
from fastlane_grpc.store.diagnostics import DatabaseDiagnosis, diagnose
from fastlane_grpc.store.loss import loss

# With so many times the free room below which no job is taken an operator should know that it comes to that.
_LITTLE = 8
_NAMED = 3


def about_directory(path: Path, min_free_bytes: int | None) -> Iterator[Finding]:
    there = _nearest(path)
    if there != path:
        yield _to_be_made(path, there)
    else:
        yield _usable(path)
        if not foreign_directory(path):
            yield _private(path)
    yield _local(file_system(there))
    yield _room(free_bytes(there), least_free_bytes(there) if min_free_bytes is None else min_free_bytes)
    yield _inodes(free_inodes(there), 0 if min_free_bytes == 0 else least_free_inodes(there))


def _to_be_made(path: Path, there: Path) -> Finding:
    if not os.access(there, os.W_OK | os.X_OK):
        return fail(
            "data directory",
            f"{path} does not exist and cannot be created in {there}",
            "create it for this user, or choose another directory",
        )
    return ok("data directory", f"{path} does not exist yet; a server creates it")


def _usable(path: Path) -> Finding:
    if not path.is_dir():
        return fail("data directory", f"{path} is not a directory", "choose another directory with --data-dir")
    if not os.access(path, os.R_OK | os.W_OK | os.X_OK):
        return fail(
            "data directory",
            f"this user cannot write to {path}",
            "run the server and this command as the owner of the directory",
        )
    if foreign := foreign_directory(path):
        return fail("data directory", foreign, "choose another directory with --data-dir")
    return ok("data directory", str(path))


def _private(path: Path) -> Finding:
    mode = path.stat().st_mode & 0o777
    if mode & 0o077:
        return warn(
            "privacy",
            f"other users can read {path} (mode {mode:o})",
            f"chmod 700 {path}; a server does this when it starts",
        )
    return ok("privacy", "only its owner can read the data directory")


def _local(kind: str) -> Finding:
    if kind in NETWORK:
        return fail(
            "file system",
            f"{kind} is a network file system; the database is not safe there",
            "choose a local disk",
        )
    return ok("file system", kind or "unknown")


def _room(free: int, least: int) -> Finding:
    found = f"{free / 1e9:.1f} GB free"
    if free < least:
        advice = "free some space: delete old logs with `fastlane prune`, or move the data directory"
        return fail("disk", f"{found}; with less than {least / 1e9:.1f} GB new jobs are rejected", advice)
    if free < _LITTLE * least:
        return warn("disk", found, f"free some space: with less than {least / 1e9:.1f} GB new jobs are rejected")
    return ok("disk", found)


def _inodes(free: int | None, least: int) -> Finding:
    if free is None:
        return ok("inodes", "the file system creates them on demand")
    found = f"{free} free"
    if free < least:
        advice = (
            "delete files on that disk: logs with `fastlane prune --logs-only`, images and containers of the engine"
        )
        return fail("inodes", f"{found}; with fewer than {least} new jobs are rejected", advice)
    if free < _LITTLE * least:
        return warn("inodes", found, f"delete files on that disk: with fewer than {least} inodes new jobs are rejected")
    return ok("inodes", found)


def _nearest(path: Path) -> Path:
    """The path itself, or of those above it the first that is there."""
    return next(each for each in (path, *path.parents) if each.exists())


# --------------------------------------------------------------------------------------------------------- the database


def about_database(data_dir: Path, containers: Sequence[Found] | None) -> Iterator[Finding]:
    """Check the database, and the containers on the engines that belong to this data directory or to others; None: no
    engine responds."""
    path = data_dir / "fastlane.db"
    if lost := _loss(path):
        yield fail("database", lost, "read Restore in docs/operations.md before you start a server")
        return
    if not _is_there(path):
        yield ok("database", "does not exist yet; a server creates it")
        yield from _containers(containers, "", frozenset())
        return
    try:
        checkup = diagnose(path, [each.execution_id for each in containers or ()])
    except StoreFailed as error:
        if is_full(data_dir):
            found = f"{path} cannot be opened: the disk is full ({free_bytes(data_dir)} bytes free)"
            yield fail("database", found, "free some space on that disk, and start the server again")
            return
        yield fail(
            "database",
            str(error),
            "if another user owns it, run this command as that user; if it is damaged, restore a backup",
        )
        return
    yield _integrity(path, checkup)
    yield from _containers(containers, checkup.instance, checkup.over)


def _loss(path: Path) -> str:
    try:
        return loss(path)
    except OSError:
        # Whatever it is: opening it says so.
        return ""


def _is_there(path: Path) -> bool:
    try:
        return path.exists()
    except PermissionError:
        # It may be: then opening it says why not.
        return True


def _integrity(path: Path, checkup: DatabaseDiagnosis) -> Finding:
    if checkup.damage:
        return fail("database", f"{path} is damaged: {checkup.damage}", "stop the server and restore a backup")
    if not checkup.whole:
        return ok("database", "opens; it is too large for a full check, and no damage was found so far")
    return ok("database", "opens; no damage was found")


def _containers(containers: Sequence[Found] | None, instance: str, over: frozenset[str]) -> Iterator[Finding]:
    if containers is None:
        return
    orphans = [each for each in containers if each.instance == instance and each.execution_id in over]
    foreign = [each for each in containers if each.instance != instance]
    idle = [each for each in foreign if not each.running]
    if orphans:
        advice = "a running server removes them within ten minutes; without a server, remove them with `docker rm -f`"
        yield warn("containers", f"{len(orphans)} of executions that have ended: {_names(orphans)}", advice)
    else:
        yield ok("containers", "none of an execution that has ended")
    if idle:
        advice = "if the data directory of their server is gone, remove them with `docker rm`"
        yield warn("other servers", f"{len(idle)} containers of other servers are stopped: {_names(idle)}", advice)
    else:
        yield ok("other servers", f"containers of other servers on this engine: {len(foreign)}")


def _names(containers: Sequence[Found]) -> str:
    names = ", ".join(each.name for each in containers[:_NAMED])
    return f"{names}, …" if len(containers) > _NAMED else names
