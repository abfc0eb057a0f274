"""The debug dump of a running server: complete, without secrets, and made also while the server hangs."""

import json
import os
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from fastlane_grpc.client import Client
from fastlane_grpc.debugging import DumpFailed, requested_dump
from fastlane_grpc.debugging.recent_lines import RecentLines
from fastlane_grpc.machine.data_directory import holder
from fastlane_grpc.trust import Role, TokenFile
from tests.commands import fastlane
from tests.forked import Forked
from tests.recorder_program import eventually
from tests.serving import serving

# A server in which this code runs on the loop once it serves.
_HANGING = """
import sys, time
from pathlib import Path
from fastlane_grpc import app, config

def hang():
    print("hangs", flush=True)
    {work}

def ready(ports):
    import asyncio
    asyncio.get_running_loop().call_soon(hang)

flags = {{"data_dir": sys.argv[1], "listen": "127.0.0.1:0", "http_listen": "off", "engine": "unix:///nobody"}}
app.serve(config.load(flags, {{}}, None), ready=ready)
"""


@contextmanager
def hanging(data_dir: Path, work: str) -> Iterator[int]:
    """A server whose loop does this work; its process id."""
    process = Forked(_HANGING.format(work=work), str(data_dir))
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == b"hangs\n"
        yield process.pid
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait(20)
        process.stdout.close()


def stacks(entries: Sequence[Mapping[str, Any]], name: str) -> str:
    """Return the stack of the entry that has this name."""
    [found] = [entry for entry in entries if name in entry["names"]]
    return "\n".join(found["stack"])


def test_a_dump_has_all_that_a_report_needs(tmp_path: Path) -> None:
    with serving(tmp_path / "data", http_listen="127.0.0.1:0", engine="unix:///nobody") as server:
        with Client(server.address) as client:
            job = client.enqueue("task", "busybox")
            stream = iter(client.tail_job(job.id))
            next(stream)
            dump = json.loads(requested_dump(tmp_path / "data"))
            client.stop(job.id)
            list(stream)
        assert dump["loop"]["responds"]
        assert dump["process"]["pid"] == server.process.pid
        assert 0 <= dump["process"]["age_seconds"] < 120
        assert dump["process"]["open_files"] > 10
        assert dump["versions"]["packages"].keys() >= {"fastlane-grpc", "grpcio", "protobuf", "uvloop"}
        assert "Linux" in dump["versions"]["kernel"]
        assert (dump["settings"]["engine"], dump["settings"]["auth"]) == ("unix:///nobody", "off")
        assert dump["settings"]["secret_names"] == "default"
        assert [host["name"] for host in dump["settings"]["hosts"]] == ["local"]
        assert dump["health"] == {"live": True, "server": True, "engine": False}
        assert (dump["store"]["new_jobs"], dump["store"]["writes_waiting"]) == (1, 0)
        assert dump["streams_open"] == 1
        assert dump["grpc_calls"]["EnqueueJob"]["ended"] == {"OK": 1}
        assert dump["grpc_calls"]["StreamJobLogs"]["in_flight"] == 1
        assert dump["hosts"][0]["up"] is False
        assert any("host" in line["event"] for line in dump["last_warnings_and_errors"])
        assert "sigwait" not in stacks(dump["threads"], "MainThread")
        assert "Writer" in stacks(dump["threads"], "store-writer")
        assert "Dispatcher.run" in stacks(dump["tasks"], "dispatcher")
        assert not [name for name, value in dump.items() if str(value).startswith("not known")]
        assert (tmp_path / "data" / "debug-dump.json").stat().st_mode & 0o777 == 0o600


def test_a_dump_has_no_secret(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    token = TokenFile(tmp_path / "data").create("ada", Role.SUBMIT)
    with serving(
        tmp_path / "data",
        engine="unix:///nobody",
        auth="tokens",
        notify_urls="http://ada:hunter2@127.0.0.1/hook?token=hunter3",
    ) as server:
        with Client(server.address, token=token) as client:
            client.enqueue("task", "busybox", envs={"PASSWORD": "hunter4"}, args=["--password", "hunter5"])
        text = requested_dump(tmp_path / "data")
    assert "ada:***@127.0.0.1" in text
    for secret in ("hunter", token):
        assert secret not in text
    environ = [value for name, value in os.environ.items() if len(value) > 12 and "TOKEN" in name]
    assert not any(value in text for value in environ)


@pytest.mark.parametrize("work", ["time.sleep(60)", "while True: pass"])
def test_a_dump_is_made_while_the_loop_hangs(tmp_path: Path, work: str) -> None:
    with hanging(tmp_path / "data", work) as process_id:
        assert holder(tmp_path / "data") == process_id
        dump = json.loads(requested_dump(tmp_path / "data"))
    assert not dump["loop"]["responds"]
    assert "hang at <string>" in stacks(dump["threads"], "MainThread")
    assert dump["store"]["writes_waiting"] == 0
    assert "Dispatcher" in stacks(dump["tasks"], "dispatcher")


def test_stacks_are_written_while_the_interpreter_hangs(tmp_path: Path) -> None:
    # An expression that takes for ever keeps the lock of the interpreter: no other thread runs.
    work = "import re; re.match('(a*)*b', 'a' * 40)"
    with hanging(tmp_path / "data", work):
        text = requested_dump(tmp_path / "data", wait_seconds=1)
    assert "the server did not respond for 1 s" in text
    assert "in hang" in text


def test_a_stopped_process_is_told(tmp_path: Path) -> None:
    with hanging(tmp_path / "data", "time.sleep(60)") as process_id:
        os.kill(process_id, signal.SIGSTOP)
        with pytest.raises(DumpFailed, match=f"process {process_id} does not respond: it is stopped, or waits"):
            requested_dump(tmp_path / "data", wait_seconds=0.2)


def test_signals_do_not_end_a_server(tmp_path: Path) -> None:
    with serving(tmp_path / "data", engine="unix:///nobody") as server:
        for _ in range(5):
            for number in (signal.SIGUSR1, signal.SIGUSR2):
                os.kill(server.process.pid, number)
        eventually((tmp_path / "data" / "debug-dump.json").exists)
        with Client(server.address) as client:
            client.server_info()
        assert server.stop() == 0


def test_a_dump_is_asked_of_the_holder_of_the_lock_alone(tmp_path: Path) -> None:
    with pytest.raises(DumpFailed, match=r"no server uses .*: set --data-dir as the server has it"):
        requested_dump(tmp_path)
    # The number of a server that was killed may be that of another process now.
    with subprocess.Popen(["sleep", "60"]) as stranger:
        (tmp_path / "lock").write_text(f"{stranger.pid}\n")
        assert holder(tmp_path) is None
        with pytest.raises(DumpFailed):
            requested_dump(tmp_path)
        assert stranger.poll() is None
        stranger.kill()


def test_the_command_writes_a_file(tmp_path: Path) -> None:
    command = ("debug", "dump", "--data-dir", str(tmp_path / "data"))
    report = tmp_path / "report"
    with serving(tmp_path / "data", engine="unix:///nobody"):
        ran = fastlane(None, *command, str(report))
        assert (ran.returncode, ran.stdout, ran.stderr) == (0, f"{report}\n".encode(), b"")
        assert json.loads(report.read_text())["health"]["live"]
        assert report.stat().st_mode & 0o777 == 0o600
        assert json.loads(fastlane(None, *command, "-").stdout)["health"]["live"]
        ran = fastlane(None, *command, "/nowhere/report")
        assert (ran.returncode, ran.stderr) == (
            1,
            b"fastlane: cannot write /nowhere/report: No such file or directory\n",
        )
    ran = fastlane(None, *command)
    assert (ran.returncode, ran.stdout) == (1, b"")
    assert ran.stderr.startswith(f"fastlane: no server uses {tmp_path / 'data'}".encode())


def test_the_newest_warnings_are_kept() -> None:
    recent = RecentLines()
    for number in range(200):
        recent(None, "info", {"level": "info", "event": "x"})
        recent(None, "warning", {"level": "warning", "event": number, "long": "y" * 100_000})
    assert [line["event"] for line in recent.lines()] == [str(number) for number in range(150, 200)]
    assert all(len(str(line["long"])) == 8000 for line in recent.lines())
