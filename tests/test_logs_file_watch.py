"""Files are watched by inotify where it is to be had; where others of the same user have it all, readers poll, and
nothing else changes."""

import json
import subprocess
import sys
from pathlib import Path

import docker
import pytest

from fastlane_grpc.client import Client
from fastlane_grpc.v1 import fastlane_pb2 as pb
from tests.reading import Reader
from tests.serving import serving_on

# The limits of a user namespace of its own: what others on this machine have is not touched. `sh` becomes the program
# that follows.
WITHOUT_INSTANCES = [
    "unshare",
    "--user",
    "--map-root-user",
    "sh",
    "-c",
    'echo 0 >/proc/sys/user/max_inotify_instances && exec "$@"',
    "sh",
]

SLOW = "i=0; while [ $i -lt 6 ]; do i=$((i+1)); echo $i; sleep 0.3; done"

# Runs in such a namespace, and moves its limits: prints whether a file could be watched before and after.
_MOVING_LIMITS = """
import asyncio, json, sys
from pathlib import Path
from fastlane_grpc.config import Settings
from fastlane_grpc.doctor.machine import about_inotify
from fastlane_grpc.logs.file_watch import FileWatcher

limit = Path("/proc/sys/user") / sys.argv[1]
file = Path(sys.argv[2])

async def main():
    limit.write_text("0")
    told = asyncio.Event()
    watcher = FileWatcher(asyncio.get_running_loop(), retry_seconds=0.02)
    watch = watcher.watch(file, told.set)
    before = [watch.start_watching() for _ in range(3)] + [watch.active, watch.watched]
    async with asyncio.timeout(10):
        with file.open("a") as writer:
            writer.write("some")
        await told.wait()
    told.clear()
    doctor = about_inotify(Settings(data_dir=file.parent))
    await asyncio.sleep(0.1)
    limit.write_text("100")
    async with asyncio.timeout(10):
        while not watch.watched:
            watch.start_watching()
            await asyncio.sleep(0.01)
        with file.open("a") as writer:
            writer.write("more")
        await told.wait()
    watcher.close()
    print(json.dumps({"before": before, "level": str(doctor.level), "found": doctor.found}))

asyncio.run(main())
"""


@pytest.fixture(autouse=True)
def namespaces() -> None:
    if subprocess.run([*WITHOUT_INSTANCES, "true"], capture_output=True).returncode:
        pytest.skip("no user namespace can be made here")


@pytest.mark.parametrize(
    ("limit", "kind"), [("max_inotify_instances", "instances"), ("max_inotify_watches", "watches")]
)
def test_a_file_that_cannot_be_watched_is_when_it_can_and_one_line_tells(tmp_path: Path, limit: str, kind: str) -> None:
    file = tmp_path / "file"
    file.touch()
    done = subprocess.run(
        ["unshare", "--user", "--map-root-user", sys.executable, "-c", _MOVING_LIMITS, limit, str(file)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    *lines, last = done.stdout.splitlines()
    said = json.loads(last)
    # Told all the same, by a look at its size.
    assert said["before"] == [True, False, False, True, False]
    assert said["level"] == "warn"
    assert f"no {kind} left" in said["found"]
    told = [line for line in lines if "cannot be watched" in line]
    assert len(told) == 1
    assert f"max_user_{kind}" in told[0]


@pytest.mark.engine
@pytest.mark.timeout(120)
def test_a_server_without_inotify_serves_live_streams_of_recorded_output(
    tmp_path: Path, sdk: docker.DockerClient, image: str
) -> None:
    data_dir = tmp_path / "data"
    with serving_on(sdk, data_dir, under=WITHOUT_INSTANCES) as server, Client(server.address) as client:
        reader = Reader(client, client.enqueue("t", image, args=["sh", "-c", SLOW]).execution.id)
        # Live: it has lines while the command prints further ones.
        reader.wait_for_output(b"2\n")
        assert reader.execution().state == pb.STATE_RUNNING
        assert (reader.end().exit_status, reader.stdout) == (0, b"1\n2\n3\n4\n5\n6\n")
        (host,) = client.hosts()
        assert host.capture == pb.EngineHost.CAPTURE_RECORDER
        assert server.log.count("cannot be watched") == 1
    # What could not be tried out is tried out by the next server.
    assert not (data_dir / "recorder" / "works-with-local").exists()
    with serving_on(sdk, data_dir) as server, Client(server.address) as client:
        assert Reader(client, client.enqueue("t", image, "true").execution.id).end().exit_status == 0
        assert "cannot be watched" not in server.log.rpartition("stopping")[2]
    assert (data_dir / "recorder" / "works-with-local").exists()
