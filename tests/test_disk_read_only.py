"""A disk that fails, and that the kernel makes read-only while a server, its containers and readers use it."""

import os
from contextlib import suppress
from pathlib import Path

import docker
import pytest

from fastlane_grpc.client import Client, ServerUnavailable
from fastlane_grpc.machine.data_directory import write_error
from fastlane_grpc.v1 import fastlane_pb2 as pb
from tests.failing_disk import failing_disk
from tests.reading import Reader
from tests.recorder_program import eventually
from tests.serving import Server, containers, serving_on
from tests.test_limits import NOT_SERVING, SERVING, health

READ_ONLY = "Read-only file system"
TALK = "while :; do echo line; sleep 0.1; done"
FINAL = {pb.STATE_SUCCEEDED, pb.STATE_FAILED, pb.STATE_STOPPED, pb.STATE_LOST}

pytestmark = [
    pytest.mark.engine,
    pytest.mark.slow,
    pytest.mark.timeout(240),
    pytest.mark.skipif(os.geteuid() != 0, reason="mounts a file system: needs root"),
]


def test_a_read_only_disk_is_told_and_all_goes_on_after_its_repair(
    tmp_path: Path, sdk: docker.DockerClient, image: str
) -> None:
    with failing_disk(tmp_path) as disk:
        data_dir = disk.path / "data"
        # The server's log has another disk.
        Path(f"{data_dir}.log").symlink_to(tmp_path / "log")
        server = Server(data_dir, max_running=2)
        with Client(server.address) as client, Client(server.address, retry_for=0) as impatient:
            talking, ending = (
                Reader(client, client.enqueue(task, image, args=["sh", "-c", script]).execution.id)
                for task, script in {"talks": TALK, "ends": "echo begun; sleep 2; exit 3"}.items()
            )
            waiting = client.enqueue("waits", image, "echo once")
            talking.wait_for_output(b"line\nline\n")
            ending.wait_for_output(b"begun\n")
            for reader in (talking, ending):
                reader.wait_for_state(pb.STATE_RUNNING)
            with health(server, "server") as states:
                assert next(states) == SERVING
                disk.fail()
                with pytest.raises(ServerUnavailable, match=READ_ONLY):
                    impatient.enqueue("later", image, "true")
                with pytest.raises(ServerUnavailable, match=READ_ONLY):
                    impatient.stop(waiting.id)
                assert next(states) == NOT_SERVING
            assert f'disk I/O error ({READ_ONLY})", "event": "the store cannot write"' in server.log
            # What is stored can be read, containers go on, and nothing new is started.
            assert {job.task_id: job.state for job in client.jobs()} == {
                "talks": pb.STATE_RUNNING,
                "ends": pb.STATE_RUNNING,
                "waits": pb.STATE_QUEUED,
            }
            before = containers(sdk, data_dir)
            assert set(before.values()) == {talking.execution_id, ending.execution_id}
            assert all(each["State"] == "running" for each in sdk.api.containers(all=True, filters={"id": [*before]}))
            # A stop is carried out all the same.
            assert impatient.stop(talking.execution().job_id, grace=0).state == pb.STATE_STOPPING
            eventually(lambda: len(sdk.api.containers(filters={"id": [*before]})) == 1)
            assert server.stop() == 0
            with pytest.raises(RuntimeError, match=rf"{READ_ONLY}; the kernel's log \(dmesg\) says why"):
                Server(data_dir)
            # A container that runs keeps the disk mounted.
            for container_id in before:
                with suppress(docker.errors.APIError):
                    sdk.api.kill(container_id)
            disk.repair()
            with serving_on(sdk, data_dir, max_running=2, listen=server.address) as server:
                for reader in (talking, ending, once := Reader(client, waiting.execution.id)):
                    assert reader.end().state in FINAL
                assert once.stdout == b"once\n"
                assert all(job.executions == 1 for job in client.jobs())
                for reader in (talking, ending):
                    assert reader.gaps, "that there was more is told"
                    again = Reader(client, reader.execution_id)
                    again.end()
                    assert again.stdout == reader.stdout
                assert client.enqueue("new", image, "true").state == pb.STATE_QUEUED


def test_why_a_directory_cannot_be_written_is_told(tmp_path: Path) -> None:
    with failing_disk(tmp_path) as disk:
        assert write_error(disk.path) == ""
        disk.fail()
        assert write_error(disk.path) == READ_ONLY
        disk.repair()
        assert write_error(disk.path) == ""
        assert {each.name for each in disk.path.iterdir()} == {"lost+found"}
    assert write_error(tmp_path / "nowhere") == "No such file or directory"
