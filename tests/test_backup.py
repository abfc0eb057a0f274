"""A copy taken of a server at work, by the commands of docs/operations.md, and what a server restored from it says."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import docker
import pytest

from fastlane_grpc.client import Client, CursorRefused, NotFound
from fastlane_grpc.v1 import fastlane_pb2 as pb
from tests.pages import DocPage, replaced
from tests.reading import Reader
from tests.serving import Server, clear
from tests.tools import ROOT

pytestmark = pytest.mark.engine

TICKS = "echo begin; until [ -e /tmp/go ]; do sleep 0.02; done; seq 1 5000"
# Of an execution that ends by itself while the copy is taken: whether it is in there does not matter.
BUSY = 30


@pytest.fixture
def restored(tmp_path: Path, sdk: docker.DockerClient) -> Iterator[Path]:
    """Where the copy goes."""
    yield tmp_path / "backup"
    clear(sdk, tmp_path / "data")


def back_up(server: Server, data_dir: Path, image: str) -> None:
    """As the page says, beside `data_dir`."""
    [block] = [
        block
        for block in DocPage(ROOT / "docs" / "operations.md").blocks()
        if block.language == "sh" and "VACUUM INTO" in block.text
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
