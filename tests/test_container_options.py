"""What a container may use, seen from inside it, and what a job may not ask for."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import docker
import pytest

from fastlane_grpc.api.container_validation import ULIMITS
from fastlane_grpc.api.converters import read_enqueue
from fastlane_grpc.api.validation import enqueue_violations
from fastlane_grpc.capture.recorder import capabilities_by_recorder, ulimits_by_recorder
from fastlane_grpc.client import STDOUT, Client, Dns, Gap, Output, Tmpfs, Ulimit
from fastlane_grpc.v1 import fastlane_pb2 as pb
from tests.reading import outcome, run
from tests.serving import serving_on

DEFAULT_CAPABILITIES = 0xA80425FB
KILL, SETPCAP = 1 << 5, 1 << 8


@pytest.fixture(scope="module", params=["recorder", "attach"])
def client(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, sdk: docker.DockerClient
) -> Iterator[Client]:
    data_dir = tmp_path_factory.mktemp("options") / "data"
    with serving_on(sdk, data_dir, capture=request.param) as server, Client(server.address) as client:
        yield client


def sh(client: Client, image: str, script: str, **spec: object) -> str:
    """Return what the script prints."""
    log = run(client, image, "sh", "-c", script, **spec)
    assert log.end().exit_status == 0, (outcome(log), log.stderr)
    return log.stdout.decode()


LOOK = """
df -k /dev/shm /scratch | awk 'NR > 1 { print $NF, $2 }'
stat -c %a /scratch
cp /bin/busybox /scratch/echo && /scratch/echo runs
cp /bin/busybox /plain/echo && /plain/echo runs 2>/dev/null || echo refused
ulimit -Sn; ulimit -Hn; ulimit -c; ulimit -f
grep -h "192.0.2.7" /etc/hosts | tr "\\t" " "
cat /etc/resolv.conf | grep -v "^#" | sort
grep Cpus_allowed_list /proc/self/status | tr "\\t" " "
"""
SEEN = """/dev/shm 131072
/scratch 2048
700
runs
refused
100
200
0
6144
192.0.2.7 db
nameserver 192.0.2.53
options ndots:2
search example.com
Cpus_allowed_list: 0
"""


@pytest.mark.engine
def test_a_container_has_each_option_that_it_was_given(client: Client, image: str) -> None:
    seen = sh(
        client,
        image,
        LOOK,
        shm_bytes=128 << 20,
        memory_bytes=64 << 20,
        memory_reservation_bytes=32 << 20,
        cpuset="0",
        tmpfs=[Tmpfs("/scratch", 2 << 20, 0o700, executable=True), "/plain"],
        ulimits=[Ulimit("nofile", 100, 200), Ulimit("core", 0), Ulimit("fsize", 3 << 20)],
        extra_hosts={"db": "192.0.2.7"},
        dns=Dns(["192.0.2.53"], ["example.com"], ["ndots:2"]),
    )
    assert seen == SEEN


@pytest.mark.engine
def test_a_container_without_capabilities_has_none_and_can_be_stopped(client: Client, image: str) -> None:
    script = "grep Cap /proc/self/status | tr -d '\\t'; sleep 60"
    output = stopped(client, image, script, cap_drop=["ALL"])
    assert output.split() == [f"Cap{name}:{0:016x}".encode() for name in ("Inh", "Prm", "Eff", "Bnd", "Amb")]


@pytest.mark.engine
def test_a_container_without_kill_is_stopped_with_processes_of_other_users(client: Client, image: str) -> None:
    script = "su nobody -s /bin/sh -c 'id -u; echo; echo; echo; echo; sleep 60'"
    assert stopped(client, image, script, cap_drop=["KILL"]).split() == [b"65534"]


def stopped(client: Client, image: str, script: str, **spec: Any) -> bytes:
    """Return the output of a script that is killed after its fifth line."""
    job = client.enqueue("t", image, args=["sh", "-c", script], stop_grace=0, **spec)
    output, is_stopped, gaps = b"", False, 0
    for event in client.tail_job(job.id, sources=[STDOUT]):
        output += event.data if isinstance(event, Output) else b""
        gaps += isinstance(event, Gap)
        if output.count(b"\n") == 5 and not is_stopped:
            client.stop(job.id)
            is_stopped = True
    assert (client.job(job.id).state, gaps) == (pb.STATE_STOPPED, 0)
    return output


@pytest.mark.engine
def test_a_dropped_capability_alone_is_gone(client: Client, image: str) -> None:
    for name, bit in (("KILL", KILL), ("cap_setpcap", SETPCAP)):
        seen = sh(client, image, "grep CapBnd /proc/self/status | tr -d '\\t'", cap_drop=[name])
        assert int(seen.partition(":")[2], 16) == DEFAULT_CAPABILITIES & ~bit


@pytest.mark.engine
def test_the_least_limits_of_a_command_lose_none_of_its_output(client: Client, image: str) -> None:
    # By attach the engine itself starts the command under them.
    limits = [Ulimit("fsize", 0), Ulimit("data", -1), Ulimit("cpu", 5), Ulimit("nofile", 64), Ulimit("core", 0, -1)]
    script = "head -c 1000000 /dev/zero; echo x >/tmp/file || true; ulimit -c"
    log = run(client, image, "sh", "-c", script, ulimits=limits)
    assert log.stdout.startswith(bytes(1000000))
    assert not log.gaps


@pytest.mark.engine
def test_what_the_engine_cannot_give_is_told_as_its_refusal(client: Client, image: str) -> None:
    log = run(client, image, "true", cpuset="7000")
    assert (log.end().state, outcome(log).reason) == (pb.STATE_FAILED, pb.REASON_REFUSED_BY_ENGINE)
    assert "7000" in outcome(log).detail


# ------------------------------------------------------------------------------------------------- by recorder


def test_the_limits_of_the_engine_leave_the_recorder_at_work() -> None:
    given = [{"Name": name, "Soft": 0, "Hard": 0} for name in ULIMITS]
    shared = ulimits_by_recorder({"Ulimits": given})
    assert shared.options == [word for name in ULIMITS for word in ("--ulimit", f"{name}=0:0")]
    by_name = {each["Name"]: each["Hard"] for each in shared.host_config["Ulimits"]}
    assert all(each["Soft"] == each["Hard"] for each in shared.host_config["Ulimits"])
    assert all(by_name[name] == -1 for name in ("fsize", "cpu", "data", "nproc"))
    assert by_name["nofile"] >= 64


@pytest.mark.parametrize(
    ("dropped", "by_engine", "added"),
    [
        (["KILL"], [], None),
        (["NET_RAW", "SETPCAP"], ["NET_RAW"], None),
        (["ALL"], ["ALL"], ["KILL", "SETPCAP"]),
        (["NET_RAW"], None, None),
    ],
)
def test_the_recorder_keeps_what_it_needs_to_end_a_container(
    dropped: list[str], by_engine: list[str] | None, added: list[str] | None
) -> None:
    changed = capabilities_by_recorder({"CapDrop": dropped}).host_config
    assert (changed.get("CapDrop"), changed.get("CapAdd")) == (by_engine, added)


# ------------------------------------------------------------------------------------------------ what is refused


def fields_refused(spec: pb.JobSpec) -> list[str]:
    spec.image = "busybox"
    request, violations = read_enqueue(pb.EnqueueJobRequest(task_id="t", spec=spec), "")
    assert not violations
    return [each.field for each in enqueue_violations("t", request.spec, "", timedelta(days=1), datetime.now(UTC))]


@pytest.mark.parametrize(
    "path",
    [
        *("", "tmp", "/", "//tmp", "/tmp/", "/a/../b", "/./a", "/a\nb", "/a\0", "/proc", "/proc/sys", "/sys/fs/cgroup"),
        *("/dev", "/dev/shm", "/.fastlane", "/.fastlane/box", "/" + "a" * 2000),
    ],
)
def test_memory_is_mounted_over_nothing_of_the_kernel_or_the_recorder(path: str) -> None:
    assert fields_refused(pb.JobSpec(tmpfs=[pb.Tmpfs(path=path)])) == ["spec.tmpfs[0].path"]


def test_memory_at_an_ordinary_path_is_taken() -> None:
    assert fields_refused(pb.JobSpec(tmpfs=[pb.Tmpfs(path=path) for path in ("/tmp", "/devel", "/a b:c,d")])) == []


REFUSED: list[tuple[pb.JobSpec, list[str]]] = [
    (pb.JobSpec(tmpfs=[pb.Tmpfs(path="/a"), pb.Tmpfs(path="/a")]), ["spec.tmpfs[1].path"]),
    (
        pb.JobSpec(tmpfs=[pb.Tmpfs(path="/a", size_bytes=-1, mode=0o4755)]),
        ["spec.tmpfs[0].size_bytes", "spec.tmpfs[0].mode"],
    ),
    (pb.JobSpec(tmpfs=[pb.Tmpfs(path=f"/{n}") for n in range(17)]), ["spec.tmpfs"]),
    (pb.JobSpec(devices=[pb.Device(path="/etc/passwd")]), ["spec.devices[0].path"]),
    (pb.JobSpec(devices=[pb.Device(path="/dev/../etc")]), ["spec.devices[0].path"]),
    (
        pb.JobSpec(devices=[pb.Device(path="/dev/a", container_path="/etc", permissions="wr")]),
        ["spec.devices[0].container_path", "spec.devices[0].permissions"],
    ),
    (
        pb.JobSpec(devices=[pb.Device(path="/dev/a"), pb.Device(path="/dev/b", container_path="/dev/a")]),
        ["spec.devices[1].container_path"],
    ),
    (pb.JobSpec(devices=[pb.Device(path=f"/dev/{n}") for n in range(17)]), ["spec.devices"]),
    (pb.JobSpec(gpus=pb.Gpus()), ["spec.gpus"]),
    (pb.JobSpec(gpus=pb.Gpus(count=1, ids=["0"])), ["spec.gpus"]),
    (pb.JobSpec(gpus=pb.Gpus(count=-2)), ["spec.gpus.count"]),
    (pb.JobSpec(gpus=pb.Gpus(ids=["0", "a b", "0"])), ["spec.gpus.ids[1]", "spec.gpus.ids[2]"]),
    (pb.JobSpec(ulimits=[pb.Ulimit(name="rtprio", soft=99)]), ["spec.ulimits[0].name"]),
    (pb.JobSpec(ulimits=[pb.Ulimit(name="nice", soft=40)]), ["spec.ulimits[0].name"]),
    (pb.JobSpec(ulimits=[pb.Ulimit(name="core"), pb.Ulimit(name="core")]), ["spec.ulimits[1].name"]),
    (pb.JobSpec(ulimits=[pb.Ulimit(name="core", soft=-2)]), ["spec.ulimits[0].soft"]),
    (pb.JobSpec(ulimits=[pb.Ulimit(name="core", soft=-1, hard=5)]), ["spec.ulimits[0].hard"]),
    (pb.JobSpec(ulimits=[pb.Ulimit(name="core", soft=6, hard=5)]), ["spec.ulimits[0].hard"]),
    (pb.JobSpec(ulimits=[pb.Ulimit(name="core", hard=-2)]), ["spec.ulimits[0].hard"]),
    (pb.JobSpec(ulimits=[pb.Ulimit(name="core", hard=-1)]), []),
    (pb.JobSpec(extra_hosts={"a": "host-gateway"}), ['spec.extra_hosts["a"]']),
    (pb.JobSpec(extra_hosts={"a": "192.0.2.1\n192.0.2.2 b"}), ['spec.extra_hosts["a"]']),
    (pb.JobSpec(extra_hosts={"a b": "192.0.2.1"}), ['spec.extra_hosts["a b"]']),
    (pb.JobSpec(extra_hosts={"a:1": "192.0.2.1"}), ['spec.extra_hosts["a:1"]']),
    (pb.JobSpec(extra_hosts={str(n): "192.0.2.1" for n in range(65)}), ["spec.extra_hosts"]),
    (pb.JobSpec(dns=pb.Dns(servers=["ns.example.com"])), ["spec.dns.servers[0]"]),
    (pb.JobSpec(dns=pb.Dns(servers=["fe80::1%eth0"])), ["spec.dns.servers[0]"]),
    (pb.JobSpec(dns=pb.Dns(search_domains=["a\nnameserver 192.0.2.1"])), ["spec.dns.search_domains[0]"]),
    (pb.JobSpec(dns=pb.Dns(options=["ndots:2 x"])), ["spec.dns.options[0]"]),
    (pb.JobSpec(dns=pb.Dns(servers=["192.0.2.1"] * 9)), ["spec.dns.servers"]),
    *(
        (pb.JobSpec(volumes=[pb.Volume(name=name, path="/a")]), ["spec.volumes[0].name"])
        for name in ("", "/srv", ".", "..", "a/b", "~", "host", "a:b", "-a")
    ),
    *((pb.JobSpec(network=name), ["spec.network"]) for name in ("host", "container:a", "default", "a/b", "-a")),
    (
        pb.JobSpec(tmpfs=[pb.Tmpfs(path="/a")], volumes=[pb.Volume(name="a", path="/a")]),
        ["spec.volumes[0].path"],
    ),
    (pb.JobSpec(volumes=[pb.Volume(name="a", path="/.fastlane/box")]), ["spec.volumes[0].path"]),
    (pb.JobSpec(volumes=[pb.Volume(name="a", path=f"/{n}") for n in range(17)]), ["spec.volumes"]),
    (pb.JobSpec(cap_drop=["NET_RAWW"]), ["spec.cap_drop[0]"]),
    *((pb.JobSpec(registry_credential=name), ["spec.registry_credential"]) for name in ("a/b", ".a", "a b", "a" * 65)),
    (pb.JobSpec(cap_drop=["all", "Cap_Kill"]), []),
    (pb.JobSpec(limits=pb.Limits(shm_bytes=-1)), ["spec.limits.shm_bytes"]),
    (pb.JobSpec(limits=pb.Limits(memory_reservation_bytes=1)), ["spec.limits.memory_reservation_bytes"]),
    (
        pb.JobSpec(limits=pb.Limits(memory_bytes=8 << 20, memory_reservation_bytes=9 << 20)),
        ["spec.limits.memory_reservation_bytes"],
    ),
    *((pb.JobSpec(limits=pb.Limits(cpuset=text)), ["spec.limits.cpuset"]) for text in ("a", "1-0", "0,", "9000")),
    (pb.JobSpec(limits=pb.Limits(cpuset="0-3,7")), []),
]


@pytest.mark.parametrize(("spec", "fields"), REFUSED)
def test_what_no_container_may_use_is_refused_by_the_name_of_its_field(spec: pb.JobSpec, fields: list[str]) -> None:
    assert fields_refused(spec) == fields
