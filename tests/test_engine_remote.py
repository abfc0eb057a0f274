"""An engine that is reached by TLS or by ssh: it does what a local one does, and one that hangs holds up nobody."""

import os
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import docker.context
import pytest

from fastlane_grpc import config
from fastlane_grpc.client import Client, End
from fastlane_grpc.docker import DockerBackend, Engine
from fastlane_grpc.docker.engine_errors import EngineDown
from fastlane_grpc.doctor import Level, examine
from fastlane_grpc.execution import Step
from fastlane_grpc.model import CaptureMode, Reason, State
from fastlane_grpc.v1 import fastlane_pb2 as pb
from tests.engine import EngineHarness, opened
from tests.own_engine import IMAGE
from tests.remote_engine import SshEngine, TlsEngine, make_certificates, owns_engines
from tests.serving import serving, within

pytestmark = [
    pytest.mark.engine,
    pytest.mark.slow,
    pytest.mark.timeout(120),
    pytest.mark.skipif(not owns_engines(), reason="starts engines of its own: needs root and dockerd"),
]


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TlsEngine]:
    remote = TlsEngine(tmp_path_factory.mktemp("tls"))
    yield remote
    remote.close()


@pytest.fixture(scope="module")
def ssh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SshEngine]:
    with pytest.MonkeyPatch.context() as patch:
        remote = SshEngine(tmp_path_factory.mktemp("ssh"))
        patch.setenv("PATH", f"{remote.server.programs}:{os.environ['PATH']}")
        yield remote
        remote.close()


@pytest.fixture(scope="module", params=["tls", "ssh"])
def remote(request: pytest.FixtureRequest) -> TlsEngine | SshEngine:
    found: TlsEngine | SshEngine = request.getfixturevalue(request.param)
    return found


@pytest.fixture
def harness(tmp_path: Path, remote: TlsEngine | SshEngine) -> Iterator[EngineHarness]:
    with opened(
        tmp_path,
        IMAGE,
        remote.address,
        engine=remote.engine.address,
        capture=CaptureMode.AUTO,
        certificates=remote.certificates,
    ) as harness:
        yield harness
        remote.engine.thaw()


def engine_of(remote: TlsEngine | SshEngine, answer_seconds: float = 30) -> Engine:
    return Engine(remote.address, certificates=remote.certificates, answer_seconds=answer_seconds)


def test_a_job_on_a_remote_engine_has_its_output_and_its_exit_status(harness: EngineHarness) -> None:
    execution = harness.sh("echo err >&2; head -c 1000000 /dev/zero; exit 7", network="none")
    assert (execution.state, execution.outcome and execution.outcome.exit_code) == (State.FAILED, 7)
    output = harness.output(execution.id)
    assert (output.stdout, output.stderr) == (bytes(1_000_000), b"err\n")
    assert "the engine is elsewhere" in harness.host.captures.reason
    refused = harness.run("nosuch", network="none")
    assert refused.outcome is not None
    assert refused.outcome.reason is Reason.COMMAND_NOT_FOUND
    assert not harness.engine.containers(harness.store.instance)


def test_a_job_on_a_remote_engine_is_stopped_and_killed(harness: EngineHarness) -> None:
    going = harness.go("sh -c", "trap '' TERM; echo ready; while :; do sleep 0.1; done", network="none")
    harness.wait_for_output(going.id, b"ready\n")
    harness.stop(going.id, grace=0.2)
    with within(30):
        execution = going.result()
    assert (execution.state, execution.outcome and execution.outcome.exit_code) == (State.STOPPED, 137)


def test_a_request_to_a_remote_engine_that_hangs_ends_in_time(remote: TlsEngine | SshEngine) -> None:
    engine = engine_of(remote, answer_seconds=1)
    assert engine.info().version
    remote.engine.freeze()
    try:
        # By the SDK's client on a connection that was used before, by that on a new one, and by the other client.
        ask: Any
        for ask in (engine.info, Engine.info, lambda: engine.ping(1), lambda: engine.kill("nosuch", "TERM")):
            with within(5), pytest.raises(EngineDown):
                ask() if ask is not Engine.info else ask(engine_of(remote, answer_seconds=1))
    finally:
        remote.engine.thaw()
    assert engine.info().version


def test_a_read_of_events_of_a_remote_engine_is_cut_by_another_thread(remote: TlsEngine | SshEngine) -> None:
    backend = DockerBackend(engine_of(remote), instance="i", host="h", default_pids=1)
    stream = backend.events()
    timer = threading.Timer(0.5, stream.cut)
    timer.start()
    with within(5), suppress(OSError):
        assert list(stream.events()) == []
    timer.join()


def test_a_host_whose_remote_engine_hangs_is_down_until_it_answers(
    harness: EngineHarness, remote: TlsEngine | SshEngine
) -> None:
    going = harness.go("sh -c", "echo ready; sleep 4; exit 3", network="none")
    harness.wait_for_output(going.id, b"ready\n")
    remote.engine.freeze()
    with within(15):
        harness.wait_until(lambda: not harness.host.up)
    remote.engine.thaw()
    harness.wait_until(lambda: harness.host.up)
    execution = going.result()
    assert (execution.state, execution.outcome and execution.outcome.exit_code) == (State.FAILED, 3)
    assert Step.REMOVED in going.steps


def test_a_remote_engine_that_was_killed_is_found_again(harness: EngineHarness, remote: TlsEngine | SshEngine) -> None:
    assert harness.sh("true", network="none").state is State.SUCCEEDED
    remote.engine.kill()
    harness.wait_until(lambda: not harness.host.up)
    remote.engine.start()
    harness.wait_until(lambda: harness.host.up)
    assert harness.sh("exit 3", network="none").state is State.FAILED


def test_no_process_and_no_descriptor_of_a_remote_engine_is_left(remote: TlsEngine | SshEngine) -> None:
    engine = engine_of(remote)
    descriptors = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(2):
        engine.ping(10)
        engine.info()
        stream = DockerBackend(engine, instance="i", host="h", default_pids=1).events()
        stream.cut()
    engine.forget()
    assert len(list(Path("/proc/self/fd").iterdir())) <= descriptors
    assert not [each for each in children() if each == "ssh"]


def children() -> list[str]:
    numbers = Path(f"/proc/self/task/{threading.get_native_id()}/children").read_text().split()
    return [Path(f"/proc/{number}/comm").read_text().strip() for number in numbers]


# -- what is wrong is told


def test_certificates_that_are_missing_or_of_another_authority_are_named(tls: TlsEngine, tmp_path: Path) -> None:
    with pytest.raises(EngineDown, match=f"no engine answers at {tls.address}: there is no certificate {tmp_path}/ca"):
        Engine(tls.address, certificates=tmp_path).info()
    make_certificates(tmp_path / "client", tmp_path / "server")
    with pytest.raises(EngineDown, match="its certificate is not accepted: unable to get local issuer certificate"):
        Engine(tls.address, certificates=tmp_path / "client").info()
    (tmp_path / "client" / "ca.pem").write_text("none")
    with pytest.raises(EngineDown, match="the certificates for it cannot be used"):
        Engine(tls.address, certificates=tmp_path / "client").info()


def test_an_engine_refuses_a_client_without_its_certificate(tls: TlsEngine, tmp_path: Path) -> None:
    shutil.copy(tls.certificates / "ca.pem", tmp_path)
    with pytest.raises(EngineDown, match=r"(?i)certificate required|bad certificate|broken pipe|reset"):
        Engine(tls.address, certificates=tmp_path).info()
    with pytest.raises(Exception, match="Client sent an HTTP request to an HTTPS server"):
        Engine(tls.address).info()


def test_renewed_certificates_need_no_new_engine(tls: TlsEngine, tmp_path: Path) -> None:
    engine = Engine(tls.address, certificates=tmp_path)
    with pytest.raises(EngineDown, match="there is no certificate"):
        engine.info()
    for name in ("ca", "cert", "key"):
        shutil.copy(tls.certificates / f"{name}.pem", tmp_path)
    assert engine.info().version


def test_a_context_of_docker_names_the_engine(tls: TlsEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    certificates = docker.tls.TLSConfig(
        client_cert=(str(tls.certificates / "cert.pem"), str(tls.certificates / "key.pem")),
        ca_cert=str(tls.certificates / "ca.pem"),
        verify=True,
    )
    docker.context.ContextAPI.create_context("far", host=tls.address, tls_cfg=certificates)
    engine = Engine("context://far")
    assert engine.info().version
    assert not engine.local
    with pytest.raises(EngineDown, match="there is no docker context 'near'"):
        Engine("context://near").info()


def test_ssh_that_lets_nobody_in_is_told_in_its_words(ssh: SshEngine, tmp_path: Path) -> None:
    user = ssh.address.replace("root@", "nosuch@")
    with pytest.raises(EngineDown, match=f"no engine answers at {user}: nosuch@127.0.0.1: Permission denied"):
        Engine(user).info()
    with pytest.raises(EngineDown, match="Connection refused"):
        Engine("ssh://127.0.0.1:1").info()


def test_the_doctor_looks_at_a_remote_engine_as_the_server_would(tls: TlsEngine, tmp_path: Path) -> None:
    flags = {"engine": tls.address, "data_dir": str(tmp_path)}
    by_tls = next(examine(config.load(flags | {"engine_cert_dir": str(tls.certificates)}, {}, None)))
    assert (by_tls.check, by_tls.level) == ("engine", Level.OK)
    without = next(examine(config.load(flags, {}, None)))
    assert (without.check, without.level) == ("engine", Level.FAIL)
    assert "Client sent an HTTP request to an HTTPS server" in without.found


# -- a whole server


def test_a_server_runs_jobs_by_tls_with_the_settings_of_docker(
    tls: TlsEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOCKER_HOST", tls.address)
    monkeypatch.setenv("DOCKER_TLS_VERIFY", "1")
    monkeypatch.setenv("DOCKER_CERT_PATH", str(tls.certificates))
    began = time.monotonic()
    with serving(tmp_path / "data") as server, Client(server.address) as client:
        job = client.enqueue("t", IMAGE, "echo by TLS", network="none")
        [end] = [event for event in client.tail(job.execution.id) if isinstance(event, End)]
        assert end.exit_status == 0
        [host] = client.hosts()
        assert (host.address, host.availability) == (tls.address, pb.EngineHost.AVAILABILITY_UP)
    assert time.monotonic() - began < 60
