"""Secrets of the operator in the environment of jobs: who may use them, where they are read, and that their values are
nowhere but in the command."""

import asyncio
import base64
import hashlib
import os
import queue
import re
import select
import subprocess
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import docker
import grpc
import pytest

from fastlane_grpc import config
from fastlane_grpc.app import Server as InProcess
from fastlane_grpc.client import Client, InvalidRequest, Mail, NotFound, Webhook
from fastlane_grpc.config import ConfigError, SecretSettings, Settings
from fastlane_grpc.debugging import requested_dump
from fastlane_grpc.errors import SecretNotFound
from fastlane_grpc.secrets import NamedSecrets, SecretUnusable, Unreadable
from fastlane_grpc.secrets.source import read_output
from fastlane_grpc.v1 import fastlane_pb2 as pb
from fastlane_grpc.v1 import fastlane_pb2_grpc as pb_grpc
from tests.http_client import ask
from tests.mails import BRIDGE, Mails
from tests.reading import Reader, outcome, run
from tests.serving import Server, containers, serving_on

VALUE = "correct horse/battery?staple"


def settings(file: Path, text: str) -> config.Settings:
    file.write_text(text)
    return config.load({}, {}, file)


def table(name: str, source: str, tasks: str = "*") -> str:
    return f'[[secrets]]\nname = "{name}"\ntasks = "{tasks}"\n{source}\n'


# -- settings


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (table("a", ""), "must have one of file, directory, env and command"),
        (table("a", 'file = "/f"\nenv = "F"'), "must have one of"),
        (table("a", 'env = "F-G"'), "must be the name of an environment variable"),
        (table("a/b", 'env = "F"'), "must be 1 to 64 of"),
        (table("a", 'env = "F"', tasks="a b"), "must be names of tasks"),
        ('[[secrets]]\nname = "a"\nenv = "F"\n', "has no tasks, which is required"),
        (table("a", 'env = "F"') * 2, "have the name 'a'"),
        (table("a", 'fil = "F"'), "did you mean 'file'?"),
    ],
)
def test_a_table_that_cannot_be_meant_is_refused(tmp_path: Path, text: str, fault: str) -> None:
    with pytest.raises(ConfigError, match="secrets") as refused:
        settings(tmp_path / "s.toml", text)
    assert fault in str(refused.value)


def test_the_settings_in_force_tell_where_secrets_are_and_not_what(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FL_SECRET", VALUE)
    file = tmp_path / "s.toml"
    file.write_text(table("a", 'env = "FL_SECRET"') + table("d", f'directory = "{tmp_path}"'))
    told = config.toml(config.in_force({}, {}, file))
    assert 'env = "FL_SECRET"' in told
    assert VALUE not in told + config.as_json(config.in_force({}, {}, file))
    assert settings(tmp_path / "again.toml", told).secrets == config.load({}, {}, file).secrets


# -- where they are read


def test_a_secret_is_read_from_each_kind_of_source_and_anew_each_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_bytes(b"of a file\n")
    monkeypatch.setenv("FL_SECRET", "of the environment")
    secrets = NamedSecrets(
        [
            SecretSettings("f", "*", file=tmp_path / "file"),
            SecretSettings("d", "*", directory=tmp_path),
            SecretSettings("e", "*", env="FL_SECRET"),
            SecretSettings("c", "*", command="sed 's/^/of a command: /'"),
        ]
    )
    envs = {"F": "f", "G": "f", "D": "d/file", "E": "e", "C": "c"}
    values = {"F": b"of a file\n", "D": b"of a file\n", "E": b"of the environment", "C": b"of a command: c\n"}
    assert secrets.read(envs, "t") == {**values, "G": b"of a file\n"}
    (tmp_path / "file").write_bytes(b"rotated")
    assert secrets.read({"F": "f"}, "t") == {"F": b"rotated"}


@pytest.mark.parametrize(
    ("script", "fault"),
    [
        ("sleep 600", "did not end within 0.3 s"),
        ("exec >&-; sleep 600", "did not end within 0.3 s"),
        ("exit 3", "with 3"),
    ],
)
def test_a_command_that_hangs_or_fails_is_told_and_leaves_no_process(tmp_path: Path, script: str, fault: str) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    program = tmp_path / "program"
    program.write_text(f"#!/bin/sh\nexec 3>{pipe}\nsleep 600 >&- &\n{script}\n")
    program.chmod(0o755)
    with pytest.raises(Unreadable, match=fault):
        read_output(str(program), 100, seconds=0.3)
    # The pipe ends with the last process that has it open.
    assert select.select([reader], [], [], 10)[0]
    assert os.read(reader, 1) == b""
    os.close(reader)


def test_what_a_task_may_not_use_is_as_what_is_not_there(tmp_path: Path) -> None:
    secrets = NamedSecrets(
        [SecretSettings("f", "mail-*,x", file=tmp_path / "f"), SecretSettings("d", "*", directory=tmp_path)]
    )
    assert secrets.check("f", "mail-1").name == secrets.check("f", "x").name == "f"
    refusals = set()
    for name in ("f", "nosuch", "f/file", "d", "nosuch/file"):
        with pytest.raises(SecretNotFound) as refused:
            secrets.check(name, "y")
        refusals.add(str(refused.value).replace(repr(name), "NAME"))
    assert refusals == {"there is no secret NAME for this task"}


def test_a_value_that_no_variable_can_have_is_refused_without_the_value(tmp_path: Path) -> None:
    for name, content in (("nul", b"SECRET\0"), ("large", b"SECRET" * 6000), ("half", b"SECRET!!" * 4000)):
        (tmp_path / name).write_bytes(content)
    secrets = NamedSecrets([SecretSettings("d", "*", directory=tmp_path)])
    faults = [
        ({"A": "d/nul"}, SecretUnusable, "'d/nul' has a NUL byte"),
        ({"A": "d/large"}, Unreadable, "more than 32768 bytes"),
        ({"A": "d/half", "B": "d/half", "C": "d/half"}, SecretUnusable, "more than 65536 bytes together"),
        ({"A": "d/none"}, Unreadable, "No such file"),
    ]
    for envs, kind, fault in faults:
        with pytest.raises(kind, match=re.escape(fault)) as refused:
            secrets.read(envs, "t")
        assert "SECRET" not in str(refused.value)


# -- requests


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        (pb.JobSpec(secret_envs={"A": "a"}, envs={"A": "1"}), 'spec.secret_envs["A"]'),
        (pb.JobSpec(secret_envs={"": "a"}), 'spec.secret_envs[""]'),
        (pb.JobSpec(secret_envs={"A=B": "a"}), 'spec.secret_envs["A=B"]'),
        (pb.JobSpec(secret_envs={"A": ""}), 'spec.secret_envs["A"]'),
        (pb.JobSpec(secret_envs={"A": "../a"}), 'spec.secret_envs["A"]'),
        (pb.JobSpec(secret_envs={"A": "d/.."}), 'spec.secret_envs["A"]'),
        (pb.JobSpec(secret_envs={"A": "d/e/f"}), 'spec.secret_envs["A"]'),
        (pb.JobSpec(secret_envs={str(n): "a" for n in range(65)}), "spec.secret_envs"),
    ],
)
async def test_a_job_with_secrets_that_cannot_be_meant_is_refused(
    in_process: InProcess, spec: pb.JobSpec, field: str
) -> None:
    spec.image = "busybox"
    async with grpc.aio.insecure_channel(f"127.0.0.1:{in_process.port}") as channel:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await pb_grpc.JobServiceStub(channel).EnqueueJob(pb.EnqueueJobRequest(task_id="t", spec=spec))
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert str(refused.value.details()).startswith(field + ":")


async def test_jobs_of_one_batch_use_the_secrets_of_their_own_tasks(in_process: InProcess) -> None:
    spec = pb.JobSpec(image="busybox", secret_envs={"A": "mail"})
    requests = [pb.EnqueueJobRequest(task_id=task_id, spec=spec) for task_id in ("mail-1", "other", "mail-2")]
    async with grpc.aio.insecure_channel(f"127.0.0.1:{in_process.port}") as channel:
        jobs = pb_grpc.JobServiceStub(channel)
        answered = await jobs.BatchEnqueueJobs(pb.BatchEnqueueJobsRequest(requests=requests))
    assert [each.WhichOneof("result") for each in answered.results] == ["enqueued", "rejection", "enqueued"]
    rejection = answered.results[1].rejection
    assert (rejection.reason, dict(rejection.metadata)) == (pb.ERROR_REASON_SECRET_NOT_FOUND, {"secret": "mail"})


@pytest.fixture
async def in_process(tmp_path: Path) -> AsyncIterator[InProcess]:
    secrets = (SecretSettings("a", "*", env="A"), SecretSettings("mail", "mail-*", env="A"))
    hosts = (config.HostSettings("here", f"unix://{tmp_path}/no-engine"),)
    its = Settings(data_dir=tmp_path / "data", listen="127.0.0.1:0", http_listen="", hosts=hosts, secrets=secrets)
    async with InProcess(its) as server:
        yield server


# -- in containers


def serving_with(
    sdk: docker.DockerClient, directory: Path, tables: str, **flags: object
) -> AbstractContextManager[Server]:
    (directory / "settings.toml").write_text(tables)
    return serving_on(sdk, directory / "data", config=str(directory / "settings.toml"), **flags)


@pytest.mark.engine
def test_a_secret_is_in_the_command_and_nowhere_else(tmp_path: Path, sdk: docker.DockerClient, image: str) -> None:
    file = tmp_path / "secret"
    file.write_text(f"{VALUE}\n")
    tables = table("db", f'file = "{file}"') + table("mine", f'file = "{file}"', tasks="other")
    script = (
        'printf %s "$PASSWORD" | sha256sum; echo "<$PASSWORD>"; echo "$PASSWORD" >&2;'
        'printf %s "$PASSWORD" | base64; ls -A /.fastlane/box; cat /proc/1/environ 2>/dev/null | grep -c PASSWORD;'
        "while [ -e /keep ]; do sleep 0.1; done"
    )
    with (
        Mails() as mails,
        posts_received() as (url, posts),
        serving_with(sdk, tmp_path, tables, http_listen="127.0.0.1:0", **receivers(mails)) as server,
        Client(server.address) as client,
    ):
        told = [Mail("ops@example.org", states=ENDS), Webhook(url, states=ENDS)]
        for name in ("mine", "nosuch"):
            with pytest.raises(NotFound, match=f"there is no secret '{name}' for this task"):
                client.enqueue("run", image, secret_envs={"A": name})
        with pytest.raises(InvalidRequest, match=r"is in spec\.envs as well"):
            client.enqueue("run", image, envs={"A": "1"}, secret_envs={"A": "db"})
        for user in ("", "1000:1000"):
            words = ["sh", "-c", f"test -w / && touch /keep; {script}"]
            job = client.enqueue(
                "run", image, args=words, secret_envs={"PASSWORD": "db"}, user=user, notifications=told
            )
            reader = Reader(client, job.execution.id)
            if not user:
                reader.wait_for(lambda reader=reader: reader.stdout.endswith(b"\n0\n"))
                [container] = containers(sdk, tmp_path / "data")
                inspected = subprocess.run(
                    ["docker", "inspect", container], capture_output=True, text=True, check=False
                ).stdout
                assert not leaks(str(sdk.api.inspect_container(container)) + inspected)
                assert not leaks(str(client.job(job.id)))
                assert not leaks(b"\n".join(command_lines()))
                assert not leaks(requested_dump(tmp_path / "data"))
                sdk.api.exec_start(sdk.api.exec_create(container, ["rm", "/keep"])["Id"])
            assert reader.end().exit_status == 0
            has_it = hashlib.sha256(f"{VALUE}\n".encode()).hexdigest()
            assert reader.stdout.decode() == f"{has_it}  -\n<***\n>\n***\n0\n"
            assert reader.stderr == b"***\n\n"
            assert reader.totals().bytes == len(reader.stdout)
            assert dict(client.job(job.id).spec.secret_envs) == {"PASSWORD": "db"}
            mail, post = mails.received.get(timeout=20), posts.get(timeout=20)
            # Both have the end of the log, or the job.
            assert ("<***" in mail.as_string(), leaks(mail.as_bytes())) == (True, False)
            assert (job.id.encode() in post, leaks(post)) == (True, False)
            for path in (f"/jobs/{job.id}", f"/executions/{job.execution.id}/logs?follow=false", "/metrics", "/audit"):
                assert not leaks(asyncio.run(ask(server.http_port, "GET", path)).body)
        assert not leaks(server.log)
    left = [path for path in tmp_path.rglob("*") if path.is_file() and path != file and leaks(path.read_bytes())]
    assert left == []


ENDS = [pb.STATE_SUCCEEDED]


def receivers(mails: Mails) -> dict[str, str]:
    """Settings of a server that sends mails there, and webhooks to loopback."""
    mail = {"smtp_host": BRIDGE, "smtp_port": str(mails.port), "smtp_tls": "off", "smtp_from": "fastlane@example.org"}
    return {**mail, "webhook_networks": "loopback"}


@contextmanager
def posts_received() -> Iterator[tuple[str, "queue.SimpleQueue[bytes]"]]:
    """The address of a receiver of webhooks, and the headers and bodies that it gets."""
    posts: queue.SimpleQueue[bytes] = queue.SimpleQueue()

    class Receiver(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(204)
            self.end_headers()
            posts.put(str(self.headers).encode() + body)

        def log_message(self, *words: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Receiver) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/", posts
        server.shutdown()


def command_lines() -> Iterator[bytes]:
    """The words of all processes of this machine, as `ps` shows them."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            yield path.read_bytes()


def leaks(text: str | bytes) -> bool:
    """Whether the value is in it, in one of its usual forms."""
    content = text if isinstance(text, bytes) else text.encode()
    forms = [VALUE.encode(), base64.b64encode(VALUE.encode()), b"correct%20horse", b"battery?staple"]
    return any(form in content for form in forms)


@pytest.mark.engine
def test_a_secret_is_read_at_each_start_and_its_failure_ends_the_job(
    tmp_path: Path, sdk: docker.DockerClient, image: str
) -> None:
    file = tmp_path / "secret"
    file.write_bytes(b"one\ntwo")
    tables = table("db", f'file = "{file}"') + table("nul", "command = \"printf 'a\\\\0b'\"")
    show = ["sh", "-c", 'printf %s "$A" | wc -c']
    with serving_with(sdk, tmp_path, tables) as server, Client(server.address) as client:
        assert run(client, image, *show, secret_envs={"A": "db"}).stdout == b"7\n"
        file.write_bytes(b"")
        assert run(client, image, *show, secret_envs={"A": "db"}).stdout == b"0\n"
        ended = outcome(run(client, image, *show, secret_envs={"A": "nul"}))
        assert (ended.reason, "'nul' has a NUL byte" in ended.detail) == (pb.REASON_SECRET_UNAVAILABLE, True)


@pytest.mark.engine
def test_without_the_recorder_a_job_with_secrets_does_not_run(
    tmp_path: Path, sdk: docker.DockerClient, image: str
) -> None:
    with (
        serving_with(sdk, tmp_path, table("a", 'env = "PATH"'), capture="attach") as server,
        Client(server.address) as client,
    ):
        log = run(client, image, "env", secret_envs={"A": "a"})
        assert outcome(log).reason == pb.REASON_SECRET_UNAVAILABLE
        assert "captures output by attach, which cannot mask" in outcome(log).detail
        assert (log.stdout, containers(sdk, tmp_path / "data")) == (b"", {})
