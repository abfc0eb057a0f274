"""Every setting of the server, once: its default, its meaning and how it is read.

A setting comes from a flag, else from the environment (`FASTLANE_` and its name in capitals), else from the file, else from its default.
What cannot be read, or is not known, is an error that names the setting and where it stood.
"""

import difflib
import os
import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from datetime import timedelta
from pathlib import Path
from typing import Any

from fastlane_grpc.model import CaptureMode

DEFAULT_LISTEN = "127.0.0.1:7020"
DEFAULT_ENGINE = "unix:///var/run/docker.sock"
# What is written for a limit that is not to be.
OFF = "off"


class ConfigError(Exception):
    """A setting that cannot be as it is; the message names it and where it stood."""


def read_count(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,12}", text) or int(text) < 1:
        raise ValueError("has to be a whole number from 1 on")
    return int(text)


def read_bytes(text: str) -> int:
    match = re.fullmatch(r"([0-9]{1,15})([kmg]?)", text.lower())
    if match is None or int(match[1]) < 1:
        raise ValueError("has to be a number of bytes, as 1048576, 512k, 64m or 1g")
    return int(match[1]) << {"": 0, "k": 10, "m": 20, "g": 30}[match[2]]


def read_request_bytes(text: str) -> int:
    size = read_bytes(text)
    if size > 64 << 20:
        raise ValueError("must not be more than 64m")
    return size


def read_duration(text: str) -> timedelta:
    match = re.fullmatch(r"(?:([0-9]{1,5})d)?(?:([0-9]{1,6})h)?(?:([0-9]{1,6})m)?(?:([0-9]{1,9})s)?", text)
    if match is None or not text:
        raise ValueError("has to be a duration, as 90s, 30m, 1h30m or 2d")
    days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
    duration = timedelta(days=days, hours=hours, minutes=minutes, seconds=seconds)
    if not duration:
        raise ValueError("has to be longer than nothing")
    return duration


def read_keeping(text: str) -> timedelta | None:
    if text.lower() == OFF:
        return None
    try:
        return read_duration(text)
    except ValueError as error:
        raise ValueError(f"{error}; or {OFF}, to keep for ever") from None


def read_bytes_or_off(text: str) -> int:
    if text.lower() == OFF:
        return 0
    try:
        return read_bytes(text)
    except ValueError as error:
        raise ValueError(f"{error}; or {OFF}") from None


def read_address(text: str) -> str:
    host, colon, port = text.rpartition(":")
    if not colon or not host or not port.isascii() or not port.isdigit() or int(port) > 65_535:
        raise ValueError("has to be HOST:PORT, as 127.0.0.1:7020; port 0 takes a free one")
    return text


def read_engine(text: str) -> str:
    if not re.fullmatch(r"(unix:///|tcp://).+", text):
        raise ValueError("has to be the address of a Docker engine, as unix:///var/run/docker.sock or tcp://127.0.0.1:2375")
    return text


def read_path(text: str) -> Path:
    if not text:
        raise ValueError("has to be a path")
    return Path(text).expanduser().absolute()


def read_capture(text: str) -> CaptureMode:
    if text.lower() not in set(CaptureMode):
        raise ValueError("has to be auto, recorder or attach")
    return CaptureMode(text.lower())


def read_log_bytes(text: str) -> int:
    size = read_bytes(text)
    if size < 1 << 20:
        raise ValueError("must not be less than 1m")
    return size


# What to write for a value, by how it is read.
_KINDS: Mapping[Callable[[str], object], str] = {
    read_count: "NUMBER",
    read_bytes: "BYTES",
    read_request_bytes: "BYTES",
    read_duration: "DURATION",
    read_keeping: "DURATION",
    read_bytes_or_off: "BYTES",
    read_address: "HOST:PORT",
    read_engine: "ADDRESS",
    read_path: "PATH",
    read_capture: "WAY",
    read_log_bytes: "BYTES",
}


def setting(default: Callable[[], object], read: Callable[[str], object], meaning: str) -> Any:
    return field(default_factory=default, metadata={"default": default, "read": read, "kind": _KINDS[read], "meaning": meaning})


@dataclass(frozen=True, slots=True)
class Settings:
    """What the server is told; values are checked."""

    data_dir: Path = setting(lambda: default_data_dir(os.environ), read_path, "where jobs and logs are kept; one server at a time")
    listen: str = setting(lambda: DEFAULT_LISTEN, read_address, "address to serve on; whoever reaches it can run containers")
    engine: str = setting(lambda: default_engine(os.environ), read_engine, "the Docker engine that runs the containers")
    capture: CaptureMode = setting(lambda: CaptureMode.AUTO, read_capture, "recorder or attach; auto: recorder, where it works")
    engine_data_dir: Path | None = setting(lambda: None, read_path, "the data directory as the engine's machine calls it; else found out")
    max_log_bytes: int = setting(lambda: 1 << 30, read_log_bytes, "room for one execution's output; beyond it the middle is dropped")
    max_running: int = setting(lambda: 4 * (os.cpu_count() or 1), read_count, "containers at a time; by default four to a core")
    default_timeout: timedelta = setting(lambda: timedelta(minutes=30), read_duration, "time of a container whose job asks for none")
    max_timeout: timedelta = setting(lambda: timedelta(minutes=30), read_duration, "longest time a job may ask for")
    default_pids: int = setting(lambda: 1024, read_count, "processes of a container whose job sets no limit")
    max_streams: int = setting(lambda: 2000, read_count, "log streams open at a time")
    max_request_bytes: int = setting(lambda: 4 << 20, read_request_bytes, "largest request; at most 64m")
    # A queue that stands still as old logs fill its disk is worse than one without them: hence, by default, there is a limit to their size
    # beside that to their age. The other half of the disk is for what runs, and for whatever else is on it.
    keep_logs: timedelta | None = setting(lambda: timedelta(days=30), read_keeping, "how long a log is kept after its end; or off")
    keep_jobs: timedelta | None = setting(lambda: timedelta(days=90), read_keeping, "how long a job is kept after its end; or off")
    max_total_log_bytes: int | None = setting(
        lambda: None, read_bytes_or_off, "room for the logs of all that ended, or off; by default half of the disk"
    )
    min_free_bytes: int | None = setting(
        lambda: None, read_bytes_or_off, "free room below which no job is taken, or off; by default 256m, or a 16th of a small disk"
    )
    max_waiting: int = setting(lambda: 1_000_000, read_count, "executions that wait at a time; with more no job is taken")
    cache_bytes: int = setting(lambda: 64 << 20, read_bytes, "memory for stretches of logs that are being read")

    def __post_init__(self) -> None:
        if self.default_timeout > self.max_timeout:
            raise ConfigError(f"default_timeout ({self.default_timeout}) is longer than max_timeout ({self.max_timeout})")


def load(flags: Mapping[str, object], environ: Mapping[str, str], file: Path | None) -> Settings:
    """The settings in force. `flags` holds texts or values by the names of `Settings`; None there is a flag that was not given."""
    texts: dict[str, tuple[str, str]] = {}
    for name, value in _read_file(file).items():
        texts[name] = (str(value), f"in {file}")
    for key, value in environ.items():
        name = key.removeprefix("FASTLANE_").lower()
        if key.startswith("FASTLANE_") and name not in _NOT_SETTINGS:
            texts[_known(name, f"environment variable {key}")] = (value, f"in environment variable {key}")
    for name, flag in flags.items():
        if flag is not None:
            texts[name] = (str(flag), f"in --{name.replace('_', '-')}")
    return Settings(**{name: _read(name, text, where) for name, (text, where) in texts.items()})


def default_text(name: str) -> str:
    """The default of a setting as it is now and here, written as the setting is; empty if it has none.

    Raises ConfigError where the environment spoils it.
    """
    [metadata] = [each.metadata for each in fields(Settings) if each.name == name]
    default = metadata["default"]()
    if default is None:
        return ""
    if isinstance(default, timedelta):
        return _counted(int(default.total_seconds()), (("d", 86_400), ("h", 3600), ("m", 60), ("s", 1)))
    if metadata["kind"] == "BYTES":
        return _counted(default, (("g", 1 << 30), ("m", 1 << 20), ("k", 1 << 10)))
    return str(default)


def default_data_dir(environ: Mapping[str, str]) -> Path:
    if os.geteuid() == 0:
        return Path("/var/lib/fastlane")
    return Path(environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share").absolute() / "fastlane"


def default_engine(environ: Mapping[str, str]) -> str:
    """The engine that the `docker` command would use."""
    address: str = _read("engine", environ.get("DOCKER_HOST") or DEFAULT_ENGINE, "in environment variable DOCKER_HOST")
    return address


# Variables of the command line and of other programs of ours, not settings of the server.
_NOT_SETTINGS = {"address", "config"}


def _read_file(file: Path | None) -> dict[str, object]:
    if file is None:
        return {}
    try:
        table = tomllib.loads(file.read_text())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"cannot read the settings in {file}: {error}") from error
    return {_known(name, f"setting in {file}"): value for name, value in table.items()}


def _counted(count: int, units: tuple[tuple[str, int], ...]) -> str:
    """In the largest unit of which it is a multiple."""
    return next((f"{count // size}{unit}" for unit, size in units if count % size == 0), str(count))


def _known(name: str, what: str) -> str:
    names = [each.name for each in fields(Settings)]
    if name in names:
        return name
    near = difflib.get_close_matches(name, names, 1)
    raise ConfigError(f"unknown {what}: {name!r}" + (f"; did you mean {near[0]!r}?" if near else f"; known are {', '.join(names)}"))


def _read(name: str, text: str, where: str) -> Any:
    for each in fields(Settings):
        if each.name == name:
            try:
                return each.metadata["read"](text)
            except ValueError as error:
                raise ConfigError(f"{name} {where} is {text!r}: {error}") from None
    raise KeyError(name)
