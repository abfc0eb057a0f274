"""A server as users start it, with a host that is a cluster: the command line, floods, kills, pools and TLS."""

import hashlib
import os
import random
import re
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import pytest

from fastlane_grpc.capture.relay_tokens import RelayTokens
from fastlane_grpc.capture.relayed_record import pod_number
from fastlane_grpc.client import Backoff, Client
from fastlane_grpc.model import new_id
from fastlane_grpc.rpc.relay import SERVICE
from fastlane_grpc.v1 import fastlane_pb2 as pb
from tests.certificates import Authority
from tests.cluster.account import Account
from tests.cluster.control_plane import ADDRESS
from tests.cluster.kit import KIT_IMAGE
from tests.cluster.processes import wait_until
from tests.commands import FASTLANE
from tests.commands_served import SECONDS, Server, environment, fastlane
from tests.counter import Counter, count_me
from tests.engine import engine_address
from tests.loads import FLOOD as FLOOD_OF_BOTH
from tests.loads import SHORT, SLOW, Load, assert_whole
from tests.reading import Reader
from tests.succession import free_address
from tests.tally import tally

if TYPE_CHECKING:
    from tests.cluster.running import Cluster

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(180)]

# The server is killed so many times at random.
ROUNDS = int(os.environ.get("CHAOS_ROUNDS", "3"))
SEED = int(os.environ.get("CHAOS_SEED", "1"))
LINES = 400_000
# Some ten seconds.
SLOW_LINES = "i=0; while [ $i -lt 200 ]; do i=$((i + 1)); printf '%098d\\n' $i; sleep 0.05; done"
ALL_SLOW_LINES = b"".join(b"%098d\n" % number for number in range(1, 201))
FLOOD = f"yes | head -n {LINES} | awk '{{printf \"%098d\\n\", NR}}'; exit 4"
WHOLE = b"".join(b"%098d\n" % number for number in range(1, LINES + 1))


class Harness:
    """Servers over one data directory, with the hosts `here`, a Docker engine, and `pods`, a namespace."""

    def __init__(self, directory: Path, cluster: "Cluster", namespace: str) -> None:
        self.cluster = cluster
        self.namespace = namespace
        self.image = cluster.image
        self.relays = free_address(ADDRESS)
        self.config = directory / "fastlane.toml"
        self._data_dir = directory / "data"
        self._server: Server | None = None

    def settings(self, more: str = "", **of_pods: str) -> None:
        """Write the settings: those of `pods` may be replaced."""
        pods = {
            "name": "pods",
            "kind": "kubernetes",
            "namespace": self.namespace,
            "kubeconfig": str(self.cluster.kubeconfig),
            "kit_image": KIT_IMAGE,
            "relay_address": self.relays,
            **of_pods,
        }
        self.config.write_text(
            "\n".join(
                [
                    f'relay_listen = "{self.relays}"',
                    more,
                    f'[[hosts]]\nname = "here"\nengine = "{engine_address()}"\nmax_running = 2',
                    "[[hosts]]\nmax_running = 8",
                    *(f'{name} = "{value}"' for name, value in pods.items() if value),
                    '[[pools]]\nname = "pods"\npattern = "pod-*"\nhosts = "pods"',
                    '[[pools]]\nname = "both"\npattern = "*"\nhosts = "here,pods"',
                ]
            )
        )

    @property
    def server(self) -> Server:
        if self._server is None:
            if not self.config.exists():
                self.settings("insecure = true")
            self._server = Server(self._data_dir, "--config", str(self.config))
            with self.client() as client:
                wait_until(lambda: all(host.availability == UP for host in client.hosts()), "both hosts are up")
        return self._server

    def client(self) -> Client:
        return Client(self.server.address)

    @contextmanager
    def running(self, script: str) -> Iterator["subprocess.Popen[bytes]"]:
        """A `fastlane run` of a shell's script, on a pod."""
        command = [*FASTLANE, "run", "--verbose", "--task", "pod-x", "--entrypoint", "sh", self.image, "-c", script]
        with subprocess.Popen(
            command, env=environment(self.server.address), stdout=subprocess.PIPE, stderr=subprocess.PIPE
        ) as process:
            try:
                yield process
            finally:
                process.kill()

    def log(self) -> str:
        return Path(f"{self._data_dir}.log").read_text()

    def kill(self) -> None:
        """Kill the server. The next one is started when it is asked for."""
        self.server.end(signal.SIGKILL)
        self._server = None

    def close(self) -> None:
        if self._server:
            self._server.end(signal.SIGTERM)


UP = pb.EngineHost.AVAILABILITY_UP


@pytest.fixture
def harness(tmp_path: Path, own_cluster: "Cluster", namespace: str) -> Iterator[Harness]:
    harness = Harness(tmp_path, own_cluster, namespace)
    yield harness
    harness.close()


def test_a_run_on_a_pod_has_the_output_and_exit_status_of_its_job(harness: Harness) -> None:
    with harness.running("echo hello; echo oh >&2; printf 'no newline'; exit 3") as process:
        out, err = process.communicate(timeout=SECONDS)
    assert (process.returncode, out) == (3, b"hello\nno newline")
    assert b"oh" in err.splitlines(), err


def test_output_of_a_pod_is_live_and_a_stop_lets_it_say_its_last_words(harness: Harness) -> None:
    with harness.running("trap 'echo bye; exit 7' TERM; echo up; while :; do sleep 0.1; done") as process:
        assert process.stdout
        assert process.stderr
        job_id = process.stderr.readline().decode().split()[2].rstrip(",")
        assert process.stdout.readline() == b"up\n"
        assert fastlane(harness.server, "stop", "--grace", "60s", job_id).returncode == 0
        out, err = process.communicate(timeout=SECONDS)
    assert (process.returncode, out) == (130, b"bye\n"), err


def test_a_server_killed_in_a_flood_of_a_pod_loses_no_byte(harness: Harness) -> None:
    with harness.running(FLOOD) as process:
        assert process.stdout
        out = process.stdout.readline()
        for _ in range(3):
            harness.server.end(signal.SIGKILL)
            harness.server.start()
            out += process.stdout.read(4_000_000)
        out += process.stdout.read()
        assert process.wait(SECONDS) == 4
    # Not compared by pytest, which would show where they differ for minutes.
    assert hashlib.sha256(out).digest() == hashlib.sha256(WHOLE).digest(), f"{len(out)} of {len(WHOLE)} bytes"


@pytest.mark.slow
@pytest.mark.timeout(180 + 60 * ROUNDS)
def test_a_server_killed_at_random_runs_each_pod_once_and_loses_no_byte(harness: Harness, tmp_path: Path) -> None:
    chance, loads, jobs = random.Random(SEED), (FLOOD_OF_BOTH, SLOW, SHORT), list[tuple[Load, Reader]]()
    with (
        closing(Counter(tmp_path / "counts")) as counter,
        Client(harness.server.address, backoff=Backoff(0.05, 0.5)) as client,
    ):
        for number in range(ROUNDS):
            for load in loads:
                # Each says that it runs, where only this test reads it.
                script = f"{count_me(f'run-{len(jobs)}', ADDRESS)}; {load.script}"
                job = client.enqueue("pod-a", harness.image, args=[script], entrypoint=["sh", "-c"])
                jobs.append((load, Reader(client, job.execution.id)))
            threading.Event().wait(chance.uniform(0.0, 4.0))
            harness.server.end(signal.SIGKILL)
            tally()
            harness.server.start()
            # Jobs of the last rounds are still in every state. Those before them end now, or never will.
            for load, reader in jobs[: max(0, number - 3) * len(loads)][-len(loads) :]:
                assert_whole(load, reader)
        for load, reader in jobs:
            assert_whole(load, reader)
        assert counter.counts() == {f"run-{number}": 1 for number in range(len(jobs))}
    wait_until(lambda: not harness.cluster.api().list_namespaced_pod(harness.namespace).items, "all pods are removed")


def test_one_queue_has_an_engine_and_a_cluster_behind_it(harness: Harness) -> None:
    with harness.client() as client:
        words = ["echo $0; exit 5", "told"]
        tasks = [*["pod-a"] * 3, *["any"] * 8]
        jobs = [client.enqueue(task, harness.image, args=words, entrypoint=["sh", "-c"]) for task in tasks]
        ends = [list(client.tail(job.execution.id))[-1] for job in jobs]
        hosts = [client.execution(job.execution.id).host for job in jobs]
        kinds = {host.name: (host.kind, host.capture, host.address[:5]) for host in client.hosts()}
    assert [end.exit_status for end in ends] == [5] * 11
    assert hosts[:3] == ["pods"] * 3
    assert set(hosts[3:]) == {"here", "pods"}
    assert kinds["pods"] == (pb.EngineHost.KIND_KUBERNETES, pb.EngineHost.CAPTURE_RELAY, "https")
    assert kinds["here"][0] == pb.EngineHost.KIND_DOCKER
    told = fastlane(harness.server, "hosts").stdout.decode()
    nodes = len(harness.cluster.nodes)
    row = rf"^pods +up .* kubernetes +{nodes} of {nodes} ready +v1\.\S+ +relay +https://"
    assert re.search(row, told, re.MULTILINE), told


def test_a_server_needs_the_role_of_the_manifests_and_no_other_right(
    harness: Harness, tmp_path: Path, own_cluster: "Cluster"
) -> None:
    account = Account(tmp_path, own_cluster, harness.namespace)
    # Nor do its pods have more than a namespace of that level allows.
    level = {"metadata": {"labels": {"pod-security.kubernetes.io/enforce": "baseline"}}}
    own_cluster.api().patch_namespace(harness.namespace, level)
    harness.settings("insecure = true", kubeconfig=str(account.kubeconfig))
    with harness.running("trap 'echo bye; exit 7' TERM; echo up; while :; do sleep 0.1; done") as process:
        assert process.stdout
        assert process.stdout.readline() == b"up\n"
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=SECONDS)
    assert (process.returncode, out) == (130, b"bye\n"), err
    wait_until(lambda: not own_cluster.api().list_namespaced_pod(harness.namespace).items, "the pod is removed")


def test_a_host_without_relays_reads_the_log_of_the_kubelet(harness: Harness, tmp_path: Path) -> None:
    # No relay would reach the server: it needs no TLS for them, and no kit.
    plain = {"capture": "kubelet", "kit_image": "", "relay_address": ""}
    harness.settings(**plain)
    with harness.running("echo hello; echo oh >&2; sleep 2; printf 'no newline'; exit 3") as process:
        assert process.stdout
        first = process.stdout.readline() + process.stdout.readline()
        out, err = process.communicate(timeout=SECONDS)
    assert (process.returncode, out) == (3, b"no newline"), err
    # The node does not tell the sources apart.
    assert sorted(first.splitlines()) == [b"hello", b"oh"]
    assert b"output captured by kubelet" in err
    told = fastlane(harness.server, "hosts").stdout.decode()
    assert re.search(r"^pods +up .* kubernetes .* v1\.\S+ +kubelet +https://", told, re.MULTILINE), told
    command = [*FASTLANE, "doctor", "--config", str(harness.config), "--data-dir", str(tmp_path / "d")]
    told = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=SECONDS).stdout
    assert re.search(r"warn +capture of pods +.*log of the kubelet", told), told
    assert "relays of pods" not in told


def test_what_only_an_engine_has_is_refused_before_a_job_is_queued(harness: Harness) -> None:
    refused = fastlane(harness.server, "run", "--task", "pod-a", "--network", "builds", harness.image, "true")
    assert refused.returncode == 1
    assert b"is of a Docker engine" in refused.stderr
    assert b"on host 'pods'" in refused.stderr


def with_tls(harness: Harness, directory: Path, authority: Authority, trusted: Authority) -> None:
    """Write settings with a certificate for pods, in one file with its key, and with a secret of the operator."""
    pair = authority.sign("server", names=f"DNS:localhost,IP:127.0.0.1,IP:{ADDRESS}")
    both = directory / "both.pem"
    both.write_bytes(pair.cert.read_bytes() + pair.key.read_bytes())
    harness.settings(f'tls_cert = "{both}"\ntls_key = "{both}"\nrelay_ca = "{trusted.cert}"')
    word = directory / "word"
    word.write_text("open sesame")
    with harness.config.open("a") as file:
        file.write(f'\n[[secrets]]\nname = "cave"\ntasks = "*"\nfile = "{word}"\n')


def test_a_relay_speaks_tls_and_brings_a_secret_that_no_log_shows(
    harness: Harness, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority = Authority(tmp_path)
    with_tls(harness, tmp_path, authority, authority)
    monkeypatch.setenv("FASTLANE_TLS_CA", str(authority.cert))
    server = Server(tmp_path / "data", "--config", str(harness.config))
    try:
        with Client(server.address, tls_ca=authority.cert) as client:
            script = 'if [ "$WORD" = "open sesame" ]; then echo right; fi; echo "$WORD"; exit 5'
            job = client.enqueue(
                "pod-a", harness.image, args=[script], entrypoint=["sh", "-c"], secret_envs={"WORD": "cave"}
            )
            reader = Reader(client, job.execution.id)
            assert (reader.end().exit_status, reader.stdout) == (5, b"right\n***\n")
    finally:
        server.end(signal.SIGTERM)
    assert "in the clear" not in harness.log()


def test_a_relay_refuses_a_server_of_another_authority(
    harness: Harness, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority, other = Authority(tmp_path), Authority(tmp_path, "other")
    with_tls(harness, tmp_path, authority, other)
    monkeypatch.setenv("FASTLANE_TLS_CA", str(authority.cert))
    server = Server(tmp_path / "data", "--config", str(harness.config))
    try:
        with Client(server.address, tls_ca=authority.cert) as client:
            job = client.enqueue("pod-a", harness.image, args=["echo told"], entrypoint=["sh", "-c"])
            api, pod = harness.cluster.api(), f"fastlane-{job.execution.id}"
            wait_until(lambda: "unknown authority" in relay_log(api, pod, harness.namespace), "the relay says why")
            assert client.execution(job.execution.id).state == pb.STATE_PREPARING
            # Nothing was granted, so a stop needs no grace, and is certain.
            client.stop(job.id, grace=3600)
            assert list(client.tail(job.execution.id))[-1].state == pb.STATE_STOPPED
            assert "before it was started" in client.execution(job.execution.id).outcome.detail
    finally:
        server.end(signal.SIGTERM)


def relay_log(api: Any, pod: str, namespace: str) -> str:
    """Return what the relay of a pod printed, by the log of the node."""
    from kubernetes.client import ApiException

    try:
        return str(api.read_namespaced_pod_log(pod, namespace, container="relay"))
    except ApiException:
        return ""


def test_a_log_says_that_a_relay_does_not_reach_the_server(harness: Harness) -> None:
    harness.settings("insecure = true", relay_address=free_address(ADDRESS))
    with harness.client() as client:
        job = client.enqueue("pod-a", harness.image, args=["echo told"], entrypoint=["sh", "-c"])
        reader = Reader(client, job.execution.id)
        reader.wait_for(lambda: "its relay has not reached the server" in reader.system)
        client.stop(job.id, grace=3600)
        assert reader.end().state == pb.STATE_STOPPED


def waiting_pod(api: Any, pod: str, namespace: str, *, after: str = "") -> str:
    """Return the uid of a pod whose container of the job runs; `after`: of another pod than this one."""
    from kubernetes.client import ApiException

    found: list[str] = []

    def runs() -> bool:
        try:
            its = api.read_namespaced_pod(pod, namespace)
        except ApiException:
            return False
        if its.metadata.uid != after and any(each.state.running for each in its.status.container_statuses or ()):
            found.append(str(its.metadata.uid))
        return bool(found)

    wait_until(runs, "the container of the job is started")
    return found[0]


def test_a_pod_that_waits_for_its_grant_is_made_anew_when_somebody_deletes_it(harness: Harness) -> None:
    # No relay reaches the server.
    harness.settings("insecure = true", relay_address=free_address(ADDRESS))
    with harness.client() as client:
        job = client.enqueue("pod-a", harness.image, args=["echo told"], entrypoint=["sh", "-c"])
        api, pod = harness.cluster.api(), f"fastlane-{job.execution.id}"
        uid = waiting_pod(api, pod, harness.namespace)
        assert client.execution(job.execution.id).state == pb.STATE_PREPARING
        api.delete_namespaced_pod(pod, harness.namespace)
        waiting_pod(api, pod, harness.namespace, after=uid)
        # The next server finds the container running, and waits on.
        harness.kill()
    with harness.client() as client:
        assert client.execution(job.execution.id).state == pb.STATE_PREPARING
        client.stop(job.id, grace=3600)
        assert list(client.tail(job.execution.id))[-1].state == pb.STATE_STOPPED
        assert "before it was started" in client.execution(job.execution.id).outcome.detail


def test_no_byte_reaches_the_record_of_an_execution_that_has_ended(harness: Harness) -> None:
    with harness.client() as client:
        job = client.enqueue("pod-a", harness.image, args=["echo told"], entrypoint=["sh", "-c"])
        assert list(client.tail(job.execution.id))[-1].exit_status == 0
        data_dir = harness.server.data_dir
        [directory] = data_dir.glob(f"logs/*/{job.execution.id}")
        token = RelayTokens.kept_in(data_dir).token(job.execution.id, pod_number(directory))
        before = (directory / "log").read_bytes()
        for execution_id in (job.execution.id, new_id(), "../..", ""):
            metadata = (("fastlane-execution", execution_id), ("fastlane-token", token))
            with grpc.insecure_channel(harness.relays) as channel:
                call = channel.stream_stream(f"/{SERVICE}/Copy")(iter([bytes(8) + b"a piece"]), metadata=metadata)
                with pytest.raises(grpc.RpcError) as refused:
                    next(call)
                assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED
        assert (directory / "log").read_bytes() == before


@pytest.mark.parametrize(
    ("capture", "sources"),
    [("relay", {pb.SOURCE_STDOUT, pb.SOURCE_STDERR}), ("kubelet", {pb.SOURCE_STDOUT})],
    ids=["relay", "kubelet"],
)
def test_a_pod_of_a_host_that_was_removed_is_lost_with_a_gap_after_what_came(
    harness: Harness, capture: str, sources: set[int]
) -> None:
    harness.settings("insecure = true", capture=capture)
    with harness.client() as client:
        job = client.enqueue("pod-a", harness.image, args=["echo first; sleep 1000"], entrypoint=["sh", "-c"])
        reader = Reader(client, job.execution.id)
        reader.wait_for_output(b"first\n")
        harness.server.end(signal.SIGTERM)
        harness.config.write_text(f'[[hosts]]\nname = "here"\nengine = "{engine_address()}"\n')
        harness.server.start()
        assert reader.end().state == pb.STATE_LOST
        assert reader.execution().outcome.reason == pb.REASON_HOST_GONE
        assert reader.stdout == b"first\n"
        assert {(gap.source, gap.missing_bytes) for gap in reader.gaps} == {(each, None) for each in sources}


def test_executions_end_as_they_began_when_the_capture_of_their_host_is_changed(harness: Harness) -> None:
    relay, kubelet = {"capture": "relay"}, {"capture": "kubelet", "kit_image": "", "relay_address": ""}

    def begun(script: str, wanted: bytes = b"%098d\n" % 1, **more: Any) -> Reader:
        job = client.enqueue("pod-a", harness.image, args=[script], entrypoint=["sh", "-c"], **more)
        reader = Reader(client, job.execution.id)
        reader.wait_for_output(wanted)
        return reader

    def change_to(settings: dict[str, str], number: int) -> None:
        harness.server.end(number)
        harness.settings("insecure = true", **settings)
        harness.server.start()

    harness.settings("insecure = true")
    with harness.client() as client:
        first = begun(f"{SLOW_LINES}; mkdir /kept; echo kept >/kept/it; exit 4", outputs=["/kept"])
        polite = begun("trap 'echo bye; exit 7' TERM; echo up; while :; do sleep 0.1; done", b"up\n")
        change_to(kubelet, signal.SIGTERM)
        second = begun(f"{SLOW_LINES}; exit 5")
        client.stop(polite.execution().job_id, grace=60)
        change_to(relay, signal.SIGKILL)
        third = begun(f"{SLOW_LINES}; exit 6")
        change_to(kubelet, signal.SIGTERM)
        for reader, exit_code, capture in ((first, 4, "relay"), (second, 5, "kubelet"), (third, 6, "relay")):
            assert reader.end().exit_status == exit_code
            assert f"output captured by {capture}" in reader.system
            assert capture == "kubelet" or (reader.stdout, reader.gaps) == (ALL_SLOW_LINES, [])
        # A node may have rotated its log while no server read it: then a gap says so.
        assert second.stdout == ALL_SLOW_LINES or second.gaps
        assert client.execution(first.execution_id).outputs.entries == 2
        assert (polite.end().state, polite.execution().outcome.exit_code) == (pb.STATE_STOPPED, 7)
        assert (polite.stdout, polite.gaps) == (b"up\nbye\n", [])
    wait_until(lambda: not harness.cluster.api().list_namespaced_pod(harness.namespace).items, "all pods are removed")


def test_pods_send_nothing_in_the_clear_unless_that_is_accepted(harness: Harness) -> None:
    harness.settings()
    refused = subprocess.run(
        [*FASTLANE, "server", "--config", harness.config, "--data-dir", harness.config.parent / "other"],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    assert refused.returncode == 1
    assert f"pods would send their output to {harness.relays}, and get secrets of jobs, in the clear" in refused.stderr
    assert "insecure: pods send their output" in (harness.settings("insecure = true"), harness.server, harness.log())[2]


def test_the_doctor_tells_of_a_cluster_what_a_server_would_find(harness: Harness) -> None:
    def examined(first_line: str = "insecure = true") -> str:
        harness.settings(first_line, **replaced)
        command = [*FASTLANE, "doctor", "--config", str(harness.config), "--data-dir", str(harness.config.parent / "d")]
        return subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=SECONDS).stdout

    replaced: dict[str, str] = {}
    told = examined()
    assert re.search(r"ok +cluster of pods +v1\.\S+ at https://", told), told
    assert re.search(rf"ok +rights of pods .*{harness.namespace}", told), told
    assert re.search(rf"ok +pods of pods .*{re.escape(KIT_IMAGE)}", told), told
    assert re.search(r"ok +relays of pods .*in the clear", told), told
    assert re.search(r"FAIL +relays of pods .*in the clear", told := examined("")), told
    replaced = {"namespace": "nowhere"}
    assert re.search(r'FAIL +pods of pods .*namespaces "nowhere" not found', examined())
    assert harness.cluster.control_plane
    replaced = {"kubeconfig": str(harness.cluster.control_plane.user_kubeconfig)}
    assert re.search(r"FAIL +rights of pods +the account may not create pods, delete pods", examined())
    replaced = {"context": "elsewhere"}
    assert re.search(r"FAIL +cluster of pods .*cannot be read.*elsewhere", examined())
