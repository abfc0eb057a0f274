"""A backup taken of a server at work, by the commands of docs/operations.md, and what a server restored from it says;
tars, damage, and backups that are none."""

import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import docker
import pytest

from fastlane_grpc.client import Client, CursorRefused, NotFound
from fastlane_grpc.v1 import fastlane_pb2 as pb
from tests.commands import FASTLANE
from tests.new_database import make_database
from tests.pages import DocPage, replaced
from tests.reading import Reader
from tests.serving import Server, clear, serving, serving_on
from tests.tools import ROOT

pytestmark = pytest.mark.engine

TICKS = "echo begin; until [ -e /tmp/go ]; do sleep 0.02; done; seq 1 5000"
# Of an execution that ends by itself while the copy is taken: whether it is in there does not matter.
BUSY = 30


@pytest.fixture
def restored(tmp_path: Path, sdk: docker.DockerClient) -> Iterator[Path]:
    """Where the backup is restored."""
    yield tmp_path / "restored"
    clear(sdk, tmp_path / "data")


def fastlane(*words: str, **more: Any) -> "subprocess.CompletedProcess[bytes]":
    return subprocess.run([*FASTLANE, *words], capture_output=True, check=False, timeout=60, **more)


def back_up(server: Server, data_dir: Path, image: str) -> None:
    """As the page says, beside `data_dir`."""
    [block] = [
        block
        for block in DocPage(ROOT / "docs" / "operations.md").blocks()
        if block.language == "sh" and "fastlane backup" in block.text
    ]
    script = replaced(block.script(data_dir), {"/var/lib/fastlane": str(data_dir), "busybox": image})
    environment = os.environ | {
        "FASTLANE_ADDRESS": server.address,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    subprocess.run(
        ["bash", "-euc", script],
        cwd=data_dir.parent,
        env=environment,
        check=True,
        stdout=subprocess.DEVNULL,
        timeout=60,
    )


def test_a_restored_server_goes_on_from_the_moment_of_the_backup(
    sdk: docker.DockerClient, image: str, tmp_path: Path, restored: Path
) -> None:
    first = Server(tmp_path / "data", capture="recorder")
    try:
        with Client(first.address) as client:
            ended = Reader(client, client.enqueue("backup", image, args=["seq", "1", "1000"]).execution.id)
            assert ended.end().exit_status == 0
            running_id = client.enqueue("backup", image, args=["sh", "-c", TICKS]).execution.id
            running = Reader(client, running_id)
            running.wait_for_output(b"begin\n")
            for _ in range(BUSY):
                client.enqueue("busy", image, args=["true"])
            back_up(first, tmp_path / "data", image)
            later = client.enqueue("backup", image, "true")
            sdk.containers.get(client.execution(running_id).container_id).exec_run("touch /tmp/go")
            assert running.end().exit_status == 0
            assert Reader(client, later.execution.id).end().exit_status == 0
            tail = client.tail(running_id)
            *_, cursor = [tail.cursor for _ in tail]
    finally:
        first.stop()
    assert fastlane("restore", str(tmp_path / "monday"), "--data-dir", str(restored), "--yes").returncode == 0
    second = Server(restored, capture="recorder")
    try:
        with Client(second.address) as client:
            again = Reader(client, ended.execution_id)
            assert (again.end().exit_status, again.stdout) == (0, ended.stdout)
            with pytest.raises(NotFound):
                client.job(later.id)
            # Its container ended and was removed since; nobody could say from this copy how.
            lost = Reader(client, running_id)
            assert lost.end().state == pb.STATE_LOST
            assert lost.execution().outcome.reason == pb.REASON_CONTAINER_GONE
            assert (lost.stdout, len(lost.gaps)) == (b"begin\n", 2)
            with pytest.raises(CursorRefused, match="ends before"):
                Reader(client, running_id, cursor=cursor).end()
    finally:
        second.stop()


def test_a_restored_server_starts_no_job_before_its_hosts_are_resumed(
    sdk: docker.DockerClient, image: str, tmp_path: Path, restored: Path
) -> None:
    with serving(tmp_path / "data", engine="unix:///nowhere.sock") as first, Client(first.address) as client:
        waiting = client.enqueue("backup", image, args=["echo", "once"]).execution.id
        made = fastlane("backup", "-", "--data-dir", str(tmp_path / "data"))
    told = fastlane("restore", "-", "--data-dir", str(restored), "--yes", input=made.stdout)
    assert b"Executions that wait: 1." in told.stderr
    with serving_on(sdk, restored) as second, Client(second.address) as client:
        [host] = client.hosts()
        assert host.drain_note.startswith("restored from a backup of 20")
        assert client.execution(waiting).state == pb.STATE_QUEUED
        client.resume_host(host.name)
        log = Reader(client, waiting)
        assert (log.end().exit_status, log.stdout) == (0, b"once\n")


def test_a_backup_has_what_relays_need(tmp_path: Path) -> None:
    data, restored, day = tmp_path / "data", tmp_path / "restored", "2026-01-02"
    directory = f"logs/{day}/01a2272b-5eaf-7f20-9f74-8eeff0e61866"
    data.mkdir()
    make_database(data / "fastlane.db")
    (data / directory).mkdir(parents=True)
    files = {f"{directory}/relay": b"granted", f"{directory}/relay-pod": b"0123", "relay-key": bytes(32)}
    for name, content in files.items():
        (data / name).write_bytes(content)
    # Made anew by each connection: an old one would tell that everything has arrived.
    (data / directory / "relay-end").touch()
    for target in (str(tmp_path / "b"), str(tmp_path / "b.tar")):
        assert fastlane("backup", target, "--data-dir", str(data)).returncode == 0
        done = fastlane("restore", target, "--data-dir", str(restored), "--yes")
        assert done.returncode == 0, done.stderr
        found = {str(path.relative_to(restored)): path for path in restored.rglob("*") if "relay" in path.name}
        assert {name: path.read_bytes() for name, path in found.items()} == files
        assert stat.S_IMODE(found["relay-key"].stat().st_mode) == 0o600
        shutil.rmtree(restored)
