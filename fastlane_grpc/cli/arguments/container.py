"""The options of `run` and `enqueue` that say what a container may use, as `docker run` writes them."""

import re
from typing import Any

from fastlane_grpc import client as api
from fastlane_grpc.text.values import read_bytes

# Mount options that are in force anyway.
_DEFAULTS = {"rw", "noexec", "nosuid", "nodev"}


def read_tmpfs(text: str) -> api.Tmpfs:
    """Return the file system of PATH[:OPTIONS]. ValueError."""
    path, _, words = text.partition(":")
    size_bytes, mode, executable = 0, 0, False
    for word in words.split(",") if words else ():
        name, _, value = word.partition("=")
        if name == "size":
            size_bytes = read_bytes(value)
        elif name == "mode" and re.fullmatch("[0-7]{1,5}", value):
            mode = int(value, 8)
        elif word == "exec":
            executable = True
        elif word not in _DEFAULTS:
            raise ValueError(f"has the option {word!r}; known ones: size=64m, mode=1777, exec")
    return api.Tmpfs(path, size_bytes, mode, executable)


def read_volume(text: str) -> api.Volume:
    """Return the volume of NAME:PATH[:ro]. ValueError."""
    match = re.fullmatch(r"([^:]+):([^:]+)(?::(ro|rw))?", text)
    if match is None:
        raise ValueError("must be NAME:PATH or NAME:PATH:ro, as cache:/root/.cache")
    return api.Volume(match[1], match[2], read_only=match[3] == "ro")


def read_device(text: str) -> api.Device:
    """Return the device of PATH[:PATH][:rwm]. ValueError."""
    match = re.fullmatch(r"(/[^:]+)(?::(/[^:]+))?(?::([rwm]{1,3}))?", text)
    if match is None:
        raise ValueError("must be PATH[:PATH_IN_CONTAINER][:rwm], as /dev/fuse or /dev/sdb:/dev/disk:r")
    return api.Device(match[1], match[2] or "", "".join(letter for letter in "rwm" if letter in (match[3] or "")))


def read_gpus(text: str) -> api.Gpus:
    """Return the GPUs of NUMBER, all or device=ID[,ID]. ValueError."""
    # With several ids, docker wants quotes within the word.
    plain = text.strip('"')
    if plain == "all":
        return api.Gpus(-1)
    if re.fullmatch("[0-9]{1,4}", plain):
        return api.Gpus(int(plain))
    if match := re.fullmatch("device=([^=]+)", plain):
        return api.Gpus(ids=match[1].split(","))
    raise ValueError("must be a number, all, or device=0,1")


def read_ulimit(text: str) -> api.Ulimit:
    """Return the limit of NAME=SOFT[:HARD]. ValueError."""
    match = re.fullmatch(r"([a-z]+)=(-?[0-9]{1,18})(?::(-?[0-9]{1,18}))?", text)
    if match is None:
        raise ValueError("must be NAME=SOFT[:HARD], as nofile=1024:4096; -1: unlimited")
    return api.Ulimit(match[1], int(match[2]), int(match[3]) if match[3] else None)


def read_extra_host(text: str) -> tuple[str, str]:
    """Return the name and the address of HOST:IP or HOST=IP. ValueError."""
    match = re.fullmatch(r"([^:=]+)[:=](.+)", text)
    if match is None:
        raise ValueError("must be HOST:IP, as db:192.0.2.7")
    return match[1], match[2].removeprefix("[").removesuffix("]")


def with_container(options: dict[str, Any]) -> dict[str, Any]:
    """Return the options of a job with `dns` and `extra_hosts` as the clients take them."""
    made = dict(options)
    servers, domains, resolver = made.pop("dns_servers"), made.pop("dns_search"), made.pop("dns_options")
    if servers or domains or resolver:
        made["dns"] = api.Dns(servers, domains, resolver)
    made["extra_hosts"] = dict(made.pop("add_hosts"))
    return made
