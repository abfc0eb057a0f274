"""Rules for what a container may use. Each function yields a violation for each invalid field, naming the field."""

import json
import math
import posixpath
import re
from collections.abc import Iterator, Sequence
from ipaddress import ip_address

from fastlane_grpc.config import is_credential_name, is_device_path, is_engine_name
from fastlane_grpc.errors import Violation
from fastlane_grpc.model import Device, Dns, Gpus, Input, JobSpec, Limits, Stdin, Tmpfs, Ulimit
from fastlane_grpc.text.redaction import mask_secrets
from fastlane_grpc.text.sanitize import control_character

MAX_HOSTS = 64
MAX_TMPFS = MAX_VOLUMES = MAX_DEVICES = MAX_ULIMITS = MAX_SEARCH_DOMAINS = MAX_DNS_OPTIONS = 16
MAX_DNS_SERVERS = 8
MAX_INPUTS = 64
MAX_OUTPUTS = 16
MAX_CAPABILITIES = MAX_GPU_IDS = 64

# The engine's minimum, which the container's first process needs.
_MIN_MEMORY = 6 << 20
_MAX_BYTES = 1 << 50
_HIGHEST_CPU = 8191
# What the kernel, the engine and the recorder mount: the recorder reads there what the kernel counts.
_OTHERS_PATHS = ("/dev", "/proc", "/sys", "/.fastlane")
# Not rtprio and nice, which take CPU time from other containers, nor msgqueue and locks, which hold memory of the
# kernel.
ULIMITS = ("core", "cpu", "data", "fsize", "memlock", "nofile", "nproc", "sigpending", "stack")
_CAPABILITIES = {
    *("ALL", "AUDIT_CONTROL", "AUDIT_READ", "AUDIT_WRITE", "BLOCK_SUSPEND", "BPF", "CHECKPOINT_RESTORE"),
    *("CHOWN", "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER", "FSETID", "IPC_LOCK", "IPC_OWNER", "KILL"),
    *("LEASE", "LINUX_IMMUTABLE", "MAC_ADMIN", "MAC_OVERRIDE", "MKNOD", "NET_ADMIN", "NET_BIND_SERVICE"),
    *("NET_BROADCAST", "NET_RAW", "PERFMON", "SETFCAP", "SETGID", "SETPCAP", "SETUID", "SYSLOG"),
    *("SYS_ADMIN", "SYS_BOOT", "SYS_CHROOT", "SYS_MODULE", "SYS_NICE", "SYS_PACCT", "SYS_PTRACE"),
    *("SYS_RAWIO", "SYS_RESOURCE", "SYS_TIME", "SYS_TTY_CONFIG", "WAKE_ALARM"),
}
_HOST_NAME = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,251}[A-Za-z0-9_])?")
_GPU = re.compile(r"[A-Za-z0-9][A-Za-z0-9:/-]{0,127}")
_CHECKSUM = re.compile(r"[0-9a-f]{64}")
# The kernel's largest is reserved.
_HIGHEST_ID = (1 << 32) - 2
_DNS_OPTION = re.compile(r"[a-z][a-z0-9-]{0,62}(:[0-9]{1,9})?")


def limits_violations(limits: Limits) -> Iterator[Violation]:
    if limits.memory_bytes and limits.memory_bytes < _MIN_MEMORY:
        yield Violation(
            "spec.limits.memory_bytes", f"is {limits.memory_bytes}; it must be 0 (no limit) or at least {_MIN_MEMORY}"
        )
    if limits.cpus and not (math.isfinite(limits.cpus) and 0.01 <= limits.cpus <= 4096):
        yield Violation("spec.limits.cpus", f"is {limits.cpus}; it must be 0 (no limit) or from 0.01 to 4096")
    if limits.pids < 0:
        yield Violation("spec.limits.pids", f"is {limits.pids}; it must be 0 (the server's default) or more")
    if not 0 <= limits.shm_bytes <= _MAX_BYTES:
        yield Violation(
            "spec.limits.shm_bytes", f"is {limits.shm_bytes}; it must be from 0 (the engine's default) to {_MAX_BYTES}"
        )
    if reserved := limits.memory_reservation_bytes:
        if reserved < _MIN_MEMORY:
            yield Violation(
                "spec.limits.memory_reservation_bytes",
                f"is {reserved}; it must be 0 (none) or at least {_MIN_MEMORY}",
            )
        elif limits.memory_bytes and reserved > limits.memory_bytes:
            yield Violation(
                "spec.limits.memory_reservation_bytes",
                f"is {reserved}; it must not be more than memory_bytes, {limits.memory_bytes}",
            )
    if limits.cpuset and not _is_cpuset(limits.cpuset):
        yield Violation(
            "spec.limits.cpuset",
            f"{_shown(limits.cpuset)} is not a list of CPUs, as 0-2,5; numbers are from 0 to {_HIGHEST_CPU}",
        )


def options_violations(spec: JobSpec) -> Iterator[Violation]:
    """Yield the violations of what few jobs ask for."""
    yield from _hosts_violations(spec)
    yield from _tmpfs_violations(spec.tmpfs)
    yield from _volumes_violations(spec)
    yield from _devices_violations(spec.devices)
    if spec.gpus is not None:
        yield from _gpus_violations(spec.gpus)
    yield from _ulimits_violations(spec.ulimits)
    if spec.dns is not None:
        yield from _dns_violations(spec.dns)
    if len(spec.cap_drop) > MAX_CAPABILITIES:
        yield _too_many("spec.cap_drop", len(spec.cap_drop), MAX_CAPABILITIES)
        return
    for number, name in enumerate(spec.cap_drop):
        if capability(name) not in _CAPABILITIES:
            yield Violation(f"spec.cap_drop[{number}]", f"{_shown(name)} is not a capability, as NET_RAW or ALL")


def capability(name: str) -> str:
    """Return the name of a capability without its prefix."""
    return name.upper().removeprefix("CAP_")


def _is_cpuset(text: str) -> bool:
    if not re.fullmatch(r"[0-9]{1,4}(-[0-9]{1,4})?(,[0-9]{1,4}(-[0-9]{1,4})?){0,255}", text):
        return False
    ranges = [[int(end) for end in part.split("-")] for part in text.split(",")]
    return all(each[0] <= each[-1] <= _HIGHEST_CPU for each in ranges)


def _hosts_violations(spec: JobSpec) -> Iterator[Violation]:
    if len(spec.extra_hosts) > MAX_HOSTS:
        yield _too_many("spec.extra_hosts", len(spec.extra_hosts), MAX_HOSTS)
        return
    for name, address in spec.extra_hosts.items():
        field = f"spec.extra_hosts[{json.dumps(mask_secrets(name)[:100])}]"
        if not _HOST_NAME.fullmatch(name):
            yield Violation(field, "is not the name of a host: it must be 1 to 253 of A-Z a-z 0-9 . _ -")
        elif not _is_address(address):
            yield Violation(field, f"{_shown(address)} is not an IP address, as 192.0.2.1 or 2001:db8::1")


def _tmpfs_violations(all_tmpfs: Sequence[Tmpfs]) -> Iterator[Violation]:
    if len(all_tmpfs) > MAX_TMPFS:
        yield _too_many("spec.tmpfs", len(all_tmpfs), MAX_TMPFS)
        return
    for number, tmpfs in enumerate(all_tmpfs):
        field = f"spec.tmpfs[{number}]"
        if fault := _path_fault(tmpfs.path):
            yield Violation(f"{field}.path", fault)
        elif any(tmpfs.path == other.path for other in all_tmpfs[:number]):
            yield Violation(f"{field}.path", f"{_shown(tmpfs.path)} is there twice")
        if not 0 <= tmpfs.size_bytes <= _MAX_BYTES:
            yield Violation(f"{field}.size_bytes", f"is {tmpfs.size_bytes}; it must be from 0 to {_MAX_BYTES}")
        if tmpfs.mode > 0o1777:
            yield Violation(f"{field}.mode", f"is {tmpfs.mode}; it must be at most 1023, which is octal 1777")


def _volumes_violations(spec: JobSpec) -> Iterator[Violation]:
    if len(spec.volumes) > MAX_VOLUMES:
        yield _too_many("spec.volumes", len(spec.volumes), MAX_VOLUMES)
        return
    taken = {tmpfs.path for tmpfs in spec.tmpfs}
    for number, volume in enumerate(spec.volumes):
        if not is_engine_name(volume.name):
            yield Violation(
                f"spec.volumes[{number}].name",
                f"{_shown(volume.name)} is not the name of a volume; directories of the host cannot be mounted",
            )
        if fault := _path_fault(volume.path):
            yield Violation(f"spec.volumes[{number}].path", fault)
        elif volume.path in taken:
            yield Violation(f"spec.volumes[{number}].path", f"{_shown(volume.path)} is there twice")
        taken.add(volume.path)


def _devices_violations(devices: Sequence[Device]) -> Iterator[Violation]:
    if len(devices) > MAX_DEVICES:
        yield _too_many("spec.devices", len(devices), MAX_DEVICES)
        return
    taken: set[str] = set()
    for number, device in enumerate(devices):
        field = f"spec.devices[{number}]"
        if not is_device_path(device.path):
            yield Violation(f"{field}.path", f"{_shown(device.path)} is not the path of a device, as /dev/fuse")
        if device.container_path and not is_device_path(device.container_path):
            yield Violation(f"{field}.container_path", f"{_shown(device.container_path)} is not a path below /dev")
        elif (inside := device.container_path or device.path) in taken:
            yield Violation(f"{field}.container_path", f"{_shown(inside)} is there twice")
        taken.add(device.container_path or device.path)
        if not re.fullmatch("r?w?m?", device.permissions):
            yield Violation(
                f"{field}.permissions", f"{_shown(device.permissions)} must be some of r, w and m, in this order"
            )


def _gpus_violations(gpus: Gpus) -> Iterator[Violation]:
    if gpus.count and gpus.ids:
        yield Violation("spec.gpus", "has a count and ids; set one of them")
    elif not gpus.count and not gpus.ids:
        yield Violation("spec.gpus", "has neither a count nor ids; a count of -1 means all")
    if gpus.count < -1:
        yield Violation("spec.gpus.count", f"is {gpus.count}; it must be -1 (all) or more")
    if len(gpus.ids) > MAX_GPU_IDS:
        yield _too_many("spec.gpus.ids", len(gpus.ids), MAX_GPU_IDS)
        return
    for number, gpu in enumerate(gpus.ids):
        if not _GPU.fullmatch(gpu):
            yield Violation(f"spec.gpus.ids[{number}]", f"{_shown(gpu)} is not an index or a UUID of a GPU")
        elif gpu in gpus.ids[:number]:
            yield Violation(f"spec.gpus.ids[{number}]", f"{_shown(gpu)} is there twice")


def inputs_violations(spec: JobSpec) -> Iterator[Violation]:
    """Yield the violations of the inputs, but for their contents."""
    if len(spec.inputs) > MAX_INPUTS:
        yield _too_many("spec.inputs", len(spec.inputs), MAX_INPUTS)
        return
    if spec.inputs and spec.read_only_root:
        yield Violation("spec.inputs", "cannot be written where read_only_root is set")
    mounts = [*(tmpfs.path for tmpfs in spec.tmpfs), *(volume.path for volume in spec.volumes)]
    for number, each in enumerate(spec.inputs):
        field = f"spec.inputs[{number}]"
        if fault := _path_fault(each.path):
            yield Violation(f"{field}.path", fault)
        elif inside := next((mount for mount in mounts if f"{each.path}/".startswith(f"{mount}/")), ""):
            yield Violation(f"{field}.path", f"{_shown(each.path)} is in {_shown(inside)}, which is mounted later")
        elif any(each.path == other.path for other in spec.inputs[:number]):
            yield Violation(f"{field}.path", f"{_shown(each.path)} is there twice")
        yield from content_violations(field, each)
        if each.mode and each.unpack:
            yield Violation(f"{field}.mode", "cannot be set with unpack: the entries of the archive have modes")
        elif each.mode > 0o7777:
            yield Violation(f"{field}.mode", f"is {each.mode}; it must be at most 4095, which is octal 7777")
        for name, number_of_owner in (("uid", each.uid), ("gid", each.gid)):
            if number_of_owner > _HIGHEST_ID:
                yield Violation(f"{field}.{name}", f"is {number_of_owner}; it must be at most {_HIGHEST_ID}")


def content_violations(field: str, content: Input | Stdin) -> Iterator[Violation]:
    if not _CHECKSUM.fullmatch(content.sha256):
        yield Violation(f"{field}.sha256", "must be the SHA-256 of the content, as 64 of 0-9 a-f")
    if content.size_bytes < 0:
        yield Violation(f"{field}.size_bytes", f"is {content.size_bytes}; it must be 0 or more")


def outputs_violations(outputs: Sequence[str]) -> Iterator[Violation]:
    if len(outputs) > MAX_OUTPUTS:
        yield _too_many("spec.outputs", len(outputs), MAX_OUTPUTS)
        return
    for number, path in enumerate(outputs):
        if fault := _path_fault(path):
            yield Violation(f"spec.outputs[{number}]", fault)
        elif around := next((other for other in outputs[:number] if _overlap(path, other)), ""):
            yield Violation(f"spec.outputs[{number}]", f"{_shown(path)} and {_shown(around)} overlap")


def _overlap(one: str, other: str) -> bool:
    return f"{one}/".startswith(f"{other}/") or f"{other}/".startswith(f"{one}/")


def network_violations(network: str) -> Iterator[Violation]:
    if network in {"", "none"} or is_engine_name(network):
        return
    yield Violation(
        "spec.network",
        f"is {_shown(network)}; it must be empty (the engine's default network), none, or a network of the engine",
    )


def credential_violations(name: str) -> Iterator[Violation]:
    if not is_credential_name(name):
        yield Violation(
            "spec.registry_credential",
            f"{_shown(name)} is not the name of a credential: it must be 1 to 64 of A-Z a-z 0-9 . _ - "
            "and begin with a letter or a digit",
        )


def _path_fault(path: str) -> str:
    if len(path) > 1024 or not path.startswith("/") or control_character(path):
        return f"{_shown(path)} is not an absolute path"
    if posixpath.normpath(path) != path or path.startswith("//") or path == "/":
        return f"{_shown(path)} must be a directory below /, without . and .. and without a slash at its end"
    if any(f"{path}/".startswith(f"{others}/") for others in _OTHERS_PATHS):
        return f"{_shown(path)} is in {', '.join(_OTHERS_PATHS)}, where the kernel and the engine have their own"
    return ""


def _ulimits_violations(ulimits: Sequence[Ulimit]) -> Iterator[Violation]:
    if len(ulimits) > MAX_ULIMITS:
        yield _too_many("spec.ulimits", len(ulimits), MAX_ULIMITS)
        return
    for number, ulimit in enumerate(ulimits):
        field = f"spec.ulimits[{number}]"
        if ulimit.name not in ULIMITS:
            yield Violation(f"{field}.name", f"{_shown(ulimit.name)} is not a limit; known ones: {', '.join(ULIMITS)}")
        elif any(ulimit.name == other.name for other in ulimits[:number]):
            yield Violation(f"{field}.name", f"{ulimit.name} is there twice")
        if ulimit.soft < -1:
            yield Violation(f"{field}.soft", f"is {ulimit.soft}; it must be -1 (unlimited) or more")
        if ulimit.hard is None:
            continue
        if ulimit.hard < -1:
            yield Violation(f"{field}.hard", f"is {ulimit.hard}; it must be -1 (unlimited) or more")
        elif ulimit.hard != -1 and not 0 <= ulimit.soft <= ulimit.hard:
            yield Violation(f"{field}.hard", f"is {ulimit.hard}, less than soft, {ulimit.soft}")


def _dns_violations(dns: Dns) -> Iterator[Violation]:
    for name, words, most in (
        ("servers", dns.servers, MAX_DNS_SERVERS),
        ("search_domains", dns.search_domains, MAX_SEARCH_DOMAINS),
        ("options", dns.options, MAX_DNS_OPTIONS),
    ):
        if len(words) > most:
            yield _too_many(f"spec.dns.{name}", len(words), most)
            return
    for number, server in enumerate(dns.servers):
        if not _is_address(server):
            yield Violation(
                f"spec.dns.servers[{number}]", f"{_shown(server)} is not an IP address, as 192.0.2.1 or 2001:db8::1"
            )
    for number, domain in enumerate(dns.search_domains):
        if domain != "." and not _HOST_NAME.fullmatch(domain):
            yield Violation(f"spec.dns.search_domains[{number}]", f"{_shown(domain)} is not a domain")
    for number, option in enumerate(dns.options):
        if not _DNS_OPTION.fullmatch(option):
            yield Violation(
                f"spec.dns.options[{number}]", f"{_shown(option)} is not an option of the resolver, as ndots:2"
            )


def _is_address(text: str) -> bool:
    """Return whether it is an address. One with a zone, as fe80::1%eth0, names a device of the host."""
    try:
        return str(ip_address(text)) != "" and "%" not in text
    except ValueError:
        return False


def _too_many(field: str, given: int, most: int) -> Violation:
    return Violation(field, f"has {given} entries; at most {most} are allowed")


def _shown(text: str) -> str:
    """Return what a caller sent, quoted and shortened, without secrets."""
    return repr(mask_secrets(text)[:100])
