"""The body of the engine's request to create the container of a job.

No field of a job gives a container more rights than a default container has.
"""

from collections.abc import Mapping
from typing import Any

from fastlane_grpc.docker.engine import EXECUTION_LABEL, HOST_LABEL, INSTANCE_LABEL, JOB_LABEL, TASK_LABEL
from fastlane_grpc.model import Assignment, Device, Gpus, JobSpec, Tmpfs, Ulimit
from fastlane_grpc.text.shell_words import split_command


def container_body(assignment: Assignment, *, instance: str, default_pids: int) -> Mapping[str, Any]:
    execution, spec = assignment.execution, assignment.spec
    own_labels = {
        INSTANCE_LABEL: instance,
        HOST_LABEL: execution.host,
        EXECUTION_LABEL: execution.id,
        JOB_LABEL: execution.job_id,
        TASK_LABEL: execution.task_id,
    }
    body: dict[str, Any] = {
        "Image": spec.image,
        # None selects the image's own command and entrypoint; an empty list would not.
        "Cmd": [*split_command(spec.command), *spec.args] or None,
        "Entrypoint": list(spec.entrypoint) or None,
        "Env": [f"{name}={value}" for name, value in spec.envs.items()],
        "WorkingDir": spec.working_dir,
        "User": spec.user,
        "Labels": {**spec.labels, **own_labels},
        "Tty": False,
        "OpenStdin": False,
        "AttachStdin": False,
        "AttachStdout": True,
        "AttachStderr": True,
        "HostConfig": _host_config(spec, default_pids),
    }
    if spec.stop_signal:
        body["StopSignal"] = spec.stop_signal
    return body


def _host_config(spec: JobSpec, default_pids: int) -> Mapping[str, Any]:
    limits = spec.limits
    host_config: dict[str, Any] = {
        # The record is the log. A log driver would slow the container down and store the output twice.
        "LogConfig": {"Type": "none"},
        "Memory": limits.memory_bytes,
        # The limit on memory and swap together: no swap.
        "MemorySwap": limits.memory_bytes,
        "NanoCpus": round(limits.cpus * 1e9),
        "PidsLimit": limits.pids or default_pids,
        "NetworkMode": spec.network or "default",
        "ReadonlyRootfs": spec.read_only_root,
        "Privileged": False,
        "SecurityOpt": ["no-new-privileges"],
        "RestartPolicy": {"Name": "no"},
        # The runner removes the container last: the engine's own removal races with the exit code.
        "AutoRemove": False,
        "Init": False,
    }
    options = {
        "ShmSize": limits.shm_bytes,
        "MemoryReservation": limits.memory_reservation_bytes,
        "CpusetCpus": limits.cpuset,
        "ExtraHosts": [f"{name}:{address}" for name, address in spec.extra_hosts.items()],
        "Tmpfs": {tmpfs.path: _mount_options(tmpfs) for tmpfs in spec.tmpfs},
        "Ulimits": [_ulimit(each) for each in spec.ulimits],
        "Mounts": [
            {"Type": "volume", "Source": volume.name, "Target": volume.path, "ReadOnly": volume.read_only}
            for volume in spec.volumes
        ],
        "Devices": [_device(each) for each in spec.devices],
        "DeviceRequests": [_gpus(spec.gpus)] if spec.gpus else [],
        "CapDrop": [name.upper().removeprefix("CAP_") for name in spec.cap_drop],
    }
    if spec.dns is not None:
        options |= {"Dns": list(spec.dns.servers), "DnsSearch": list(spec.dns.search_domains)}
        options["DnsOptions"] = list(spec.dns.options)
    # What is not set is the engine's choice.
    return host_config | {name: value for name, value in options.items() if value}


def _mount_options(tmpfs: Tmpfs) -> str:
    """Return the options beside the engine's own: noexec, nosuid and nodev."""
    size = f"size={tmpfs.size_bytes}" if tmpfs.size_bytes else ""
    return ",".join(filter(None, ["exec" if tmpfs.executable else "", f"mode={tmpfs.mode or 0o1777:o}", size]))


def _device(device: Device) -> Mapping[str, Any]:
    return {
        "PathOnHost": device.path,
        "PathInContainer": device.container_path or device.path,
        "CgroupPermissions": device.permissions or "rwm",
    }


def _gpus(gpus: Gpus) -> Mapping[str, Any]:
    # The engine takes a number, or ids.
    chosen: Mapping[str, Any] = {"DeviceIDs": list(gpus.ids)} if gpus.ids else {"Count": gpus.count}
    return {"Driver": "", "Capabilities": [["gpu"]], **chosen}


def _ulimit(ulimit: Ulimit) -> Mapping[str, Any]:
    hard = ulimit.soft if ulimit.hard is None else ulimit.hard
    return {"Name": ulimit.name, "Soft": ulimit.soft, "Hard": hard}
