"""Every field of a job's spec reaches the store, the answers and the container. A field that is new fails here until it
is handled."""

import time
from collections.abc import AsyncIterator, Iterator, Mapping
from hashlib import sha256
from typing import Any

import grpc
import pytest
from google.protobuf import duration_pb2, struct_pb2, timestamp_pb2
from google.protobuf.descriptor import Descriptor
from google.protobuf.message import Message

from fastlane_grpc.app import Server
from fastlane_grpc.config import HostSettings, RegistrySettings, SecretSettings, Settings
from fastlane_grpc.docker.container_body import container_body
from fastlane_grpc.v1 import fastlane_pb2 as pb
from fastlane_grpc.v1 import fastlane_pb2_grpc as pb_grpc

TOMORROW = int(time.time()) + 86_400

# Two values of each field, by its path: neither is what an unset field means.
VALUES: Mapping[str, tuple[Any, Any]] = {
    "image": ("alpine", "alpine:3"),
    "command": ("python 'a b'", "sh"),
    "args": (["$HOME", "*"], ["*", "$HOME"]),
    "envs": ({"A": "1"}, {"A": "2"}),
    "entrypoint": (["/tini", "--"], [""]),
    "working_dir": ("/app", "/srv"),
    "user": ("nobody:daemon", "1:1"),
    "timeout": (duration_pb2.Duration(seconds=90, nanos=5000), duration_pb2.Duration(seconds=1)),
    "pull_policy": (pb.JobSpec.PULL_POLICY_NEVER, pb.JobSpec.PULL_POLICY_ALWAYS),
    "limits.memory_bytes": (64 << 20, 65 << 20),
    "limits.cpus": (0.5, 2.0),
    "limits.pids": (10, 11),
    "limits.shm_bytes": (128 << 20, 1 << 20),
    "limits.memory_reservation_bytes": (16 << 20, 17 << 20),
    "limits.cpuset": ("0-1", "0"),
    "network": ("none", "builds"),
    "read_only_root": (True, None),
    "stop_signal": ("SIGINT", "SIGUSR1"),
    "stop_grace": (duration_pb2.Duration(), duration_pb2.Duration(seconds=3)),
    "priority": (-3, 3),
    "labels": ({"team": "mail"}, {"team": "web"}),
    "start_in": (duration_pb2.Duration(seconds=3600, nanos=5000), duration_pb2.Duration(seconds=1800)),
    "start_at": (
        timestamp_pb2.Timestamp(seconds=TOMORROW, nanos=5000),
        timestamp_pb2.Timestamp(seconds=TOMORROW + 1),
    ),
    "expire_time": (
        timestamp_pb2.Timestamp(seconds=TOMORROW, nanos=5000),
        timestamp_pb2.Timestamp(seconds=TOMORROW + 1),
    ),
    "metadata": (struct_pb2.Struct(fields={"n": struct_pb2.Value(number_value=1)}), struct_pb2.Struct()),
    "cron.expression": ("5 0 * * *", "@daily"),
    "cron.time_zone": ("Europe/Berlin", "Asia/Tokyo"),
    "cron.overlap": (pb.Cron.OVERLAP_REPLACE, pb.Cron.OVERLAP_ALLOW),
    "cron.catch_up": (pb.Cron.CATCH_UP_ALL, pb.Cron.CATCH_UP_NONE),
    "cron.paused": (True, None),
    "cron.catch_up_window": (duration_pb2.Duration(), duration_pb2.Duration(seconds=60)),
    "cron.jitter": (duration_pb2.Duration(seconds=5), duration_pb2.Duration(seconds=6)),
    "cron.begin_time": (
        timestamp_pb2.Timestamp(seconds=TOMORROW, nanos=5000),
        timestamp_pb2.Timestamp(seconds=TOMORROW + 1),
    ),
    "cron.end_time": (
        timestamp_pb2.Timestamp(seconds=TOMORROW + 86_400 * 30, nanos=5000),
        timestamp_pb2.Timestamp(seconds=TOMORROW + 86_400 * 20),
    ),
    "cron.max_runs": (3, 4),
    "retry.max_retries": (2, 3),
    "retry.initial_backoff": (duration_pb2.Duration(), duration_pb2.Duration(seconds=3)),
    "retry.factor": (1.5, 3.0),
    "retry.max_backoff": (duration_pb2.Duration(seconds=50), duration_pb2.Duration(seconds=60)),
    "retry.jitter": (pb.Retry.JITTER_NONE, pb.Retry.JITTER_FULL),
    "retry.causes": (
        [pb.Retry.RETRY_CAUSE_EXIT_CODE, pb.Retry.RETRY_CAUSE_IMAGE_NOT_FOUND],
        [pb.Retry.RETRY_CAUSE_IMAGE_DENIED],
    ),
    "retry.exit_codes": ([75, 3], [3]),
    "retry.except_exit_codes": ([2, 1], [1]),
    "retry.memory_growth.factor": (1.5, 2.0),
    "retry.memory_growth.max_bytes": (128 << 20, 256 << 20),
    "unique.key": ("a key", "another key"),
    "unique.conflict": (pb.Unique.CONFLICT_USE_EXISTING, pb.Unique.CONFLICT_REPLACE),
    # Its own fields are tried in test_rpc_notifications.
    "notifications": (
        [pb.Notification(webhook=pb.Notification.Webhook(url="https://example.org"), states=[pb.STATE_FAILED])],
        [pb.Notification(webhook=pb.Notification.Webhook(url="https://example.org"), states=[pb.STATE_LOST])],
    ),
    "history": (7, 8),
    "stop_when_unwatched": (duration_pb2.Duration(seconds=5, nanos=5000), duration_pb2.Duration(seconds=60)),
    "extra_hosts": ({"db": "192.0.2.7"}, {"db": "2001:db8::7"}),
    "tmpfs": (
        [pb.Tmpfs(path="/scratch", size_bytes=1 << 20, mode=0o700, executable=True)],
        [pb.Tmpfs(path="/scratch")],
    ),
    "ulimits": ([pb.Ulimit(name="nofile", soft=100, hard=200)], [pb.Ulimit(name="nofile", soft=100)]),
    "dns.servers": (["192.0.2.53", "2001:db8::53"], ["192.0.2.54"]),
    "dns.search_domains": (["example.com"], ["."]),
    "dns.options": (["ndots:2"], ["rotate"]),
    "volumes": (
        [pb.Volume(name="cache", path="/cache", read_only=True)],
        [pb.Volume(name="cache", path="/cache")],
    ),
    "devices": (
        [pb.Device(path="/dev/fuse", container_path="/dev/f", permissions="rw")],
        [pb.Device(path="/dev/fuse")],
    ),
    "gpus.count": (2, -1),
    "gpus.ids": (["0", "GPU-1"], ["1"]),
    "cap_drop": (["cap_net_raw", "MKNOD"], ["ALL"]),
    # Their contents are stored before.
    "inputs": (
        [pb.Input(path="/a", sha256=sha256(b"one").hexdigest(), size_bytes=3, mode=0o600, uid=1, gid=2)],
        [pb.Input(path="/a", sha256=sha256(b"two").hexdigest(), size_bytes=3, mode=0o600, uid=1, gid=2)],
    ),
    "outputs": (["/src/dist", "/report"], ["/report"]),
    "stdin": (
        pb.Stdin(sha256=sha256(b"one").hexdigest(), size_bytes=3),
        pb.Stdin(sha256=sha256(b"two").hexdigest(), size_bytes=3),
    ),
    "registry_credential": ("ci", "other"),
    "secret_envs": ({"A": "a"}, {"A": "b"}),
}

# What a spec needs besides the field, to be valid.
NEEDS: Mapping[str, pb.JobSpec] = {
    "cron": pb.JobSpec(cron=pb.Cron(expression="0 0 * * *")),
    "retry": pb.JobSpec(retry=pb.Retry(max_retries=1)),
    "retry.memory_growth": pb.JobSpec(
        retry=pb.Retry(max_retries=1, memory_growth=pb.Retry.MemoryGrowth(factor=3, max_bytes=64 << 20)),
        limits=pb.Limits(memory_bytes=32 << 20),
    ),
    "unique": pb.JobSpec(unique=pb.Unique(key="some key")),
}

# What the body of its container has of the first value. What is not here is carried out by fastlane, and no affair of
# the engine.
IN_CONTAINER: Mapping[str, Mapping[str, Any]] = {
    "image": {"Image": "alpine"},
    "command": {"Cmd": ["python", "a b"]},
    "args": {"Cmd": ["$HOME", "*"]},
    "envs": {"Env": ["A=1"]},
    "entrypoint": {"Entrypoint": ["/tini", "--"]},
    "working_dir": {"WorkingDir": "/app"},
    "user": {"User": "nobody:daemon"},
    "limits.memory_bytes": {"HostConfig": {"Memory": 64 << 20, "MemorySwap": 64 << 20}},
    "limits.cpus": {"HostConfig": {"NanoCpus": 500_000_000}},
    "limits.pids": {"HostConfig": {"PidsLimit": 10}},
    "limits.shm_bytes": {"HostConfig": {"ShmSize": 128 << 20}},
    "limits.memory_reservation_bytes": {"HostConfig": {"MemoryReservation": 16 << 20}},
    "limits.cpuset": {"HostConfig": {"CpusetCpus": "0-1"}},
    "network": {"HostConfig": {"NetworkMode": "none"}},
    "extra_hosts": {"HostConfig": {"ExtraHosts": ["db:192.0.2.7"]}},
    "tmpfs": {"HostConfig": {"Tmpfs": {"/scratch": "exec,mode=700,size=1048576"}}},
    "ulimits": {"HostConfig": {"Ulimits": [{"Name": "nofile", "Soft": 100, "Hard": 200}]}},
    "dns.servers": {"HostConfig": {"Dns": ["192.0.2.53", "2001:db8::53"]}},
    "dns.search_domains": {"HostConfig": {"DnsSearch": ["example.com"]}},
    "dns.options": {"HostConfig": {"DnsOptions": ["ndots:2"]}},
    "volumes": {
        "HostConfig": {"Mounts": [{"Type": "volume", "Source": "cache", "Target": "/cache", "ReadOnly": True}]}
    },
    "devices": {
        "HostConfig": {"Devices": [{"PathOnHost": "/dev/fuse", "PathInContainer": "/dev/f", "CgroupPermissions": "rw"}]}
    },
    "gpus.count": {"HostConfig": {"DeviceRequests": [{"Driver": "", "Capabilities": [["gpu"]], "Count": 2}]}},
    "gpus.ids": {
        "HostConfig": {"DeviceRequests": [{"Driver": "", "Capabilities": [["gpu"]], "DeviceIDs": ["0", "GPU-1"]}]}
    },
    "cap_drop": {"HostConfig": {"CapDrop": ["NET_RAW", "MKNOD"]}},
    "read_only_root": {"HostConfig": {"ReadonlyRootfs": True}},
    "stop_signal": {"StopSignal": "SIGINT"},
    "labels": {"Labels": {"team": "mail"}},
}
BY_FASTLANE = {
    *("timeout", "pull_policy", "stop_grace", "priority", "start_in", "start_at", "expire_time", "metadata", "history"),
    *("notifications", "inputs", "outputs", "stdin", "registry_credential", "secret_envs", "stop_when_unwatched"),
    *(path for path in VALUES if path.startswith(("cron.", "retry.", "unique."))),
}


# Messages whose fields mean something together alone.
WHOLE = {"stdin"}


def paths(descriptor: Descriptor, above: str = "") -> Iterator[str]:
    """Each field of the message, and of our own messages within it that are not in a list."""
    for field in descriptor.fields:
        within = field.message_type
        of_ours = within is not None and within.file is descriptor.file and not within.GetOptions().map_entry
        if of_ours and not field.is_repeated and field.name not in WHOLE:
            yield from paths(within, f"{above}{field.name}.")
        else:
            yield above + field.name


def spec_with(path: str, value: object) -> pb.JobSpec:
    spec = pb.JobSpec(image="busybox")
    *above, name = path.split(".")
    spec.MergeFrom(NEEDS.get(".".join(above), pb.JobSpec()))
    message: Any = spec
    for each in above:
        message = getattr(message, each)
    if isinstance(value, dict):
        getattr(message, name).update(value)
    elif isinstance(value, list):
        getattr(message, name).extend(value)
    elif isinstance(value, Message):
        getattr(message, name).CopyFrom(value)
    elif value is not None:
        setattr(message, name, value)
    return spec


@pytest.fixture(scope="module")
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Server]:
    """One whose engine is not there: it keeps jobs, and starts none."""
    directory = tmp_path_factory.mktemp("spec")
    hosts = (
        HostSettings(
            "here",
            f"unix://{directory}/no-engine",
            allow_networks=("builds",),
            allow_volumes=("cache",),
            allow_devices=("/dev/fuse",),
            allow_gpus=True,
        ),
    )
    registries = tuple(RegistrySettings(name, "registry:5000", command="true") for name in ("ci", "other"))
    settings = Settings(
        data_dir=directory / "data",
        listen="127.0.0.1:0",
        http_listen="",
        hosts=hosts,
        registries=registries,
        secrets=tuple(SecretSettings(name, "*", env="A") for name in ("a", "b")),
    )
    async with Server(settings) as server:
        yield server


@pytest.fixture(scope="module")
async def jobs(server: Server) -> AsyncIterator[Any]:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        jobs = pb_grpc.JobServiceStub(channel)
        for content in (b"one", b"two"):
            part = pb.UploadInputRequest(sha256=sha256(content).hexdigest(), size_bytes=3, data=content)
            assert (await jobs.UploadInput(part)).complete
        yield jobs


def test_every_field_is_tried_here() -> None:
    assert set(paths(pb.JobSpec.DESCRIPTOR)) == set(VALUES)
    assert set(VALUES) == set(IN_CONTAINER) | BY_FASTLANE


@pytest.mark.parametrize("path", ["tmpfs", "ulimits", "volumes", "devices"])
def test_every_field_of_a_message_in_a_list_is_tried_here(path: str) -> None:
    [message] = VALUES[path][0]
    assert {field.name for field, _ in message.ListFields()} == {field.name for field in message.DESCRIPTOR.fields}


@pytest.mark.parametrize("path", VALUES)
async def test_a_field_survives_from_the_request_to_the_answer_and_the_container(
    path: str, server: Server, jobs: Any
) -> None:
    spec = spec_with(path, VALUES[path][0])
    assert spec != pb.JobSpec(image="busybox")
    kept = (await jobs.EnqueueJob(pb.EnqueueJobRequest(task_id="t", spec=spec))).job
    assert kept.spec == spec
    assert (await jobs.GetJob(pb.GetJobRequest(job_id=kept.id))).job.spec == spec
    [listed] = (await jobs.ListJobs(pb.ListJobsRequest(id_prefix=kept.id, with_spec=True))).jobs
    assert listed.spec == spec
    bare = pb.JobSpec(image="busybox")
    if path.startswith("retry.memory_growth"):
        bare.limits.CopyFrom(spec.limits)
    without = (await jobs.EnqueueJob(pb.EnqueueJobRequest(task_id="t", spec=bare))).job
    body, plain = await _container(server, kept), await _container(server, without)
    changes = IN_CONTAINER.get(path, {})
    assert _differences(plain, body) == set(_leaves(changes))
    assert _holds(body, changes)


@pytest.mark.parametrize("path", VALUES)
async def test_a_request_id_is_refused_where_the_field_has_another_value(path: str, jobs: Any) -> None:
    first, second = (
        pb.EnqueueJobRequest(task_id="same", spec=spec_with(path, value), request_id=path) for value in VALUES[path]
    )
    await jobs.EnqueueJob(first)
    assert (await jobs.EnqueueJob(first)).existing
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await jobs.EnqueueJob(second)
    assert refused.value.code() == grpc.StatusCode.ALREADY_EXISTS


async def _container(server: Server, job: pb.Job) -> Mapping[str, Any]:
    return container_body(await server.store.assignment(job.execution.id), instance="i", default_pids=256)


def _leaves(part: Mapping[str, Any], above: str = "") -> Iterator[str]:
    for key, value in part.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{above}{key}.")
        else:
            yield above + key


def _flat(body: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in body.items():
        found |= _flat(value, f"{above}{key}.") if isinstance(value, Mapping) else {above + key: value}
    return found


def _differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> set[str]:
    """Where two containers differ, but for whose they are."""
    a, b = _flat(one), _flat(other)
    return {key for key in a.keys() | b.keys() if a.get(key) != b.get(key) and not key.startswith("Labels.fastlane.")}


def _holds(body: Mapping[str, Any], part: Mapping[str, Any]) -> bool:
    return all(
        _holds(body[key], value) if isinstance(value, Mapping) else body[key] == value for key, value in part.items()
    )
