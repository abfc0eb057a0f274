"""Looks at all that a server needs, from outside and without changing anything: what is wrong, and what to do about it."""

from collections.abc import Iterator

from fastlane_grpc.config import Settings
from fastlane_grpc.doctor.disk import data_directory, database
from fastlane_grpc.doctor.engine import engine, look
from fastlane_grpc.doctor.finding import Finding, Level
from fastlane_grpc.doctor.machine import inotify, open_files
from fastlane_grpc.doctor.server import serving

__all__ = ["Finding", "Level", "examine"]


def examine(settings: Settings) -> Iterator[Finding]:
    """One finding after the other, as soon as it is known, of a server with these settings on this machine."""
    checkup = look(settings.engine)
    yield from engine(settings.engine, checkup)
    yield from data_directory(settings.data_dir)
    yield from database(settings.data_dir, checkup)
    yield inotify(settings)
    yield open_files(settings)
    yield from serving(settings.listen)
