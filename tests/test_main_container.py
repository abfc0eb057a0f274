"""What a job asks of its container, seen from inside it: each thing is there, and nothing that was not asked for."""

from collections.abc import Iterator
from pathlib import Path

import docker
import pytest

from fastlane_grpc.client import Client
from fastlane_grpc.v1 import fastlane_pb2 as pb
from tests.reading import outcome, run
from tests.serving import serving_on

pytestmark = pytest.mark.engine

# What an engine gives by default: CHOWN, DAC_OVERRIDE, FOWNER, FSETID, KILL, SETGID, SETUID, SETPCAP, NET_BIND_SERVICE,
# NET_RAW, SYS_CHROOT, MKNOD, AUDIT_WRITE, SETFCAP.
DEFAULT_CAPABILITIES = 0xA80425FB
# A limit as the container finds it, under either version of cgroups.
LIMIT = "cd /sys/fs/cgroup; cat {} 2>/dev/null || cat {}"
# PID 1 is the recorder, which is not counted as one of the job's.
RECORDER = 1


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory, sdk: docker.DockerClient) -> Iterator[Client]:
    data_dir = tmp_path_factory.mktemp("container") / "data"
    with serving_on(sdk, data_dir, default_pids=77) as server, Client(server.address) as client:
        yield client


def sh(client: Client, image: str, script: str, **spec: object) -> str:
    """What the script prints."""
    log = run(client, image, "sh", "-c", script, **spec)
    assert log.end().exit_status == 0, (outcome(log), log.stderr)
    return log.stdout.decode()


def test_variables_directory_and_user_are_as_asked_for(client: Client, image: str) -> None:
    envs = {"ONE": "1 = 'one'", "EMPTY": "", "LINES": "a\nb", "UMLAUT": "ü"}
    printed = sh(client, image, "env; echo --; pwd; id -u; id -g", envs=envs, working_dir="/tmp", user="nobody:7")
    variables, _, rest = printed.partition("--\n")
    for name, value in envs.items():
        assert f"{name}={value}\n" in variables
    assert rest == "/tmp\n65534\n7\n"


def test_a_secret_reaches_the_container_and_no_answer(client: Client, image: str) -> None:
    log = run(client, image, "sh", "-c", "echo $API_TOKEN | tr a-z A-Z", envs={"API_TOKEN": "abc"})
    assert log.stdout == b"ABC\n"
    assert client.job(log.execution().job_id).spec.envs["API_TOKEN"] == "***"


@pytest.mark.parametrize("capture", ["recorder", "attach"])
def test_no_secret_is_in_an_answer_a_line_or_the_server_log(
    tmp_path: Path, sdk: docker.DockerClient, image: str, capture: str
) -> None:
    url = "postgres://app:hunter2@db/x"
    with serving_on(sdk, tmp_path / "data", capture=capture) as server, Client(server.address) as client:
        logs = [
            run(client, image, url, envs={"PGPASS": "hunter2", "URL": url}),
            run(client, image, "true", entrypoint=[url]),
            run(client, image, "true", user="nobody-of-this-name", envs={"PGPASS": "hunter2", "URL": url}),
        ]
        answers = [
            *(log.execution() for log in logs),
            *(client.job(log.execution().job_id) for log in logs),
            *client.jobs(with_spec=True),
        ]
    assert all(log.end().exit_status == 125 for log in logs)
    assert "postgres://app:***@db/x" in outcome(logs[0]).detail, "the engine or the kernel names the command"
    assert not [each for each in answers if "hunter2" in str(each)]
    assert not [log.system for log in logs if "hunter2" in log.system]
    assert "hunter2" not in Path(f"{tmp_path / 'data'}.log").read_text()


def test_an_entrypoint_takes_the_place_of_the_images(client: Client, image: str) -> None:
    log = run(client, image, "$x", entrypoint=["echo", "y"])
    assert log.stdout == b"y $x\n"


def test_a_read_only_root_cannot_be_written(client: Client, image: str) -> None:
    assert sh(client, image, "touch /file && echo written") == "written\n"
    assert sh(client, image, "touch /file 2>&1 || echo refused", read_only_root=True).endswith(
        "Read-only file system\nrefused\n"
    )


def test_no_network_is_none(client: Client, image: str) -> None:
    assert sh(client, image, "ls /sys/class/net", network="none") == "lo\n"
    assert "eth0" in sh(client, image, "ls /sys/class/net")


def test_limits_hold_inside(client: Client, image: str) -> None:
    limits = {"memory_bytes": 64 << 20, "cpus": 0.5, "pids": 20}
    assert sh(client, image, LIMIT.format("memory/memory.limit_in_bytes", "memory.max"), **limits) == f"{64 << 20}\n"
    assert sh(client, image, LIMIT.format("pids/pids.max", "pids.max"), **limits) == f"{20 + RECORDER}\n"
    quota, period = sh(
        client, image, LIMIT.format("cpu/cpu.cfs_quota_us cpu/cpu.cfs_period_us", "cpu.max"), **limits
    ).split()
    assert int(quota) / int(period) == 0.5


def test_swap_is_not_given_in_addition_to_memory(client: Client, image: str) -> None:
    second, first = "memory.swap.max", "memory/memory.memsw.limit_in_bytes"
    script = f"cd /sys/fs/cgroup; cat {second} 2>/dev/null && exit; cat {first} 2>/dev/null || echo none here"
    assert sh(client, image, script, memory_bytes=64 << 20) in {"0\n", f"{64 << 20}\n", "none here\n"}


def test_a_container_cannot_have_more_memory_than_it_may(client: Client, image: str) -> None:
    log = run(client, image, "tail", "/dev/zero", memory_bytes=16 << 20)
    assert (log.end().state, outcome(log).exit_code) == (pb.STATE_FAILED, 137)


def test_a_container_cannot_have_more_processes_than_it_may(client: Client, image: str) -> None:
    # As many as it likes, until one is refused.
    script = "i=0; while [ $i -lt 50 ]; do sleep 30 & i=$((i+1)); done; echo all"
    log = run(client, image, "sh", "-c", script, pids=20)
    assert (log.end().state, log.stdout) == (pb.STATE_FAILED, b"")
    assert b"fork" in log.stderr


def test_without_limits_the_servers_own_holds_for_processes(client: Client, image: str) -> None:
    assert sh(client, image, LIMIT.format("pids/pids.max", "pids.max")) == f"{77 + RECORDER}\n"


@pytest.mark.parametrize("user", ["", "nobody"])
def test_a_process_has_no_capability_beyond_the_engines_default_and_can_gain_none(
    client: Client, image: str, user: str
) -> None:
    status = dict(line.split(":", 1) for line in sh(client, image, "cat /proc/self/status", user=user).splitlines())
    assert int(status["NoNewPrivs"]) == 1
    for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        assert int(status[name], 16) & ~DEFAULT_CAPABILITIES == 0, name
    if user:
        assert int(status["CapEff"], 16) == 0


def test_nothing_of_the_host_is_in_a_container(client: Client, image: str) -> None:
    mounts = {fields[1]: fields[2:4] for fields in map(str.split, sh(client, image, "cat /proc/mounts").splitlines())}
    assert not [place for place in mounts if place.endswith(".sock")]
    disk_files = {
        place
        for place, (kind, _) in mounts.items()
        if kind not in {"overlay", "proc", "sysfs", "tmpfs", "devpts", "mqueue"}
    }
    # The engine's three, and the recorder's two, of which it needs neither any more.
    engines = {"/etc/resolv.conf", "/etc/hostname", "/etc/hosts"}
    assert {place for place in disk_files if not place.startswith("/sys/fs/cgroup")} <= {
        *engines,
        "/.fastlane/recorder",
        "/.fastlane/box",
    }
    assert mounts["/.fastlane/recorder"][1].startswith("ro,")
    assert sh(client, image, "ls /.fastlane/box") == ""
    devices = sh(client, image, "ls /dev").split()
    assert not {"kmsg", "mem", "sda", "vda", "fuse"} & {*devices}


def test_nothing_is_left_of_a_container_for_the_next(client: Client, image: str) -> None:
    assert sh(client, image, "echo mine >/tmp/file; ls /tmp") == "file\n"
    assert sh(client, image, "ls /tmp") == ""
