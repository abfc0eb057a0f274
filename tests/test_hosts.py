"""One server on two real engines: both have work, each may be killed, hang or go for good, and the other one goes
on."""

import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import docker
import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from fastlane_grpc.client import Backoff, Client
from fastlane_grpc.v1 import fastlane_pb2 as pb
from fastlane_grpc.v1 import fastlane_pb2_grpc as pb_grpc
from tests.own_engine import IMAGE, OwnEngine
from tests.proxy import Proxy
from tests.reading import Reader
from tests.serving import Server

pytestmark = [
    pytest.mark.engine,
    pytest.mark.slow,
    pytest.mark.timeout(300),
    pytest.mark.skipif(
        os.geteuid() != 0 or not shutil.which("dockerd"), reason="starts engines of its own: needs root and dockerd"
    ),
]

UP, DOWN = pb.EngineHost.AVAILABILITY_UP, pb.EngineHost.AVAILABILITY_DOWN
# A second or two of output, and an exit code that says that it came to its end.
WORK = "i=0; while [ $i -lt 20 ]; do i=$((i+1)); echo $i; sleep 0.05; done; seq 1 20000; exit 7"
PRINTED = b"".join(b"%d\n" % number for number in [*range(1, 21), *range(1, 20_001)])
# Until it is told to go on, which nobody does.
LONG = "echo begun; sleep 1000"
# A hung engine is asked every ten seconds, and has five to answer.
SECONDS = 60


@pytest.fixture(scope="module")
def engines() -> Iterator[Mapping[str, OwnEngine]]:
    engines: dict[str, OwnEngine] = {}
    try:
        for name in ("a", "b"):
            engines[name] = OwnEngine("--live-restore")
        yield engines
    finally:
        for engine in engines.values():
            engine.remove()


class HostsHarness:
    """A data directory, the servers over it one after another on hosts as each is told, and a client."""

    def __init__(self, directory: Path, engines: Mapping[str, OwnEngine]) -> None:
        self.directory = directory
        self.engines: Mapping[str, Any] = engines
        self._servers: list[Server] = []
        self._clients: list[Client] = []

    def server(self, *hosts: str, max_running: int = 2, more: str = "") -> None:
        """The next server, with these hosts and no other, each with so many places, and `more` settings."""
        for server in self._servers:
            assert server.stop() == 0
        tables = [
            f'[[hosts]]\nname = "{name}"\nengine = "{self.engines[name].address}"\nmax_running = {max_running}\n'
            for name in hosts
        ]
        file = self.directory / "fastlane.toml"
        file.write_text("\n".join([*tables, more]))
        self._servers = [Server(self.directory / "data", config=str(file))]
        self.client = Client(self._servers[0].address, backoff=Backoff(0.05, 0.2))
        self.channel = grpc.insecure_channel(self._servers[0].address)
        self._clients.append(self.client)

    def hosts(self) -> Mapping[str, pb.EngineHost]:
        return {
            host.name: host for host in pb_grpc.HostServiceStub(self.channel).ListHosts(pb.ListHostsRequest()).hosts
        }

    def until(self, true: Callable[[Mapping[str, pb.EngineHost]], bool]) -> Mapping[str, pb.EngineHost]:
        """The hosts, as soon as that is so of them."""
        until = time.monotonic() + SECONDS
        while not true(hosts := self.hosts()):
            assert time.monotonic() < until, hosts
            threading.Event().wait(0.05)
        return hosts

    def engine_health(self) -> int:
        health: Any = health_pb2_grpc.HealthStub(self.channel)
        return int(health.Check(health_pb2.HealthCheckRequest(service="engine")).status)

    def work(self, count: int, script: str = WORK, task: str = "hosts") -> list[Reader]:
        jobs = [self.client.enqueue(task, IMAGE, args=["sh", "-c", script], network="none") for _ in range(count)]
        return [Reader(self.client, job.execution.id) for job in jobs]

    def host_of(self, reader: Reader) -> str:
        return self.client.execution(reader.execution_id).host

    def settle(self, readers: Sequence[Reader]) -> list[str]:
        """Each has ended as it had to, with every byte; on which hosts."""
        for reader in readers:
            end = reader.end()
            assert (end.exit_status, reader.gaps) == (7, []), (end, reader.system)
            assert reader.stdout == PRINTED, reader.system
        return [self.host_of(reader) for reader in readers]

    def log(self) -> str:
        return Path(f"{self.directory}/data.log").read_text()

    def close(self) -> None:
        for client in self._clients:
            client.close()
        for server in self._servers:
            server.kill()
        for engine in self.engines.values():
            with closing(docker.DockerClient(engine.address)) as sdk:
                for container in sdk.containers.list(all=True, ignore_removed=True):
                    with suppress(docker.errors.APIError):
                        container.remove(force=True)


@pytest.fixture
def harness(tmp_path: Path, engines: Mapping[str, OwnEngine]) -> Iterator[HostsHarness]:
    harness = HostsHarness(tmp_path, engines)
    yield harness
    harness.close()


def test_of_two_engines_one_is_killed_then_the_other_hangs_and_every_job_is_whole(harness: HostsHarness) -> None:
    harness.server("a", "b")
    hosts = harness.until(lambda hosts: all(host.availability == UP for host in hosts.values()))
    assert list(hosts) == ["a", "b"]
    assert [host.address for host in hosts.values()] == [harness.engines[name].address for name in ("a", "b")]
    assert all(
        host.capture == pb.EngineHost.CAPTURE_RECORDER and not host.capture_reason and host.engine_version
        for host in hosts.values()
    )

    readers = harness.work(8)
    for reader in readers[:4]:
        reader.wait_for_output(b"1\n")
    hosts = harness.hosts()
    assert [host.running for host in hosts.values()] == [2, 2]
    readers[-1].wait_for(lambda: bool(readers[-1].changes))
    assert readers[-1].changes[0].waiting is None or readers[-1].changes[0].waiting.detail == "4 of 4 slots in use"

    harness.engines["a"].kill()
    hosts = harness.until(lambda hosts: hosts["a"].availability == DOWN)
    assert (hosts["a"].running, hosts["a"].last_error != "", hosts["a"].last_error_time.seconds > 0) == (2, True, True)
    meanwhile = harness.work(2)
    assert set(harness.settle(meanwhile)) == {"b"}
    assert harness.engine_health() == health_pb2.HealthCheckResponse.SERVING
    harness.engines["a"].start()
    hosts = harness.until(lambda hosts: hosts["a"].availability == UP)
    assert hosts["a"].last_error, "it is kept"
    assert set(harness.settle(readers)) == {"a", "b"}

    readers = harness.work(4)
    for reader in readers:
        reader.wait_for_output(b"1\n")
    harness.engines["b"].freeze()
    meanwhile = harness.work(4)
    hosts = harness.until(lambda hosts: hosts["b"].availability == DOWN)
    assert "timed out" in hosts["b"].last_error
    while_down = harness.work(3)
    assert harness.settle(while_down) == ["a"] * 3
    assert harness.engine_health() == health_pb2.HealthCheckResponse.SERVING
    harness.engines["b"].thaw()
    harness.settle([*readers, *meanwhile])
    harness.until(lambda hosts: all(host.availability == UP and host.running == 0 for host in hosts.values()))
    assert set(harness.settle(harness.work(4))) == {"a", "b"}


def test_two_hosts_that_are_one_engine_are_warned_of_and_run_what_they_have(harness: HostsHarness) -> None:
    proxy = Proxy(harness.directory / "proxy.sock", harness.engines["a"].address.removeprefix("unix://"))
    harness.engines = {**harness.engines, "twin": proxy}
    harness.server("a", "twin")
    harness.until(lambda hosts: all(host.availability == UP for host in hosts.values()))
    assert set(harness.settle(harness.work(6))) == {"a", "twin"}
    assert '"two hosts have the same engine id"' in harness.log()


def test_why_a_job_waits_is_told_when_no_host_is_up(harness: HostsHarness) -> None:
    harness.server("a", "b")
    harness.until(lambda hosts: all(host.availability == UP for host in hosts.values()))
    for engine in harness.engines.values():
        engine.kill()
    harness.until(lambda hosts: all(host.availability == DOWN for host in hosts.values()))
    [reader] = harness.work(1)
    waiting = harness.client.execution(reader.execution_id).waiting
    assert waiting.reason == pb.WAIT_REASON_HOST_DOWN
    assert "host 'a' does not answer" in waiting.detail
    assert "host 'b' does not answer" in waiting.detail
    assert harness.engine_health() == health_pb2.HealthCheckResponse.NOT_SERVING
    harness.engines["b"].start()
    assert harness.settle([reader]) == ["b"]
    harness.engines["a"].start()
    harness.until(lambda hosts: all(host.availability == UP for host in hosts.values()))


def test_a_removed_host_loses_what_ran_with_its_log_and_what_waited_runs_elsewhere(
    harness: HostsHarness,
) -> None:
    harness.server("b", max_running=1)
    [running], [waiting] = harness.work(1, LONG), harness.work(1)
    running.wait_for_output(b"begun\n")
    container_id = harness.client.execution(running.execution_id).container_id
    harness.server("a")
    again = Reader(harness.client, running.execution_id)
    end = again.end()
    assert (end.state, end.exit_status) == (pb.STATE_LOST, 125)
    assert end.outcome is not None
    assert end.outcome.reason == pb.REASON_HOST_GONE
    assert "host 'b'" in end.outcome.detail
    assert (again.stdout, again.gaps) == (b"begun\n", [])
    assert harness.settle([Reader(harness.client, waiting.execution_id)]) == ["a"]
    assert '"lost: its host is not configured any more"' in harness.log()
    with closing(docker.DockerClient(harness.engines["b"].address)) as sdk:
        assert sdk.api.wait(container_id, timeout=30)["StatusCode"] != 0, "what is told to be over is over"
    harness.server("a", "b")
    harness.until(lambda hosts: hosts["b"].availability == UP)
    with closing(docker.DockerClient(harness.engines["b"].address)) as sdk:
        until = time.monotonic() + SECONDS
        while sdk.api.containers(all=True):
            assert time.monotonic() < until, "it was swept away"
            threading.Event().wait(0.05)


def test_pools_and_drained_hosts_say_where_containers_run_and_a_drained_one_ends_what_it_has(
    harness: HostsHarness,
) -> None:
    harness.server("a", "b", more='[[pools]]\nname = "mail"\npattern = "mail*"\nhosts = "a"\n')
    harness.until(lambda hosts: all(host.availability == UP for host in hosts.values()))
    mails, others = harness.work(3, task="mail-x"), harness.work(3, task="other")
    mails[0].wait_for_output(b"1\n")
    drained = harness.client.drain_host("a", "a test")
    assert drained.availability == pb.EngineHost.AVAILABILITY_DRAINED
    assert drained.running > 0
    assert harness.settle(others) == ["b"] * 3
    assert harness.settle(mails[:2]) == ["a"] * 2
    waiting = harness.client.execution(mails[2].execution_id).waiting
    assert (waiting.reason, waiting.detail) == (pb.WAIT_REASON_HOST_DRAINED, "host 'a' is drained: a test")
    assert harness.engine_health() == health_pb2.HealthCheckResponse.SERVING
    harness.client.resume_host("a")
    assert harness.settle(mails) == ["a"] * 3

    harness.engines["b"].kill()
    harness.until(lambda hosts: hosts["b"].availability == DOWN)
    harness.client.drain_host("a")
    harness.until(lambda hosts: harness.engine_health() == health_pb2.HealthCheckResponse.NOT_SERVING)
    harness.client.resume_host("a")
    harness.until(lambda hosts: harness.engine_health() == health_pb2.HealthCheckResponse.SERVING)
    harness.engines["b"].start()
    harness.until(lambda hosts: hosts["b"].availability == UP)
