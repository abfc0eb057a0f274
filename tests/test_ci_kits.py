"""The kits for CI systems, each run as its system runs a step: its processes, its signals, no terminal. docs/ci.md."""

import itertools
import json
import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import docker
import pytest
import yaml

from fastlane_grpc.client import Client, Retry
from fastlane_grpc.trust import Role, TokenFile
from fastlane_grpc.v1 import fastlane_pb2 as pb
from tests.certificates import Authority
from tests.cutting_relay import CuttingRelay
from tests.recorder_program import eventually
from tests.scripted_server import Log, Piece, ScriptedServer
from tests.serving import Server, serving_on
from tests.succession import free_address
from tests.tools import PATH, ROOT, script, tool

KITS = ROOT / "clients" / "ci"
JENKINS_STEP = KITS / "jenkins" / "vars" / "fastlaneRun.groovy"
SYSTEM = "linux-amd64" if os.uname().machine == "x86_64" else "linux-arm64"
# Prints from both sources, without an end of the last line.
TALK = "printf 'a\\nb'; printf 'c\\n' >&2; exit 3"
WAITS = "trap 'echo told; exit 9' TERM; echo ready; while :; do sleep 0.05; done"

pytestmark = [pytest.mark.engine, pytest.mark.slow]
tasks = (f"ci-{number}" for number in itertools.count())


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `.ci/tail` makes."""
    tool("go")
    directory = tmp_path_factory.mktemp("cli")
    script("tail", str(directory), SYSTEM)
    return directory


@pytest.fixture(scope="module")
def server(sdk: docker.DockerClient, programs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    data = tmp_path_factory.mktemp("ci") / "data"
    with serving_on(sdk, data, http_listen=free_address(), cli_dir=str(programs), max_running=20) as server:
        yield server


@pytest.fixture
def client(server: Server) -> Iterator[Client]:
    with Client(server.address) as client:
        yield client


def url(server: Server) -> str:
    return f"http://127.0.0.1:{server.http_port}"


def environment(server: Server, home: Path, **more: str) -> dict[str, str]:
    """A step's variables: nothing of a terminal, nothing of this test."""
    return {"PATH": os.environ["PATH"], "HOME": str(home), "FASTLANE_URL": url(server), "CI": "true", **more}


def inputs(server: Server, image: str, **options: str) -> dict[str, str]:
    given = {"address": server.address, "image": image, **options}
    return {f"FASTLANE_INPUT_{name.upper()}": value for name, value in given.items()}


def github(**values: str) -> tuple[str, dict[str, str]]:
    """Return the script of the action's step and its variables, with the inputs filled in as GitHub does."""
    action = yaml.safe_load((KITS / "github" / "action.yml").read_text())
    [step] = action["runs"]["steps"]
    assert not {*values} - {*action["inputs"]}

    def filled(text: str) -> str:
        return re.sub(r"\$\{\{ inputs\.([\w-]+) \}\}", lambda found: values.get(found[1], ""), text)

    return step["run"], {name: filled(value) for name, value in step["env"].items()}


def gitlab() -> str:
    return "\n".join(yaml.safe_load((KITS / "gitlab" / "fastlane.yml").read_text())[".fastlane"]["script"])


def jenkins() -> str:
    found = re.search(r"sh '''\n(.*?)'''", JENKINS_STEP.read_text(), re.DOTALL)
    assert found
    return found[1].replace("$FASTLANE_FILES", "files")


def tekton() -> str:
    """Return the script of the task, with results in the files `job` and `link`."""
    [step] = yaml.safe_load((KITS / "tekton" / "task.yaml").read_text())["spec"]["steps"]
    return re.sub(r"\$\(results\.(\w+)\.path\)", r"\1", str(step["script"]).replace("cd /tmp\n", ""))


@pytest.fixture
def begun(tmp_path: Path) -> Iterator[Any]:
    """Starts steps as their systems do. `begun(script, variables)`: a script that bash or sh runs from a file."""
    running: list[subprocess.Popen[bytes]] = []

    def begin(
        text: str, variables: Mapping[str, str], shell: Sequence[str] = ("bash", "-e")
    ) -> subprocess.Popen[bytes]:
        path = tmp_path / f"step-{len(running)}.sh"
        path.write_text(text)
        process = subprocess.Popen(
            [*shell, path],
            env=variables,
            cwd=tmp_path,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        running.append(process)
        return process

    yield begin
    for process in running:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def job_of(client: Client, task: str) -> pb.Job:
    found: list[pb.Job] = []
    eventually(lambda: found.extend(client.jobs(task_id=task)) or found)
    return found[0]


def until_ready(client: Client, task: str) -> str:
    """Return the id of the task's job, when it has printed."""
    job = job_of(client, task)
    for event in client.tail(job.execution.id):
        if b"ready" in getattr(event, "data", b""):
            return job.id
    raise AssertionError("the job ended before it was ready")


GITHUB_SHELL = ("bash", "--noprofile", "--norc", "-eo", "pipefail")


def test_a_github_step_is_as_if_the_script_ran_in_it(
    server: Server, client: Client, begun: Any, tmp_path: Path, image: str
) -> None:
    task, summary = next(tasks), tmp_path / "summary"
    run, variables = github(
        address=server.address,
        url=url(server),
        image=image,
        script=TALK,
        task=task,
        env="A=1\nB=$(date)\n",
        label="x=y\n",
    )
    more = {"GITHUB_ACTION_PATH": str(KITS / "github"), "GITHUB_STEP_SUMMARY": str(summary)}
    step = begun(run, environment(server, tmp_path, **variables, **more), GITHUB_SHELL)
    out, err = step.communicate(timeout=60)
    job = job_of(client, task)
    assert (step.returncode, out) == (3, b"a\nb")
    # The job's own stderr, and no note within a line of it.
    assert b"\nc\n" in b"\n" + err
    assert f"fastlane-tail: job {job.id}, {url(server)}/jobs/{job.id}\n" in err.decode()
    assert f"::error title=fastlane::job {job.id}: failed: exited with 3\n" in err.decode()
    assert f"[`{job.id}`]({url(server)}/jobs/{job.id}) failed, exit status 3" in summary.read_text()
    spec = client.job(job.id).spec
    # An input is a value, never text of a shell.
    assert (dict(spec.envs), dict(spec.labels)) == ({"A": "1", "B": "$(date)"}, {"x": "y"})
    # A second step finds the program where the first one put it.
    assert len([*(tmp_path / ".cache" / "fastlane").iterdir()]) == 1


@pytest.mark.parametrize("system", ["gitlab", "jenkins", "tekton"])
def test_a_step_of_another_system_is_as_if_the_script_ran_in_it(
    system: str, server: Server, client: Client, begun: Any, tmp_path: Path, image: str
) -> None:
    task = next(tasks)
    variables = environment(server, tmp_path, **inputs(server, image, script=TALK, task=task))
    step = begun({"gitlab": gitlab, "jenkins": jenkins, "tekton": tekton}[system](), variables, ("sh", "-e"))
    out, err = step.communicate(timeout=60)
    assert (step.returncode, out) == (3, b"a\nb")
    assert b"\nc\n" in b"\n" + err
    job = job_of(client, task)
    link = f"{url(server)}/jobs/{job.id}"
    if system == "gitlab":
        kit = yaml.safe_load((KITS / "gitlab" / "fastlane.yml").read_text())
        report = json.loads((tmp_path / kit[".fastlane"]["artifacts"]["reports"]["annotations"]).read_text())
        assert report == {"fastlane": [{"external_link": {"label": "job on fastlane", "url": link}}]}
    elif system == "tekton":
        assert [(tmp_path / name).read_text() for name in ("job", "link")] == [f"{job.id}\n", f"{link}\n"]


def test_the_jenkins_step_runs_in_groovy_and_describes_its_build(
    server: Server, client: Client, tmp_path: Path, image: str
) -> None:
    task = next(tasks)
    options = {"address": server.address, "url": url(server), "image": image, "task": task, "env": "A=1"}
    words = [f"{name}={value}" for name, value in {**options, "script": f'test "$A" = 1; {TALK}'}.items()]
    pipeline = ROOT / "tests" / "jenkins_pipeline.groovy"
    ran = subprocess.run(
        [tool("groovy"), pipeline, JENKINS_STEP, tmp_path / "description", *words],
        env={**environment(server, tmp_path), "PATH": PATH},
        cwd=tmp_path,
        capture_output=True,
        timeout=60,
    )
    assert (ran.returncode, ran.stdout) == (3, b"a\nb"), ran.stderr.decode()
    assert (tmp_path / "description").read_text() == f"{url(server)}/jobs/{job_of(client, task).id}"
    # Nothing is left in the workspace.
    assert {path.name for path in tmp_path.iterdir()} == {".cache", "description"}


# What each system does when somebody cancels: to which processes, which signals, with which pauses in seconds.
def test_github_cancels_by_signals_to_the_first_process_and_the_job_is_stopped(
    server: Server, client: Client, begun: Any, tmp_path: Path, image: str
) -> None:
    task = next(tasks)
    run, variables = github(address=server.address, url=url(server), image=image, script=WAITS, task=task)
    more = {"GITHUB_ACTION_PATH": str(KITS / "github"), "GITHUB_STEP_SUMMARY": str(tmp_path / "summary")}
    step = begun(run, environment(server, tmp_path, **variables, **more), GITHUB_SHELL)
    job_id = until_ready(client, task)
    os.kill(step.pid, signal.SIGINT)
    # It is gone before SIGTERM would come, with the job's last line.
    out, err = step.communicate(timeout=60)
    job = client.job(job_id)
    assert (step.returncode, job.state, out) == (130, pb.STATE_STOPPED, b"ready\ntold\n")
    assert "SIGINT in fastlane-tail" in job.outcome.detail
    assert b"SIGINT: stopping job" in err


@pytest.mark.parametrize("system", ["gitlab", "jenkins", "tekton"])
def test_other_systems_cancel_by_sigterm_and_the_job_is_stopped(
    system: str, server: Server, client: Client, begun: Any, tmp_path: Path, image: str
) -> None:
    task = next(tasks)
    variables = environment(server, tmp_path, **inputs(server, image, script=WAITS, task=task))
    step = begun({"gitlab": gitlab, "jenkins": jenkins, "tekton": tekton}[system](), variables, ("sh", "-e"))
    job_id = until_ready(client, task)
    # Jenkins signals each process of the step, a Pod's end and GitLab at least the first one.
    os.killpg(step.pid, signal.SIGTERM) if system == "jenkins" else os.kill(step.pid, signal.SIGTERM)
    out, _ = step.communicate(timeout=60)
    assert (step.returncode, out, client.job(job_id).state) == (130, b"ready\ntold\n", pb.STATE_STOPPED)


def test_a_step_whose_terminal_goes_away_stops_its_job(
    server: Server, client: Client, begun: Any, tmp_path: Path, image: str
) -> None:
    task = next(tasks)
    step = begun(
        gitlab(), environment(server, tmp_path, **inputs(server, image, script=WAITS, task=task)), ("sh", "-e")
    )
    job_id = until_ready(client, task)
    os.kill(step.pid, signal.SIGHUP)
    out, err = step.communicate(timeout=60)
    assert (step.returncode, out, client.job(job_id).state) == (130, b"ready\ntold\n", pb.STATE_STOPPED)
    assert b"SIGHUP: stopping job" in err


def test_the_stop_is_at_the_server_200_ms_after_the_signal(programs: Path, server: Server) -> None:
    """The fastest of five: how long the program takes, not how busy the machine is."""
    took_seconds = []
    for _ in range(5):
        scripted = ScriptedServer()
        scripted.logs["execution-1"] = Log([Piece(1, b"ready\n")], heartbeats_before_end=1_000_000)
        step = tail(programs, server, "-address", scripted.address, "busybox")
        try:
            assert step.stdout
            assert step.stdout.readline() == b"ready\n"
            step.send_signal(signal.SIGINT)
            begin = time.monotonic()
            assert scripted.event("stopped").wait(60)
            took_seconds.append(time.monotonic() - begin)
            step.communicate(timeout=60)
        finally:
            step.kill()
            scripted.stop()
    assert min(took_seconds) < 0.2, took_seconds


def test_a_signal_before_the_server_answers_stops_the_job_too(
    server: Server, client: Client, programs: Path, image: str
) -> None:
    task = next(tasks)
    # The first connections break; the signal comes meanwhile.
    with closing(CuttingRelay(server.address, [0] * 6)) as relay:
        step = tail(programs, server, "-address", relay.address, "-task", task, image, "sh", "-c", WAITS)
        eventually(lambda: len(relay.cuts) < 6)
        step.send_signal(signal.SIGINT)
        step.communicate(timeout=60)
    assert (step.returncode, job_of(client, task).state) == (130, pb.STATE_STOPPED)


def test_a_step_that_is_killed_leaves_a_job_that_the_server_stops(
    server: Server, client: Client, programs: Path, image: str
) -> None:
    task = next(tasks)
    step = tail(programs, server, "-task", task, "-stop-when-unwatched", "5s", image, "sh", "-c", WAITS)
    job_id = job_of(client, task).id
    assert step.stdout
    assert step.stdout.readline() == b"ready\n"
    step.kill()
    step.communicate()
    eventually(lambda: client.job(job_id).state == pb.STATE_STOPPED)


def test_a_woodpecker_plugin_that_is_killed_leaves_a_job_that_the_server_stops(
    server: Server, client: Client, programs: Path, sdk: docker.DockerClient, image: str, tmp_path: Path
) -> None:
    task = next(tasks)
    dockerfile = (KITS / "woodpecker" / "Dockerfile").read_text().replace("linux-amd64", SYSTEM)
    (tmp_path / "Dockerfile").write_text(dockerfile)
    os.link(programs / f"fastlane-tail-{SYSTEM}", tmp_path / f"fastlane-tail-{SYSTEM}")
    plugin, _ = sdk.images.build(path=str(tmp_path), rm=True)
    settings = {"ADDRESS": server.address, "IMAGE": image, "SCRIPT": WAITS, "TASK": task}
    variables = {f"PLUGIN_{name}": value for name, value in {**settings, "STOP_WHEN_UNWATCHED": "5s"}.items()}
    container = sdk.containers.run(plugin.id, environment=variables, network_mode="host", detach=True)
    try:
        job_id = until_ready(client, task)
        container.kill()
        eventually(lambda: client.job(job_id).state == pb.STATE_STOPPED)
        assert b"ready\n" in container.logs(stdout=True, stderr=False)
    finally:
        container.remove(force=True)
        sdk.images.remove(plugin.id, force=True)


# -- fastlane-tail


def tail(programs: Path, server: Server, *arguments: str, **variables: str) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        [programs / f"fastlane-tail-{SYSTEM}", "-address", server.address, *arguments],
        env=variables,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def test_a_step_passes_the_trace_of_its_environment_on(programs: Path, server: Server, image: str) -> None:
    trace_id = "3af7651916cd43dd8448eb211c80319c"
    variables = {"TRACEPARENT": f"00-{trace_id}-b7ad6b7169203331-01", "TRACESTATE": "rojo=1"}
    words = ["sh", "-c", "echo $TRACEPARENT $TRACESTATE"]
    printed, _ = tail(programs, server, image, *words, **variables).communicate(timeout=60)
    assert re.fullmatch(f"00-{trace_id}-[0-9a-f]{{16}}-01 rojo=1\n", printed.decode())
    # What cannot be sent is ignored, as what is not valid.
    step = tail(programs, server, image, *words, TRACEPARENT="00-\N{SNOWMAN}", TRACESTATE="rojo=1")
    assert (step.communicate(timeout=60)[0], step.returncode) == (b"\n", 0)


@pytest.mark.parametrize(
    ("words", "options", "status"),
    [
        (["true"], [], 0),
        (["sh", "-c", "exit 1"], [], 1),
        (["sh", "-c", "kill -9 $$"], [], 137),
        (["sh", "-c", "kill -15 $$"], [], 143),
        (["sleep", "60"], ["-timeout", "1s"], 124),
        (["sh", "-c", "exit 125"], [], 125),
    ],
)
def test_the_exit_status_is_that_of_the_job(
    words: list[str], options: list[str], status: int, programs: Path, server: Server, image: str
) -> None:
    step = tail(programs, server, *options, image, *words)
    assert (step.communicate(timeout=60)[0], step.returncode) == (b"", status)


def test_lines_begin_as_was_asked_and_the_rest_is_unchanged(programs: Path, server: Server, image: str) -> None:
    printed = "printf 'a\\n'; sleep 0.2; printf 'b'; sleep 0.2; printf 'c\\n\\nd'"
    plain = tail(programs, server, "-quiet", image, "sh", "-c", printed)
    assert plain.communicate(timeout=60) == (b"a\nbc\n\nd", b"")
    begun = tail(programs, server, "-quiet", "-prefix", "> ", image, "sh", "-c", printed)
    assert begun.communicate(timeout=60) == (b"> a\n> bc\n> \n> d", b"")
    timed = tail(programs, server, "-quiet", "-timestamps", image, "sh", "-c", printed)
    line = rb"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z "
    assert re.fullmatch(b"\n".join([line + b"a", line + b"bc", line, line + b"d"]), timed.communicate(timeout=60)[0])


def test_attempts_are_folded_and_a_quiet_job_gives_signs_of_life(programs: Path, server: Server, image: str) -> None:
    options = ["-retries", "1", "-heartbeat", "500ms"]
    for system, begin, end in (
        ("github", r"::group::attempt {} of 2\n", r"::endgroup::\n"),
        (
            "gitlab",
            r"section_start:\d+:fastlane_{}\r\x1b\[0Kattempt {} of 2\n",
            r"section_end:\d+:fastlane_{}\r\x1b\[0K\n",
        ),
    ):
        step = tail(programs, server, *options, "-system", system, image, "sh", "-c", "sleep 0.8; echo x; exit 4")
        out, err = step.communicate(timeout=90)
        assert (step.returncode, out) == (4, b"x\nx\n")
        for number in (1, 2):
            numbered = (begin + ".*" + end).replace("{}", str(number))
            assert re.search(numbered, err.decode(), re.DOTALL), err.decode()
        assert "fastlane-tail: the job runs; nothing was printed for 500ms\n" in err.decode()


def test_a_job_that_is_there_is_followed_over_its_attempts_and_not_stopped(
    programs: Path, server: Server, client: Client, image: str
) -> None:
    retry = Retry(max_retries=2, initial_backoff=0.05, jitter=False)
    job = client.enqueue(next(tasks), image, args=["sh", "-c", "echo attempt; exit 4"], retry=retry)
    followed = tail(programs, server, "-job", job.id)
    out, err = followed.communicate(timeout=60)
    assert (followed.returncode, out) == (4, b"attempt\n" * 3)
    assert b"attempt 2 of 3" in err
    long = client.enqueue(next(tasks), image, args=["sh", "-c", WAITS])
    left = tail(programs, server, "-job", long.id)
    assert left.stdout
    assert left.stdout.readline() == b"ready\n"
    left.terminate()
    left.communicate(timeout=60)
    # It may be noted a little later that it runs.
    eventually(lambda: client.job(long.id).state == pb.STATE_RUNNING)
    client.stop(long.id)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "give either an image or -job"),
        (["-command", "true", "busybox", "true"], "only one of them"),
        (["-nonsense"], "flag provided but not defined: -nonsense"),
        (["-system", "x", "busybox"], '-system is github or gitlab, not "x"'),
        (["-timeout", "long", "busybox"], 'invalid value "long"'),
        (["-label", "x", "busybox"], '-label "x" is not NAME=VALUE'),
    ],
)
def test_wrong_use_is_told_in_a_line(arguments: list[str], said: str, programs: Path, server: Server) -> None:
    step = tail(programs, server, *arguments)
    out, err = step.communicate(timeout=60)
    assert (out, step.returncode, err.count(b"\n")) == (b"", 2, 1)
    assert said in err.decode()


def test_a_server_with_tls_and_tokens_is_used_by_those_who_have_both(
    programs: Path, sdk: docker.DockerClient, tmp_path: Path, image: str
) -> None:
    data, authority = tmp_path / "data", Authority(tmp_path)
    data.mkdir()
    token, pair = TokenFile(data).create("ci", Role.SUBMIT), authority.sign("server")
    (tmp_path / "token").write_text(f"{token}\n")
    settings = {"auth": "tokens", "tls_cert": str(pair.cert), "tls_key": str(pair.key)}
    with serving_on(sdk, data, **settings) as server:
        trusting = ["-tls-ca", str(authority.cert), "-wait", "5s"]
        for given, variables in (
            (["-token-file", str(tmp_path / "token")], {}),
            ([], {"FASTLANE_TOKEN": token}),
        ):
            step = tail(programs, server, *trusting, *given, image, "sh", "-c", TALK, **variables)
            assert (step.communicate(timeout=60)[0], step.returncode) == (b"a\nb", 3)
        nobody = tail(programs, server, *trusting, image, "true")
        _, said = nobody.communicate(timeout=60)
        assert (nobody.returncode, b"requires a token" in said) == (1, True)
        stranger = tail(programs, server, "-tls-ca", "system", "-wait", "1s", image, "true", FASTLANE_TOKEN=token)
        _, said = stranger.communicate(timeout=60)
        assert (stranger.returncode, b"certificate" in said) == (1, True), said
        assert token not in server.log


def test_a_server_that_is_away_is_waited_for_and_then_told_of(programs: Path, server: Server, image: str) -> None:
    begin = time.monotonic()
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        asked = [
            (free_address(), [image], "refused"),
            (free_address(), ["-job", "j"], "refused"),
            (f"127.0.0.1:{deaf.getsockname()[1]}", [image], ""),
        ]
        steps = [tail(programs, server, "-address", address, "-wait", "1s", *words) for address, words, _ in asked]
        for step, (address, _, why) in zip(steps, asked, strict=True):
            _, err = step.communicate(timeout=60)
            assert (step.returncode, time.monotonic() - begin >= 1) == (69, True)
            line = err.decode().splitlines()[-1]
            assert re.match(f"fastlane-tail: (job j: )?the server at {address} does not respond: .*{why}", line)


def test_a_reader_that_goes_away_ends_the_step_and_the_job(
    server: Server, client: Client, programs: Path, image: str
) -> None:
    task = next(tasks)
    step = tail(programs, server, "-task", task, "-stop-when-unwatched", "5s", image, "yes")
    assert step.stdout
    step.stdout.read(10)
    step.stdout.close()
    assert step.wait(60) != 0
    job_id = job_of(client, task).id
    eventually(lambda: client.job(job_id).state == pb.STATE_STOPPED)


def test_the_program_is_the_same_wherever_it_is_built(programs: Path, tmp_path: Path) -> None:
    copy = tmp_path / "elsewhere"
    files = subprocess.run(
        ["git", "ls-files", "-z", ".ci", "clients"], cwd=ROOT, capture_output=True, check=True
    ).stdout
    for name in files.decode().split("\0"):
        if name.startswith((".ci/", "clients/")):
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            (copy / name).write_bytes((ROOT / name).read_bytes())
    ran = subprocess.run(["bash", copy / ".ci" / "tail", tmp_path / "made", SYSTEM], capture_output=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert (tmp_path / "made" / "SHA256SUMS").read_text() == (programs / "SHA256SUMS").read_text()


# -- the address


def test_the_program_is_served_with_its_checksum(programs: Path, server: Server, tmp_path: Path) -> None:
    def get(name: str, *options: str) -> "subprocess.CompletedProcess[bytes]":
        return subprocess.run(
            [tool("curl"), "-sS", *options, f"{url(server)}/cli/{name}"], capture_output=True, check=True
        )

    program = get(SYSTEM).stdout
    assert program == (programs / f"fastlane-tail-{SYSTEM}").read_bytes()
    (tmp_path / "fastlane-tail").write_bytes(program)
    checked = subprocess.run(["sha256sum", "--check"], cwd=tmp_path, input=get(f"{SYSTEM}.sha256").stdout)
    assert checked.returncode == 0
    assert b"content-disposition: attachment" in get(SYSTEM, "-I").stdout.lower()
    missing = get("plan9-mips").stdout.decode()
    assert f"there is no fastlane-tail for 'plan9-mips' here; there is: {SYSTEM}, step" in missing
    for outside in ("..%2f..%2fetc%2fpasswd", "%2e%2e", "SHA256SUMS", "linux-amd64%00"):
        assert b'"status": 404' in get(outside, "--path-as-is").stdout


def test_a_step_takes_no_program_but_the_one_it_was_told(
    server: Server, begun: Any, tmp_path: Path, image: str
) -> None:
    variables = environment(server, tmp_path, **inputs(server, image, script="true"), FASTLANE_TAIL_SHA256="0" * 64)
    step = begun(gitlab(), variables, ("sh", "-e"))
    out, err = step.communicate(timeout=60)
    assert (step.returncode, out) == (69, b"")
    assert f"has not the checksum {'0' * 64}" in err.decode()


# -- the kits name what there is


def test_each_input_of_a_kit_is_an_option(programs: Path) -> None:
    told = subprocess.run([programs / f"fastlane-tail-{SYSTEM}", "-help"], capture_output=True, text=True, check=True)
    options = set(re.findall(r"^  -([\w-]+)", told.stdout, re.MULTILINE))
    action = yaml.safe_load((KITS / "github" / "action.yml").read_text())
    assert {*action["inputs"]} - {"url"} <= options
    [step] = action["runs"]["steps"]
    expected = {f"FASTLANE_INPUT_{each.upper().replace('-', '_')}" for each in {*action["inputs"]} - {"url"}}
    assert {*step["env"]} == expected | {"FASTLANE_URL"}
    task = yaml.safe_load((KITS / "tekton" / "task.yaml").read_text())["spec"]
    params = {each["name"] for each in task["params"]} - {"url", "step-image"}
    assert params <= options
    [step] = task["steps"]
    assert {each["name"] for each in step["env"]} == {f"FASTLANE_INPUT_{each.upper()}" for each in params} | {
        "FASTLANE_URL"
    }
