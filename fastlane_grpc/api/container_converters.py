"""Conversion of what a container may use between the model and the contract."""

import hashlib
from collections.abc import Iterable

from fastlane_grpc.model import Device, Dns, Gpus, Input, JobSpec, Limits, Stdin, Tmpfs, Ulimit, Volume
from fastlane_grpc.v1 import fastlane_pb2 as pb


def read_limits(message: pb.Limits) -> Limits:
    return Limits(
        message.memory_bytes,
        message.cpus,
        message.pids,
        message.shm_bytes,
        message.memory_reservation_bytes,
        message.cpuset,
    )


def write_limits(message: pb.Limits, value: Limits) -> None:
    message.memory_bytes, message.cpus, message.pids = value.memory_bytes, value.cpus, value.pids
    message.shm_bytes, message.cpuset = value.shm_bytes, value.cpuset
    message.memory_reservation_bytes = value.memory_reservation_bytes


def read_tmpfs(messages: Iterable[pb.Tmpfs]) -> tuple[Tmpfs, ...]:
    return tuple(Tmpfs(each.path, each.size_bytes, each.mode, each.executable) for each in messages)


def read_volumes(messages: Iterable[pb.Volume]) -> tuple[Volume, ...]:
    return tuple(Volume(each.name, each.path, each.read_only) for each in messages)


def read_devices(messages: Iterable[pb.Device]) -> tuple[Device, ...]:
    return tuple(Device(each.path, each.container_path, each.permissions) for each in messages)


def read_gpus(message: pb.Gpus) -> Gpus:
    return Gpus(message.count, tuple(message.ids))


def read_inputs(messages: Iterable[pb.Input]) -> tuple[Input, ...]:
    return tuple(map(_read_input, messages))


def _read_input(message: pb.Input) -> Input:
    sha256, size_bytes, content = _read_content(message)
    return Input(
        *(message.path, sha256, size_bytes, message.mode, message.uid, message.gid, message.unpack), content=content
    )


def read_stdin(message: pb.Stdin) -> Stdin:
    return Stdin(*_read_content(message))


def _read_content(message: pb.Input | pb.Stdin) -> tuple[str, int, bytes | None]:
    """Return the checksum and the size of a content, and the content if it is in the request."""
    if message.sha256 and not message.content:
        return message.sha256, message.size_bytes, None
    # Without a checksum the content is in the request, and may be empty. With both, the content has to have it.
    content = message.content
    return message.sha256 or hashlib.sha256(content).hexdigest(), message.size_bytes or len(content), content


def read_ulimits(messages: Iterable[pb.Ulimit]) -> tuple[Ulimit, ...]:
    return tuple(Ulimit(each.name, each.soft, each.hard if each.HasField("hard") else None) for each in messages)


def read_dns(message: pb.Dns) -> Dns:
    return Dns(tuple(message.servers), tuple(message.search_domains), tuple(message.options))


def write_options(message: pb.JobSpec, value: JobSpec) -> None:
    """Write what few jobs ask for."""
    message.extra_hosts.update(value.extra_hosts)
    for tmpfs in value.tmpfs:
        message.tmpfs.add(path=tmpfs.path, size_bytes=tmpfs.size_bytes, mode=tmpfs.mode, executable=tmpfs.executable)
    for volume in value.volumes:
        message.volumes.add(name=volume.name, path=volume.path, read_only=volume.read_only)
    for device in value.devices:
        message.devices.add(path=device.path, container_path=device.container_path, permissions=device.permissions)
    if value.gpus is not None:
        message.gpus.count = value.gpus.count
        message.gpus.ids.extend(value.gpus.ids)
    for ulimit in value.ulimits:
        message.ulimits.add(name=ulimit.name, soft=ulimit.soft, hard=ulimit.hard)
    if value.dns is not None:
        message.dns.SetInParent()
        message.dns.servers.extend(value.dns.servers)
        message.dns.search_domains.extend(value.dns.search_domains)
        message.dns.options.extend(value.dns.options)
    message.cap_drop.extend(value.cap_drop)


def write_inputs(message: pb.JobSpec, inputs: Iterable[Input]) -> None:
    """Write inputs without their contents."""
    for each in inputs:
        message.inputs.add(
            path=each.path,
            sha256=each.sha256,
            size_bytes=each.size_bytes,
            mode=each.mode,
            uid=each.uid,
            gid=each.gid,
            unpack=each.unpack,
        )
