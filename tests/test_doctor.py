"""The doctor finds what is wrong, says what to do, and changes nothing."""

import asyncio
import json
import os
import socket
import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from fastlane_grpc import doctor, recorder
from fastlane_grpc.config import Settings
from fastlane_grpc.docker.diagnostics import Checkup, Found
from fastlane_grpc.doctor.disk import _inodes, _local, _room, about_database, about_directory
from fastlane_grpc.doctor.engine import _unmounted_controllers, about_engine, look
from fastlane_grpc.doctor.machine import about_inotify, about_open_files
from fastlane_grpc.doctor.server import about_http, about_server
from fastlane_grpc.model import JobSpec, Outcome, Reason, State
from fastlane_grpc.runner import HostDown
from fastlane_grpc.store import Store
from fastlane_grpc.v1 import fastlane_pb2 as pb
from tests.commands import FASTLANE, environment
from tests.engine import EngineHarness, by_attach, engine_address
from tests.http_harness import HttpHarness
from tests.scripted_server import ScriptedServer

FINE = Checkup("28.1", "amd64", "overlay2", "2", True, True, [], True, timedelta(0), [])


def levels(findings: "Iterator[doctor.Finding] | list[doctor.Finding]") -> dict[str, str]:
    found = list(findings)
    for finding in found:
        assert bool(finding.advice) == (finding.level is not doctor.Level.OK), (
            "advice is given exactly where something is wrong"
        )
    return {finding.check: str(finding.level) for finding in found}


# ----------------------------------------------------------------------------------------------------------- the engine


def test_an_engine_that_is_well_is_well() -> None:
    found = levels(about_engine("unix:///engine", FINE))
    assert found.pop("recorder") == ("ok" if recorder.binary("amd64") else "warn")
    assert set(found.values()) == {"ok"}


def test_an_engine_that_does_not_answer_fails_and_nothing_else_is_said_of_it() -> None:
    down = look("unix:///nowhere.sock")
    assert isinstance(down, HostDown)
    assert levels(about_engine("unix:///nowhere.sock", down)) == {"engine": "FAIL"}


@pytest.mark.parametrize(
    ("checkup", "check", "level"),
    [
        (replace(FINE, limits_memory=False), "cgroups", "FAIL"),
        (replace(FINE, limits_pids=False), "cgroups", "FAIL"),
        (replace(FINE, architecture="riscv64"), "recorder", "warn"),
        (replace(FINE, local=False), "recorder", "warn"),
        (replace(FINE, clock_ahead=timedelta(seconds=3)), "clock", "warn"),
        (replace(FINE, clock_ahead=timedelta(seconds=-3)), "clock", "warn"),
        (replace(FINE, clock_ahead=timedelta(seconds=0.5)), "clock", "ok"),
    ],
)
def test_what_an_engine_lacks_is_told(checkup: Checkup, check: str, level: str) -> None:
    assert levels(about_engine("tcp://elsewhere:2375", checkup))[check] == level


def test_controllers_that_are_enabled_and_not_mounted_keep_kills_for_memory_secret(tmp_path: Path) -> None:
    table = tmp_path / "cgroups"
    table.write_text("#subsys_name\thierarchy\tnum_cgroups\tenabled\nmemory\t4\t1\t1\nmisc\t0\t1\t1\nrdma\t0\t1\t0\n")
    assert _unmounted_controllers(table) == ["misc"]
    assert _unmounted_controllers(tmp_path / "none") == []


# ------------------------------------------------------------------------------------------------------------- the disk


def test_a_data_directory_that_is_well_is_well(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    assert set(levels(about_directory(tmp_path, None)).values()) == {"ok"}


def test_a_data_directory_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b"
    assert levels(about_directory(path, None))["data directory"] == "ok"
    assert list(tmp_path.iterdir()) == []


def test_a_data_directory_that_is_a_file_or_open_to_all_is_told(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    assert levels(about_directory(tmp_path, None))["privacy"] == "warn"
    assert oct(tmp_path.stat().st_mode)[-3:] == "755", "nothing is changed"
    file = tmp_path / "file"
    file.touch()
    assert levels(about_directory(file, None))["data directory"] == "FAIL"


def test_a_data_directory_that_cannot_be_written_fails() -> None:
    # Nobody may write there, not even root.
    assert levels(about_directory(Path("/proc/sys"), None))["data directory"] == "FAIL"
    assert levels(about_directory(Path("/proc/sys/here"), None))["data directory"] == "FAIL"


def test_a_network_file_system_fails() -> None:
    assert levels([_local("nfs4")]) == {"file system": "FAIL"}
    assert levels([_local("ext4")]) == levels([_local("")]) == {"file system": "ok"}


@pytest.mark.parametrize(
    ("free", "level"), [(0, "FAIL"), (1023, "FAIL"), (5000, "warn"), (100_000, "ok"), (None, "ok")]
)
def test_a_disk_that_has_hardly_an_inode_is_told(free: int | None, level: str) -> None:
    assert levels([_inodes(free, 1024)]) == {"inodes": level}


@pytest.mark.parametrize(("free_bytes", "level"), [(50 << 20, "FAIL"), (300 << 20, "warn"), (3 << 30, "ok")])
def test_a_disk_that_is_nearly_full_is_told(free_bytes: int, level: str) -> None:
    assert levels([_room(free_bytes, 256 << 20)]) == {"disk": level}


# --------------------------------------------------------------------------------------------------------- the database


def test_a_database_that_is_lost_while_there_are_logs_fails(tmp_path: Path) -> None:
    assert levels(about_database(tmp_path, None)) == {"database": "ok"}
    (tmp_path / "logs" / "2026-01-01" / "019b76da-a800-7000-8000-000000000000").mkdir(parents=True)
    assert levels(about_database(tmp_path, None)) == {"database": "FAIL"}
    (tmp_path / "fastlane.db").touch()
    assert levels(about_database(tmp_path, None)) == {"database": "FAIL"}


async def kept(tmp_path: Path) -> tuple[str, str, str]:
    """Ids: of the instance, of an execution that is over, of one that waits."""
    store = Store.open(tmp_path, on_commit=lambda executions: None, loop=asyncio.get_running_loop())
    jobs = [
        (await store.enqueue(task_id="t", spec=JobSpec(image="busybox"), request_id="", caller_address=""))[
            0
        ].execution.id
        for _ in "ab"
    ]
    await store.claim_on(["here"])
    await store.finish(jobs[0], state=State.FAILED, outcome=Outcome(Reason.REFUSED_BY_ENGINE), logs=[])
    store.close()
    over, waiting = jobs
    return store.instance, over, waiting


async def test_containers_are_orphans_where_their_execution_is_over_or_unknown(tmp_path: Path) -> None:
    instance, over, waits = await kept(tmp_path)
    ours = [Found(f"fastlane-{each}", instance, each, running=True) for each in (over, waits, "unknown")]
    findings = list(about_database(tmp_path, ours))
    assert levels(findings) == {"database": "ok", "containers": "warn", "other servers": "ok"}
    [orphans] = [finding.found for finding in findings if finding.check == "containers"]
    assert orphans == f"2 of executions that have ended: fastlane-{over}, fastlane-unknown"
    assert levels(about_database(tmp_path, ours[1:2]))["containers"] == "ok"


async def test_containers_of_other_servers_are_told_where_they_do_not_run(tmp_path: Path) -> None:
    await kept(tmp_path)
    theirs = [Found(f"fastlane-{number}", "another", str(number), running=number < 2) for number in range(7)]
    findings = list(about_database(tmp_path, theirs[:2]))
    assert (levels(findings)["other servers"], findings[-1].found) == (
        "ok",
        "containers of other servers on this engine: 2",
    )
    findings = list(about_database(tmp_path, theirs))
    assert levels(findings) == {"database": "ok", "containers": "ok", "other servers": "warn"}
    assert findings[-1].found == "5 containers of other servers are stopped: fastlane-2, fastlane-3, fastlane-4, …"


async def test_the_database_is_looked_at_beside_a_server_that_writes(tmp_path: Path) -> None:
    store = Store.open(tmp_path, on_commit=lambda executions: None, loop=asyncio.get_running_loop())
    try:
        await store.enqueue(task_id="t", spec=JobSpec(image="busybox"), request_id="", caller_address="")
        assert levels(about_database(tmp_path, []))["database"] == "ok"
    finally:
        store.close()


async def test_a_database_that_is_damaged_or_none_fails(tmp_path: Path) -> None:
    await kept(tmp_path)
    path = tmp_path / "fastlane.db"
    with closing(sqlite3.connect(path)) as db:
        (page,) = db.execute("SELECT rootpage FROM sqlite_master WHERE name = 'jobs_state'").fetchone()
        (page_bytes,) = db.execute("PRAGMA page_size").fetchone()
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    with path.open("r+b") as file:
        file.seek((page - 1) * page_bytes)
        file.write(os.urandom(page_bytes))
    assert levels(about_database(tmp_path, [])) == {"database": "FAIL", "containers": "ok", "other servers": "ok"}
    path.write_bytes(b"this is no database" * 1000)
    assert levels(about_database(tmp_path, [])) == {"database": "FAIL"}


def test_without_a_database_all_is_well_and_none_is_made(tmp_path: Path) -> None:
    assert levels(about_database(tmp_path, [])) == {"database": "ok", "containers": "ok", "other servers": "ok"}
    assert list(tmp_path.iterdir()) == []


async def test_nothing_is_said_of_containers_where_no_engine_tells(tmp_path: Path) -> None:
    assert levels(about_database(tmp_path, None)) == {"database": "ok"}
    await kept(tmp_path)
    assert levels(about_database(tmp_path, None)) == {"database": "ok"}
    assert (
        not {"containers", "other servers"}
        & levels(doctor.examine(Settings(tmp_path, engine="unix:///nowhere.sock"))).keys()
    )


# ---------------------------------------------------------------------------------------------------------- the machine


def test_too_few_watches_or_files_are_told(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path)
    for watches, instances, level in (
        ("8192", "128", "ok"),
        ("3999", "128", "warn"),
        ("8192", "8", "warn"),
        ("lots", "8", "warn"),
    ):
        (tmp_path / "max_user_watches").write_text(watches)
        (tmp_path / "max_user_instances").write_text(instances)
        assert levels([about_inotify(settings, tmp_path)]) == {"inotify": level}
    assert levels([about_inotify(settings, tmp_path / "none")]) == {"inotify": "warn"}
    assert levels([about_open_files(Settings(data_dir=tmp_path, max_streams=10**9))])["open files"] in {"warn", "ok"}


# ----------------------------------------------------------------------------------------------------------- the server


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    server = ScriptedServer()
    yield server
    server.stop()


def test_an_address_is_free_or_taken_by_a_server_or_by_another_program(server: ScriptedServer) -> None:
    server.hosts.append(
        pb.EngineHost(name="here", availability=pb.EngineHost.AVAILABILITY_UP, capture=pb.EngineHost.CAPTURE_RECORDER)
    )
    assert levels(about_server("127.0.0.1:0")) == {"address": "ok"}
    assert levels(about_server(server.address)) == {"address": "ok", "host here": "ok"}
    with socket.create_server(("127.0.0.1", 0)) as stranger:
        stranger.listen(0)
        [finding] = list(about_server(f"127.0.0.1:{stranger.getsockname()[1]}"))
    assert (finding.level, "no fastlane server responds there" in finding.found) == (doctor.Level.FAIL, True)


async def test_the_address_of_http_is_free_or_taken_by_a_server_or_by_another_program(tmp_path: Path) -> None:
    assert levels([about_http("127.0.0.1:0"), about_http("")]) == {"HTTP address": "ok"}
    harness = HttpHarness(tmp_path)
    await harness.start()
    finding = await asyncio.to_thread(about_http, f"127.0.0.1:{harness.http_port}")
    assert (finding.level, "fastlane answers on" in finding.found) == (doctor.Level.OK, True)
    await harness.rpc.store_can_write(False)
    finding = await asyncio.to_thread(about_http, f"127.0.0.1:{harness.http_port}")
    assert (finding.level, "cannot store jobs" in finding.found) == (doctor.Level.WARN, True)
    await harness.close()
    with socket.create_server(("127.0.0.1", 0)) as stranger:
        stranger.listen(1)
        asked = asyncio.to_thread(about_http, f"127.0.0.1:{stranger.getsockname()[1]}")
        (accepted, _), finding = await asyncio.gather(asyncio.to_thread(_greet, stranger), asked)
        accepted.close()
    assert (finding.level, "no fastlane server responds there" in finding.found) == (doctor.Level.FAIL, True)
    assert "--http-listen off" in finding.advice
    assert about_http("192.0.2.1:10000").level == doctor.Level.FAIL


def _greet(stranger: socket.socket) -> tuple[socket.socket, object]:
    accepted, address = stranger.accept()
    accepted.sendall(b"220 mail.example.com\r\n")
    return accepted, address


def test_an_address_of_another_machine_fails() -> None:
    [finding] = about_server("192.0.2.1:7020")
    assert (finding.level, finding.found) == (
        doctor.Level.FAIL,
        "cannot listen on 192.0.2.1:7020: Cannot assign requested address",
    )


def test_hosts_that_are_down_or_captured_by_attach_are_told(server: ScriptedServer) -> None:
    server.hosts.extend(
        [
            pb.EngineHost(
                name="a",
                availability=pb.EngineHost.AVAILABILITY_UP,
                capture=pb.EngineHost.CAPTURE_ATTACH,
                capture_reason="elsewhere",
            ),
            pb.EngineHost(name="b", availability=pb.EngineHost.AVAILABILITY_DOWN, last_error="no route"),
            pb.EngineHost(name="c", availability=pb.EngineHost.AVAILABILITY_DRAINED, drain_note="new disk"),
            pb.EngineHost(name="d", availability=pb.EngineHost.AVAILABILITY_CIRCUIT_OPEN, last_error="no space"),
        ]
    )
    findings = list(about_server(server.address))
    assert levels(findings) == {"address": "ok", "host a": "warn", "host b": "FAIL", "host c": "warn", "host d": "FAIL"}
    assert findings[3].found == "drained, it takes no executions: new disk"


# ---------------------------------------------------------------------------------------------------------- the command


def examined(data_dir: Path, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    command = [*FASTLANE, "doctor", "--data-dir", str(data_dir), "--listen", "127.0.0.1:0", *arguments]
    return subprocess.run(command, env=environment(None, **more), capture_output=True, text=True, timeout=90)


def test_the_command_fails_where_something_does_and_says_what_to_do(tmp_path: Path) -> None:
    ran = examined(tmp_path / "data", "--engine", "unix:///nowhere.sock")
    assert (ran.returncode, ran.stderr) == (1, "")
    first, advice, *_ = ran.stdout.splitlines()
    why = "no engine answers at unix:///nowhere.sock: No such file or directory"
    assert first == f"FAIL  engine          does not respond: {why}"
    assert advice.strip().startswith("→ start it, set its address with --engine")
    ran = examined(tmp_path / "data", "--engine", "unix:///nowhere.sock", "-o", "json")
    findings = [json.loads(line) for line in ran.stdout.splitlines()]
    assert (ran.returncode, findings[0]["check"], findings[0]["level"]) == (1, "engine", "FAIL")
    assert all(set(finding) == {"check", "level", "found", "advice"} for finding in findings)


def test_settings_that_cannot_be_are_wrong_use(tmp_path: Path) -> None:
    ran = examined(tmp_path, FASTLANE_MAX_RUNNING="none")
    assert (ran.returncode, ran.stdout) == (2, "")
    assert ran.stderr.startswith("fastlane: max_running in environment variable FASTLANE_MAX_RUNNING is 'none'")


# -------------------------------------------------------------------------------------------------------- a real engine


@pytest.mark.engine
def test_a_real_engine_is_well(tmp_path: Path) -> None:
    ran = examined(tmp_path / "data", "--engine", engine_address(), "-o", "json")
    assert ran.returncode == 0, ran.stdout
    found = {finding["check"]: finding for finding in map(json.loads, ran.stdout.splitlines())}
    assert {
        found[check]["level"] for check in ("engine", "cgroups", "clock", "data directory", "database", "address")
    } == {"ok"}


@pytest.mark.engine
@by_attach
def test_an_orphan_on_a_real_engine_is_found(harness: EngineHarness, tmp_path: Path) -> None:
    going = harness.claim("sleep 60")
    name = f"fastlane-{going.execution.id}"
    engine = harness.engine
    labels = {"fastlane.instance": harness.store.instance, "fastlane.execution": going.execution.id}
    engine.create(name, {"Image": harness.image, "Cmd": ["sleep", "60"], "Labels": labels})

    def containers() -> dict[str, object]:
        ran = examined(tmp_path, "--engine", engine_address(), "-o", "json")
        return next(finding for finding in map(json.loads, ran.stdout.splitlines()) if finding["check"] == "containers")

    assert containers()["level"] == "ok"
    harness.store.finish(
        going.execution.id, state=State.FAILED, outcome=Outcome(Reason.REFUSED_BY_ENGINE), logs=[]
    ).result()
    found = containers()
    assert (found["level"], found["found"]) == ("warn", f"1 of executions that have ended: {name}")
