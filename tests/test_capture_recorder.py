"""Containers whose PID 1 is the recorder: whatever the image is like, whatever the job does to it, and what is left
when it is killed."""

import io
import tarfile
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from datetime import timedelta
from pathlib import Path

import docker
import pytest

from fastlane_grpc.docker.capture_choice import CaptureChoice
from fastlane_grpc.docker.engine import Engine, container_name
from fastlane_grpc.docker.engine_errors import EngineDown
from fastlane_grpc.docker.probe import PROBE_LABEL
from fastlane_grpc.execution import Step
from fastlane_grpc.model import CaptureMode, Cause, Execution, Limits, Outcome, Reason, Source, State
from tests.engine import EngineHarness, by_recorder, opened
from tests.tools import tool

pytestmark = [pytest.mark.engine, pytest.mark.timeout(120), by_recorder]

UNKNOWN = [(Source.STDOUT, None, Cause.ENGINE), (Source.STDERR, None, Cause.ENGINE)]


def outcome(execution: Execution) -> Outcome:
    assert execution.outcome is not None
    return execution.outcome


def gaps(harness: EngineHarness, execution_id: str) -> Sequence[tuple[Source, int | None, Cause]]:
    return [(gap.source, gap.missing_bytes, gap.cause) for gap in harness.output(execution_id).gaps]


# -- images


Build = Callable[..., str]


@pytest.fixture
def build(sdk: docker.DockerClient, image: str, request: pytest.FixtureRequest) -> Iterator[Build]:
    """Makes an image from lines of a Dockerfile, on top of the usual one or from nothing."""
    tag = f"{image}-{zlib.crc32(request.node.name.encode()):x}"

    def made(*lines: str, base: str = image) -> str:
        context = io.BytesIO()
        with tarfile.open(fileobj=context, mode="w") as tar:
            tar.add(Path(tool("busybox")).resolve(), "busybox")
            content = "\n".join([f"FROM {base}", *lines]).encode()
            info = tarfile.TarInfo("Dockerfile")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
        context.seek(0)
        sdk.images.build(fileobj=context, custom_context=True, tag=tag, rm=True)
        return tag

    yield made
    sdk.images.remove(tag, force=True)


def test_an_image_with_nothing_but_a_program_runs(harness: EngineHarness, build: Build) -> None:
    execution = harness.run("/busybox echo alone", image=build("COPY busybox /busybox", base="scratch"))
    assert (execution.state, harness.output(execution.id).stdout) == (State.SUCCEEDED, b"alone\n")


@pytest.mark.parametrize(
    ("lines", "asked", "printed"),
    [
        (['ENTRYPOINT ["echo", "entry"]', 'CMD ["cmd"]'], {}, "entry cmd"),
        (['ENTRYPOINT ["echo", "entry"]', 'CMD ["cmd"]'], {"args": ["own"]}, "entry own"),
        (['ENTRYPOINT ["echo", "entry"]', 'CMD ["cmd"]'], {"entrypoint": ["echo", "other"]}, "other"),
        (
            ['ENTRYPOINT ["echo", "entry"]', 'CMD ["cmd"]'],
            {"entrypoint": ["echo", "other"], "args": ["own"]},
            "other own",
        ),
        (["ENV WORD=env", "CMD echo $WORD and more"], {}, "env and more"),
        (["ENV WORD=env", "ENTRYPOINT echo $WORD"], {}, "env"),
        (['CMD ["echo", "cmd"]', "WORKDIR /tmp", "USER nobody"], {"args": ["sh", "-c", "id -u; pwd"]}, "65534\n/tmp"),
    ],
)
def test_the_entrypoint_and_the_command_are_what_the_engine_would_make_of_them(
    harness: EngineHarness, build: Build, lines: Sequence[str], asked: dict[str, object], printed: str
) -> None:
    args = asked.pop("args", [])
    execution = harness.run("", *args, image=build(*lines), **asked)  # type: ignore[misc]
    assert harness.output(execution.id).stdout.decode() == printed + "\n"
    assert execution.state is State.SUCCEEDED


def test_an_image_without_a_command_is_refused(harness: EngineHarness) -> None:
    execution = harness.run("")
    assert (execution.state, outcome(execution).reason) == (State.FAILED, Reason.REFUSED_BY_ENGINE)
    assert "no command" in outcome(execution).detail


@pytest.mark.parametrize(
    ("more", "reason", "detail"),
    [
        (
            {"command": "passwd", "envs": {"PATH": "/nosuch:/etc"}},
            Reason.COMMAND_NOT_EXECUTABLE,
            "passwd: Permission denied",
        ),
        ({"command": "private", "user": "nobody"}, Reason.COMMAND_NOT_EXECUTABLE, "private: Permission denied"),
        ({"command": "'' word"}, Reason.COMMAND_NOT_FOUND, '"" (an empty word): No such file or directory'),
    ],
)
def test_a_command_that_cannot_be_executed_is_named(
    harness: EngineHarness, build: Build, more: dict[str, object], reason: Reason, detail: str
) -> None:
    image = build("RUN cp /bin/busybox /bin/private && chmod 700 /bin/private")
    execution = harness.run(image=image, **more)
    assert (execution.state, outcome(execution).reason, outcome(execution).exit_code) == (State.FAILED, reason, None)
    assert outcome(execution).detail.endswith(detail)


def test_the_narrowest_container_is_captured(harness: EngineHarness) -> None:
    execution = harness.run(
        "echo narrow", user="nobody", read_only_root=True, network="none", limits=Limits(pids=1, memory_bytes=6 << 20)
    )
    assert (execution.state, harness.output(execution.id).stdout, gaps(harness, execution.id)) == (
        State.SUCCEEDED,
        b"narrow\n",
        [],
    )


# -- jobs


def test_a_full_house_of_processes_does_not_stop_the_record(harness: EngineHarness) -> None:
    script = "i=0; while [ $i -lt 30 ]; do i=$((i+1)); sleep 60 & done 2>/dev/null; echo forked"
    execution = harness.sh(script, limits=Limits(pids=8))
    assert gaps(harness, execution.id) == []
    assert harness.execution(execution.id).state.final
    execution = harness.sh(":(){ :|:& };:; sleep 0.3; echo bombed", limits=Limits(pids=20))
    assert gaps(harness, execution.id) == []


def test_orphans_are_reaped_and_do_not_outlive_the_command(harness: EngineHarness) -> None:
    # Each of them is left by its parent, and two hold the pipes on.
    orphans = "i=0; while [ $i -lt 50 ]; do i=$((i+1)); (sleep 0 &) ; done; (sleep 600 &); (sleep 600 >&2 &)"
    script = f"{orphans}; sleep 0.3; set -- /proc/[0-9]*; echo $#; exit 3"
    execution = harness.sh(script)
    assert (outcome(execution).exit_code, gaps(harness, execution.id)) == (3, [])
    assert execution.times.exit_time - execution.times.start_time < timedelta(seconds=30)  # type: ignore[operator]
    # The recorder, the shell, and the two that sleep.
    assert harness.output(execution.id).stdout == b"4\n"


def test_what_grandchildren_print_to_the_end_is_kept(harness: EngineHarness) -> None:
    execution = harness.sh("(sleep 0.2; echo grandchild) & echo child; wait; printf last")
    assert harness.output(execution.id).stdout == b"child\ngrandchild\nlast"


def test_a_job_that_attacks_its_recorder_and_its_record_as_root_fails(harness: EngineHarness) -> None:
    script = """
        echo before
        kill -KILL 1; kill -STOP 1
        for file in /proc/1/mem /proc/1/fd/0 /proc/1/fd/3 /proc/1/fd/4 /proc/1/fd/5; do
            echo forged 2>/dev/null >$file
        done 2>/dev/null
        ls /proc/1/fd /proc/1/map_files /proc/1/root/ >/dev/null 2>&1 && echo seen
        cat /proc/1/environ /proc/1/mem 2>/dev/null
        echo overwritten >/.fastlane/recorder
        rm -rf /.fastlane/recorder /.fastlane/box/* /.fastlane/box
        umount /.fastlane/box; umount /.fastlane/recorder
        mknod /.fastlane/box/d b 8 0
        echo forged >/.fastlane/box/log
        echo after
    """
    execution = harness.sh(f"( {script} ) 2>/dev/null; exit 7")
    output = harness.output(execution.id)
    assert (outcome(execution).exit_code, output.stdout, output.gaps) == (7, b"before\nafter\n", [])
    # What it could put beside its record is gone with it.
    assert sorted(path.name for path in harness.logs.output_path(execution.id).parent.iterdir()) == ["log", "system"]
    assert harness.sh("echo the next one").state is State.SUCCEEDED


def test_signals_reach_the_command_and_nobody_else(harness: EngineHarness) -> None:
    loop = "while :; do sleep 0.1; done"
    script = f"trap 'echo told; exit 9' USR2; (trap 'echo child told' USR2; {loop}) & echo ready; {loop}"
    going = harness.go("sh -c", script, stop_signal="SIGUSR2")
    harness.wait_for_output(going.id, b"ready")
    harness.stop(going.id)
    execution = going.result()
    assert (execution.state, outcome(execution).exit_code, outcome(execution).stop_signal) == (
        State.STOPPED,
        9,
        "SIGUSR2",
    )
    assert harness.output(execution.id).stdout == b"ready\ntold\n"


def test_a_command_that_ends_by_a_signal_says_by_which(harness: EngineHarness) -> None:
    execution = harness.sh("kill -SEGV $$")
    assert (outcome(execution).exit_code, outcome(execution).detail) == (
        139,
        "exited with 139, by convention 128 + SIGSEGV",
    )


# -- the hole that is left


def test_a_recorder_that_is_killed_leaves_a_gap_of_unknown_size(
    harness: EngineHarness, sdk: docker.DockerClient
) -> None:
    going = harness.go("sh -c", "echo before; sleep 60")
    going.wait_for(Step.RUNNING)
    harness.wait_for_output(going.id, b"before\n")
    sdk.containers.get(container_name(going.id)).kill("KILL")
    execution = going.result()
    assert (execution.state, outcome(execution).exit_code) == (State.FAILED, 137)
    output = harness.output(going.id)
    assert output.stdout == b"before\n"
    assert gaps(harness, going.id) == UNKNOWN
    assert output.trailer is not None
    assert all(total.crc32 is None for total in output.trailer.totals)
    assert "the recorder was killed" in harness.system(going.id)


# -- the limit


@pytest.fixture
def limited(tmp_path: Path, image: str, capture: CaptureMode) -> Iterator[EngineHarness]:
    with opened(tmp_path, image, capture=capture, max_log_bytes=4 << 20) as harness:
        yield harness


def test_a_recorder_killed_beyond_its_limit_leaves_totals_of_what_the_limit_took(
    limited: EngineHarness, sdk: docker.DockerClient
) -> None:
    going = limited.go("sh -c", "seq 1 3000000; echo seen >&2; sleep 60")
    limited.wait_for_stderr(going.id, b"seen\n")
    sdk.containers.get(container_name(going.id)).kill("KILL")
    output = limited.output(going.result().id)
    assert gaps(limited, going.id)[1:] == UNKNOWN
    [taken, _, _] = output.gaps
    assert taken.cause is Cause.SIZE_LIMIT
    assert output.trailer is not None
    assert [(total.missing_bytes, total.crc32) for total in output.trailer.totals] == [
        (taken.missing_bytes, None),
        (0, None),
    ]


# -- whether it works


def test_a_host_of_the_same_engine_leaves_the_probe_of_the_other_alone(
    harness: EngineHarness, sdk: docker.DockerClient, tmp_path_factory: pytest.TempPathFactory
) -> None:
    directory, instance = tmp_path_factory.mktemp("twins"), harness.store.instance
    others = sdk.containers.create(harness.image, "true", labels={PROBE_LABEL: f"{instance}/a"})
    try:
        one, other = (CaptureChoice(CaptureMode.AUTO, directory, instance=instance, host=name) for name in ("a", "b"))
        other.determine(harness.engine)
        others.reload()
        # What it left itself, as it was killed, it takes away.
        harness.engine.make_image("fastlane-probe-left:1", bytes(10_240), label=PROBE_LABEL, value=f"{instance}/a")
        one.determine(harness.engine)
        with pytest.raises(docker.errors.NotFound):
            others.reload()
        with pytest.raises(docker.errors.ImageNotFound):
            sdk.images.get("fastlane-probe-left:1")
        assert (one.in_use, other.in_use) == ("recorder", "recorder")
    finally:
        with suppress(docker.errors.NotFound):
            others.remove(force=True)


class Pruned(Engine):
    """An engine whose first container is removed before or right after its start, as by `docker container prune`."""

    def __init__(self, address: str, *, after: bool) -> None:
        super().__init__(address)
        self._after = after
        self._pruned = False

    def start(self, container_id: str) -> None:
        pruned, self._pruned = self._pruned, True
        if not pruned and not self._after:
            self.remove(container_id, force=True)
        super().start(container_id)
        if not pruned:
            self.remove(container_id, force=True)


@pytest.mark.parametrize("after", [False, True], ids=["before its start", "after its start"])
def test_a_probe_whose_container_is_removed_does_not_settle_for_attach(
    harness: EngineHarness, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch, after: bool
) -> None:
    monkeypatch.setattr("fastlane_grpc.docker.probe.PROBE_SECONDS", 0.0 if after else 20.0)
    captures = CaptureChoice(CaptureMode.AUTO, tmp_path_factory.mktemp("pruned"), instance=harness.store.instance)
    engine = Pruned(harness.address, after=after)
    with pytest.raises(EngineDown, match="somebody removed the container"):
        captures.determine(engine)
    assert captures.in_use == ""
    monkeypatch.undo()
    captures.determine(engine)
    assert captures.in_use == "recorder"


def test_whoever_asks_meanwhile_how_a_host_captures_waits_for_the_one_probe(
    harness: EngineHarness, tmp_path_factory: pytest.TempPathFactory
) -> None:
    captures = CaptureChoice(
        CaptureMode.AUTO, tmp_path_factory.mktemp("many"), instance=harness.store.instance, host="many"
    )
    with ThreadPoolExecutor(4) as threads:
        began = f"{time.time():.9f}"
        for settled in [threads.submit(captures.determine, harness.engine) for _ in range(4)]:
            settled.result()
        assert captures.in_use == "recorder"
        filters = {"event": "create", "label": f"{PROBE_LABEL}={harness.store.instance}/many"}
        with closing(docker.DockerClient(harness.address)) as client:
            made = list(client.events(since=began, until=f"{time.time():.9f}", filters=filters, decode=True))
    assert len(made) == 1
