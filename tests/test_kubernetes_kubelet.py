"""Logs of pods without a relay, by the log that the kubelet keeps: whole, or with a gap where that is not certain."""

import re
from collections.abc import Iterator
from datetime import timedelta
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from fastlane_grpc.capture import kubelet
from fastlane_grpc.capture.capture import Captures
from fastlane_grpc.capture.kubelet import KubeletCaptures
from fastlane_grpc.config import SecretSettings
from fastlane_grpc.execution import Step
from fastlane_grpc.inputs import InputFiles
from fastlane_grpc.model import Cause, PullPolicy, Reason, Source, State, Stdin, Ulimit
from fastlane_grpc.runner import HostDown, LeaveCommand
from fastlane_grpc.secrets import NamedSecrets
from tests.cluster.account import Account, of_kind
from tests.cluster.harness import ClusterHarness
from tests.cluster.processes import wait_until
from tests.cluster.relayed import SH, outcome
from tests.engine import Going, Killed

if TYPE_CHECKING:
    from fastlane_grpc.kubernetes import KubernetesBackend
    from tests.cluster.running import Cluster

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(180)]

# A kubelet looks every ten seconds, by its defaults, whether a log has more than ten megabytes, and rotates it then.
# The rest is not rotated away: it is less.
FLOOD_LINES, REST_LINES = 300_000, 20_000
FLOOD_AND_REST = f"""yes | awk '
    {{ printf "%098d\\n", NR }}
    NR == {FLOOD_LINES} {{ fflush(); system("sleep 12") }}
    NR == {FLOOD_LINES + REST_LINES} {{ exit 4 }}'"""
SOON = timedelta(seconds=4)


class KubeletHarness(ClusterHarness):
    """A server's lower floors over one namespace of a cluster, whose pods have no relay."""

    # Of the account that reads logs; None: that of the cluster.
    kubeconfig: Path | None = None

    def captures_of_pods(self) -> Captures:
        from fastlane_grpc.kubernetes import ClusterApi, PodLogs

        api = ClusterApi(kubeconfig=self.kubeconfig or self.cluster.kubeconfig, namespace=self.namespace)
        return KubeletCaptures(PodLogs(api), max_log_bytes=1 << 30)

    def pods(self) -> "KubernetesBackend":
        from fastlane_grpc.kubernetes import ClusterApi, KubernetesBackend, PodSettings

        api = ClusterApi(kubeconfig=self.cluster.kubeconfig, namespace=self.namespace)
        settings = PodSettings(node_selector=self.node_selector, recorded=False)
        return KubernetesBackend(api, instance=self.store.instance, host="local", settings=settings)

    def go_script(self, script: str, **more: Any) -> Going:
        return self.go("", script, entrypoint=SH, **more)


@pytest.fixture
def harness(tmp_path: Path, own_cluster: "Cluster", namespace: str) -> Iterator[KubeletHarness]:
    harness = KubeletHarness(tmp_path, own_cluster, namespace)
    yield harness
    harness.close()


def printed(harness: KubeletHarness, going: Going) -> tuple[bytes, list[tuple[Source, int | None, Cause]]]:
    """Return what arrived of stdout, and the gaps."""
    output = harness.output(going.id)
    return output.stdout, [(gap.source, gap.missing_bytes, gap.cause) for gap in output.gaps]


GAP = (Source.STDOUT, None, Cause.ENGINE)


def test_small_output_of_each_kind_is_whole(harness: KubeletHarness) -> None:
    scripts = {
        "echo hello; echo oh >&2; exit 3": (3, {b"hello\noh\n", b"oh\nhello\n"}),
        "printf 'no newline'": (0, {b"no newline"}),
        # Its runtime drops a carriage return before a newline.
        "printf 'a\\r\\n\\n\\r\\nb\\000c\\377\\n'; sh -c 'kill -9 $$' 2>/dev/null; exit $?": (
            137,
            {b"a\n\n\nb\0c\xff\n"},
        ),
        "head -c 100000 /dev/zero | tr '\\0' x; echo; echo end": (0, {b"x" * 100_000 + b"\nend\n"}),
        "for i in 1 2 3 4; do echo $i; sleep 1; done": (0, {b"1\n2\n3\n4\n"}),
        "exit 5": (5, {b""}),
    }
    going = {script: harness.go_script(script) for script in scripts}
    for script, (exit_code, wanted) in scripts.items():
        execution = going[script].result()
        assert outcome(execution).exit_code == exit_code, script
        output, gaps = printed(harness, going[script])
        assert output in wanted, script
        assert gaps == [], script
    assert harness.pods_are_gone()


def test_of_a_flood_what_is_there_is_in_order_and_each_loss_is_a_gap(harness: KubeletHarness) -> None:
    going = harness.go_script(FLOOD_AND_REST)
    execution = going.result()
    assert (execution.state, outcome(execution).exit_code) == (State.FAILED, 4)
    output = harness.output(going.id)
    assert "some output may be missing" in harness.system(going.id)
    assert {(gap.source, gap.missing_bytes, gap.cause) for gap in output.gaps} == {GAP}
    last = 0
    for begin, end in pairwise([0, *sorted({gap.offset for gap in output.gaps}), len(output.stdout)]):
        # Each piece between two gaps is whole: no line is missing within it, and its ends may be cut.
        numbers = [int(line) for line in output.stdout[begin:end].split(b"\n") if re.fullmatch(rb"\d{98}", line)]
        assert numbers == list(range(numbers[0], numbers[0] + len(numbers))) if numbers else True, (begin, end)
        assert not numbers or numbers[0] > last
        last = numbers[-1] if numbers else last
    # A busy node may have rotated after the last line, and just before the end.
    assert last == FLOOD_LINES + REST_LINES or output.gaps[-1].offset == len(output.stdout)


def test_servers_that_went_away_cost_no_byte_that_the_node_still_has(harness: KubeletHarness) -> None:
    going = harness.go_script("for i in $(seq 100000 100059); do echo $i; sleep 0.1; done; exit 4")
    for _ in range(3):
        wait_for_more(harness, going)
        going.mailbox.put(LeaveCommand())
        assert going.failure()
        harness.reopen()
        going = harness.adopt(going.id)
    assert outcome(going.result()).exit_code == 4
    assert printed(harness, going) == (b"".join(b"%d\n" % number for number in range(100_000, 100_060)), [])


def wait_for_more(harness: KubeletHarness, going: Going) -> None:
    """Wait until more output has arrived than is there now."""

    def size() -> int:
        path = harness.logs.output_path(going.id)
        return len(harness.output(going.id).stdout) if path.exists() else 0

    before = size()
    wait_until(lambda: size() > before, "output came")


def test_servers_killed_at_any_step_leave_one_run_and_a_log_that_is_honest(harness: KubeletHarness) -> None:
    steps = (Step.CREATED, Step.FENCED, Step.STARTED, Step.RUNNING, Step.DIED, Step.DRAINED, Step.SEALED)
    killed = [harness.go_script("echo once; exit 3", kill_at=step) for step in steps]
    assert all(isinstance(going.failure(), Killed) for going in killed)
    harness.reopen()
    adopted = [harness.adopt(going.id) for going in killed]
    for step, going in zip(steps, adopted, strict=True):
        execution = going.result()
        assert (execution.state, outcome(execution).exit_code) == (State.FAILED, 3), step
        output, gaps = printed(harness, going)
        # Of a job whose log nobody had looked at, it is not known what was before.
        assert (output, set(gaps)) in [(b"once\n", set()), (b"once\n", {GAP})], step
    assert harness.pods_are_gone()


def test_what_a_command_printed_before_its_end_is_kept_or_a_gap_says_it_is_not(harness: KubeletHarness) -> None:
    polite = harness.go_script("trap 'echo bye; exit 7' TERM; echo first; while :; do sleep 0.1; done")
    deaf = harness.go_script("trap '' TERM; echo first; while :; do sleep 0.1; done")
    late = harness.go_script("trap 'echo bye; exit 7' TERM; echo first; while :; do sleep 0.1; done", timeout=SOON)
    for going in (polite, deaf, late):
        harness.wait_for_output(going.id, b"first")
    harness.stop(polite.id, grace=60)
    harness.stop(deaf.id, grace=0)
    ends = {
        polite: (State.STOPPED, 7, b"first\nbye\n"),
        deaf: (State.STOPPED, 137, b"first\n"),
        late: (State.TIMED_OUT, 7, b"first\nbye\n"),
    }
    for going, (state, exit_code, whole) in ends.items():
        execution = going.result()
        assert (execution.state, outcome(execution).exit_code) == (state, exit_code)
        output, gaps = printed(harness, going)
        # The pod may be gone before its log was read to the end.
        assert (output, gaps) in [(whole, []), (whole, [GAP]), (b"first\n", [GAP])]
    assert harness.pods_are_gone()


def test_a_pod_that_is_removed_at_once_leaves_a_gap_at_the_end_of_its_log(harness: KubeletHarness) -> None:
    going = harness.go_script("echo first; exec sleep 1000")
    harness.wait_for_output(going.id, b"first")
    name = f"fastlane-{going.id}"
    harness.cluster.api().delete_namespaced_pod(name, harness.namespace, grace_period_seconds=0)
    execution = going.result()
    assert (execution.state, outcome(execution).reason) == (State.LOST, Reason.EVICTED)
    assert printed(harness, going) == (b"first\n", [GAP])


def test_a_pod_that_was_removed_while_no_server_was_there_leaves_a_gap(harness: KubeletHarness) -> None:
    going = harness.go_script("echo first; exec sleep 1000")
    harness.wait_for_output(going.id, b"first")
    going.mailbox.put(LeaveCommand())
    assert going.failure()
    harness.cluster.api().delete_namespaced_pod(f"fastlane-{going.id}", harness.namespace, grace_period_seconds=0)
    harness.reopen()
    going = harness.adopt(going.id)
    execution = going.result()
    assert (execution.state, outcome(execution).reason) == (State.LOST, Reason.CONTAINER_GONE)
    assert printed(harness, going) == (b"first\n", [GAP])


def test_a_server_that_stops_waits_for_no_log_that_it_does_not_get(
    harness: KubeletHarness, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    account = Account(tmp_path, harness.cluster, harness.namespace)
    verbs = of_kind("Role")["rules"][0]["verbs"]
    account.add({"apiGroups": [""], "resources": ["pods/log"], "verbs": ["get"]})
    harness.kubeconfig = account.kubeconfig
    harness.reopen()
    # Longer than a test lasts: only the command to leave can end it.
    monkeypatch.setattr(kubelet, "DRAIN_SECONDS", 3600.0)
    going = harness.go_script("echo first; sleep 5; echo last; exit 4")
    harness.wait_for_output(going.id, b"first")
    account.allow(*verbs)
    harness.wait_for_system(going.id, "the output is not read for now")
    going.wait_for(Step.DIED)
    going.mailbox.put(LeaveCommand())
    assert isinstance(going.failure(), HostDown)
    account.add({"apiGroups": [""], "resources": ["pods/log"], "verbs": ["get"]})
    harness.reopen()
    going = harness.adopt(going.id)
    assert outcome(going.result()).exit_code == 4
    assert printed(harness, going) == (b"first\nlast\n", [])


def test_what_an_image_lacks_has_its_reason(harness: KubeletHarness) -> None:
    lacks = harness.go("no-such-command")
    absent = harness.go("true", image="fastlane.invalid/nothing:1", pull_policy=PullPolicy.NEVER)
    execution = lacks.result()
    assert (execution.state, outcome(execution).reason) == (State.FAILED, Reason.COMMAND_NOT_FOUND)
    execution = absent.result()
    assert (execution.state, outcome(execution).reason) == (State.FAILED, Reason.IMAGE_NOT_PRESENT)
    # What an image runs by itself need not be known here.
    own = harness.go("", image=harness.cluster.image, entrypoint=(), pull_policy=PullPolicy.NEVER)
    assert own.result().state in {State.SUCCEEDED, State.FAILED}
    assert harness.pods_are_gone()


def test_what_needs_the_recorder_is_refused_by_the_name_of_its_field(harness: KubeletHarness) -> None:
    harness.secrets = NamedSecrets([SecretSettings("word", "*", env="PATH")])
    harness.reopen()
    wishes: dict[str, dict[str, Any]] = {
        "stop_signal": {"stop_signal": "SIGINT"},
        "ulimits": {"ulimits": (Ulimit("nofile", 10),)},
        "secret_envs": {"secret_envs": {"WORD": "word"}},
        "stdin": {"stdin": Stdin(InputFiles(harness.directory / "inputs").keep(b"words"), 5)},
        "outputs": {"outputs": ("/result",)},
    }
    for field, wish in wishes.items():
        execution = harness.go_script("exit 0", **wish).result()
        assert execution.state is State.FAILED
        assert field in outcome(execution).detail
    assert harness.pods_are_gone()
