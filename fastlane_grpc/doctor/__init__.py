"""Looks at all that a server needs, from outside and without changing anything: what is wrong, and what to do about it."""

from collections.abc import Iterator

from fastlane_grpc.config import Settings
from fastlane_grpc.doctor.disk import about_database, about_directory
from fastlane_grpc.doctor.engine import about_engine, look
from fastlane_grpc.doctor.finding import Finding, Level
from fastlane_grpc.doctor.machine import about_inotify, about_open_files
from fastlane_grpc.doctor.server import about_server

__all__ = ["Finding", "Level", "examine"]


def examine(settings: Settings) -> Iterator[Finding]:
    """One finding after the other, as soon as it is known, of a server with these settings on this machine."""
    checkup = look(settings.engine)
    yield from about_engine(settings.engine, checkup)
    yield from about_directory(settings.data_dir)
    yield from about_database(settings.data_dir, checkup)
    yield about_inotify(settings)
    yield about_open_files(settings)
    yield from about_server(settings.listen)
