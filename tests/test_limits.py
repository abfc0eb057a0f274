"""How much runs at a time, what belongs to whom where two servers share an engine, and what happens without one."""

import os
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import docker
import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from fastlane_grpc.client import Client
from fastlane_grpc.v1 import fastlane_pb2 as pb
from tests.engine import engine_address
from tests.proxy import Proxy
from tests.reading import Reader, run
from tests.serving import Server, clear, containers, instance, serving, serving_on

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.timeout(300)]

MAX_RUNNING = 4
# Twenty rounds of full slots; `make chaos` asks for more.
JOBS = int(os.environ.get("LIMIT_JOBS", "80"))

SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING


class Witness:
    """Listens to the engine and counts the containers of one instance: those that are there, and those that run."""

    def __init__(self, sdk: docker.DockerClient, instance_id: str) -> None:
        filters = {"type": "container", "label": f"fastlane.instance={instance_id}"}
        self._events = sdk.api.events(since=int(time.time()), filters=filters, decode=True)
        self._changed = threading.Condition()
        self._there: set[str] = set()
        self._running: set[str] = set()
        self.most_there = 0
        self.most_running = 0
        self.starts: Counter[str] = Counter()
        self.removed = 0
        threading.Thread(target=self._listen, daemon=True).start()

    def wait_for_removed(self, count: int) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: self.removed >= count, 60), f"{self.removed} of {count} are removed"

    def close(self) -> None:
        self._events.close()

    def _listen(self) -> None:
        for event in self._events:
            with self._changed:
                self._heard(event)
                self._changed.notify_all()

    def _heard(self, event: Mapping[str, Any]) -> None:
        container_id = event["Actor"]["ID"]
        match event["Action"]:
            case "create":
                self._there.add(container_id)
            case "start":
                self._running.add(container_id)
                self.starts[event["Actor"]["Attributes"]["fastlane.execution"]] += 1
            case "die":
                self._running.discard(container_id)
            case "destroy":
                self._there.discard(container_id)
                self.removed += 1
        self.most_there = max(self.most_there, len(self._there))
        self.most_running = max(self.most_running, len(self._running))


# -- the limit


def test_the_limit_is_exact_and_used_to_the_full(tmp_path: Path, sdk: docker.DockerClient, image: str) -> None:
    data_dir = tmp_path / "data"
    with serving_on(sdk, data_dir, max_running=MAX_RUNNING) as server, Client(server.address) as client:
        with closing(Witness(sdk, instance(data_dir))) as witness:
            enqueued = [client.enqueue("quick", image, "echo done", network="none").execution.id for _ in range(JOBS)]
            logs = [Reader(client, execution_id) for execution_id in enqueued]
            for log in logs:
                assert (log.end().exit_status, log.stdout) == (0, b"done\n")
            witness.wait_for_removed(JOBS)
        assert witness.most_there == MAX_RUNNING
        # On a busy machine the engine starts such quick ones so slowly that it never has all of them running at once.
        assert witness.most_running <= MAX_RUNNING
        assert witness.starts == dict.fromkeys(enqueued, 1)
        claim_times = [log.execution().times.claim_time.ToNanoseconds() for log in logs]
        assert claim_times == sorted(claim_times), "of one task, first in is first out"


# -- two servers on one engine


def test_two_servers_on_one_engine_leave_each_others_containers_alone(
    tmp_path: Path, sdk: docker.DockerClient, image: str
) -> None:
    until_told = "echo begin; until [ -e /tmp/go ]; do sleep 0.05; done; echo told"
    one_dir, other_dir = tmp_path / "one", tmp_path / "other"
    # Killed between the end of its first job and the removal of that container.
    one = Server(one_dir, kill_at="finished")
    with serving_on(sdk, other_dir) as other, Client(other.address) as its_client, Client(one.address) as client:
        theirs = Reader(its_client, its_client.enqueue("theirs", image, args=["sh", "-c", until_told]).execution.id)
        ours = client.enqueue("ours", image, args=["sh", "-c", until_told]).execution.id
        Reader(client, ours).wait_for_state(pb.STATE_RUNNING)
        theirs.wait_for_state(pb.STATE_RUNNING)
        client.enqueue("ours", image, "true")
        one.wait()
        (their_container,) = containers(sdk, other_dir)
        assert len(containers(sdk, one_dir)) == 2
        with (
            closing(Witness(sdk, instance(one_dir))) as witness,
            serving(one_dir) as next_one,
            Client(next_one.address) as next_client,
        ):
            # It sweeps away what it left, and goes on with what runs. What is the other's it does not touch.
            witness.wait_for_removed(1)
            assert [*containers(sdk, one_dir).values()] == [ours]
            assert [*containers(sdk, other_dir)] == [their_container]
            for container_id in [*containers(sdk, one_dir), their_container]:
                sdk.containers.get(container_id).exec_run("touch /tmp/go")
            assert Reader(next_client, ours).end().exit_status == 0
            assert (theirs.end().exit_status, theirs.stdout, theirs.gaps) == (0, b"begin\ntold\n", [])
    clear(sdk, one_dir)


# -- no engine


@contextmanager
def health(server: Server, name: str) -> Iterator[Iterator[int]]:
    """What health says of `name`: now, and whenever it changes."""
    with grpc.insecure_channel(server.address) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)  # Its type knows of Check alone.
        call = stub.Watch(health_pb2.HealthCheckRequest(service=name), timeout=60)
        yield (answer.status for answer in call)
        call.cancel()


def test_without_an_engine_jobs_wait_and_say_for_what(tmp_path: Path, sdk: docker.DockerClient, image: str) -> None:
    path = tmp_path / "engine.sock"
    with serving_on(sdk, tmp_path / "data", engine=f"unix://{path}") as server, Client(server.address) as client:
        with health(server, "engine") as engine, health(server, "server") as itself, health(server, "") as whole:
            assert [next(engine), next(itself), next(whole)] == [NOT_SERVING, SERVING, SERVING]
            log = Reader(client, client.enqueue("waits", image, "echo ran").execution.id)
            log.wait_for_state(pb.STATE_QUEUED)
            waiting = log.execution().waiting
            assert (waiting.reason, log.changes[0].waiting) == (pb.WAIT_REASON_HOST_DOWN, waiting)
            assert "local" in waiting.detail
            # One that is not wanted any more need not wait for the engine.
            other = client.enqueue("waits", image, "echo ran")
            assert client.stop(other.id).state == pb.STATE_STOPPED
            proxy = Proxy(path, engine_address().removeprefix("unix://"))
            try:
                assert (log.end().exit_status, log.stdout) == (0, b"ran\n")
                assert next(engine) == SERVING
                assert log.states[-1] == pb.STATE_SUCCEEDED
                # It goes away, and with it nothing but new containers.
                proxy.shut()
                assert next(engine) == NOT_SERVING
                again = Reader(client, log.execution_id)
                assert (again.end(), again.stdout) == (log.end(), b"ran\n")
                late = Reader(client, client.enqueue("waits", image, "echo late").execution.id)
                late.wait_for_state(pb.STATE_QUEUED)
                assert late.execution().waiting.reason == pb.WAIT_REASON_HOST_DOWN
                proxy.open()
                assert (late.end().exit_status, late.stdout) == (0, b"late\n")
                assert run(client, image, "true").end().exit_status == 0
            finally:
                proxy.shut()


def test_a_second_server_on_the_directory_is_refused_and_the_first_goes_on(
    tmp_path: Path, sdk: docker.DockerClient, image: str
) -> None:
    data_dir = tmp_path / "data"
    with serving_on(sdk, data_dir) as server, Client(server.address) as client:
        log = Reader(
            client, client.enqueue("first", image, args=["sh", "-c", "echo begin; sleep 1; echo end"]).execution.id
        )
        log.wait_for_output(b"begin\n")
        with pytest.raises(RuntimeError, match=f"another server .process {server.process.pid}. uses"):
            Server(data_dir)
        assert (log.end().exit_status, log.stdout, log.cuts) == (0, b"begin\nend\n", 0)
