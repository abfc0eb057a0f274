"""Arguments of both clients that say what a container may use."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from fastlane_grpc.v1 import fastlane_pb2 as pb


@dataclass(frozen=True, slots=True)
class Tmpfs:
    """A file system in memory."""

    path: str
    """Absolute path of the directory in the container."""
    size_bytes: int = 0
    """Maximum size; 0: half of the host's memory."""
    mode: int = 0
    """Permissions of the directory, as 0o700; 0: anyone may write."""
    executable: bool = False
    """Programs in it may be executed."""

    def message(self) -> pb.Tmpfs:
        return pb.Tmpfs(path=self.path, size_bytes=self.size_bytes, mode=self.mode, executable=self.executable)


@dataclass(frozen=True, slots=True)
class Volume:
    """A named volume of the engine, which the operator allows."""

    name: str
    path: str
    """Absolute path in the container."""
    read_only: bool = False

    def message(self) -> pb.Volume:
        return pb.Volume(name=self.name, path=self.path, read_only=self.read_only)


@dataclass(frozen=True, slots=True)
class Device:
    """A device of the host, which the operator allows."""

    path: str
    """Path on the host, as "/dev/fuse"."""
    container_path: str = ""
    """Path in the container; by default the same."""
    permissions: str = ""
    """Some of "r", "w" and "m"; by default all."""

    def message(self) -> pb.Device:
        return pb.Device(path=self.path, container_path=self.container_path, permissions=self.permissions)


@dataclass(frozen=True, slots=True)
class Gpus:
    """GPUs of the host: a number of them, -1 for all, or those with these ids."""

    count: int = 0
    ids: Sequence[str] = ()
    """Indices or UUIDs."""

    def message(self) -> pb.Gpus:
        return pb.Gpus(count=self.count, ids=self.ids)


@dataclass(frozen=True, slots=True)
class Ulimit:
    """A limit of each process of the command, as of setrlimit(2); -1: unlimited."""

    name: str
    """As "nofile"; see `Ulimit` in the contract."""
    soft: int
    hard: int | None = None
    """By default as `soft`."""

    def message(self) -> pb.Ulimit:
        return pb.Ulimit(name=self.name, soft=self.soft, hard=self.hard)


@dataclass(frozen=True, slots=True)
class Dns:
    """Name resolution, as in /etc/resolv.conf."""

    servers: Sequence[str] = ()
    """IP addresses."""
    search_domains: Sequence[str] = ()
    options: Sequence[str] = ()

    def message(self) -> pb.Dns:
        return pb.Dns(servers=self.servers, search_domains=self.search_domains, options=self.options)


def tmpfs_messages(tmpfs: Iterable[Tmpfs | str]) -> list[pb.Tmpfs]:
    """Return the messages of file systems; a string is a path."""
    return [(Tmpfs(each) if isinstance(each, str) else each).message() for each in tmpfs]


def dns_message(dns: Dns | None) -> pb.Dns | None:
    return None if dns is None else dns.message()


def device_messages(devices: Iterable[Device | str]) -> list[pb.Device]:
    """Return the messages of an argument; a string is the path of a device."""
    return [(Device(each) if isinstance(each, str) else each).message() for each in devices]


def gpus_message(gpus: Gpus | int | None) -> pb.Gpus | None:
    """Return the message of an argument; a number is that of GPUs, 0 none."""
    made = Gpus(gpus) if isinstance(gpus, int) else gpus
    return made.message() if made and (made.count or made.ids) else None
