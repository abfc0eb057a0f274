"""The health of a server for its own machine: with TLS, certificates of clients and tokens, and while it hangs."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from fastlane_grpc.health_socket import NoHealth, health_of, is_trusted, name_of
from tests.certificates import Authority
from tests.commands import fastlane
from tests.recorder_program import eventually
from tests.serving import Server, serving

SERVES = {"live": True, "server": True, "engine": False}


def test_a_server_that_trusts_nobody_tells_its_machine_how_it_is(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    pair = authority.sign("server")
    files = {"tls_cert": pair.cert, "tls_key": pair.key, "tls_client_ca": authority.cert}
    tls = {name: str(path) for name, path in files.items()}
    data_dir = tmp_path / "data"
    with serving(data_dir, engine="unix:///nobody", auth="tokens", public="off", **tls):
        assert health_of(data_dir, timeout_seconds=20) == SERVES
        ran = fastlane(None, "health", FASTLANE_DATA_DIR=str(data_dir))
        assert (ran.returncode, ran.stderr) == (0, b"")
        assert ran.stdout.decode().split() == ["live", "SERVING", "server", "SERVING", "engine", "NOT_SERVING"]
        assert fastlane(None, "health", "--service", "engine", "--data-dir", str(data_dir)).returncode == 1
    ran = fastlane(None, "health", "--data-dir", str(data_dir))
    assert (ran.returncode, ran.stdout) == (1, b"")
    assert ran.stderr == f"fastlane: no server uses {data_dir}: set --data-dir as the server has it\n".encode()


def test_a_server_that_hangs_does_not_answer(tmp_path: Path) -> None:
    with serving(tmp_path / "data", engine="unix:///nobody") as server:
        os.kill(server.process.pid, signal.SIGSTOP)
        with pytest.raises(NoHealth, match=r"the server does not respond within 0\.2 s"):
            health_of(tmp_path / "data", timeout_seconds=0.2)
        os.kill(server.process.pid, signal.SIGCONT)


def test_the_server_after_one_that_was_killed_answers(tmp_path: Path) -> None:
    server = Server(tmp_path / "data", engine="unix:///nobody")
    server.kill()
    # No file is left that a copy of the directory would stumble over.
    assert all(path.is_file() or path.is_dir() for path in (tmp_path / "data").rglob("*"))
    with pytest.raises(NoHealth, match="no server uses"):
        health_of(tmp_path / "data", timeout_seconds=20)
    with serving(tmp_path / "data", engine="unix:///nobody"):
        assert health_of(tmp_path / "data", timeout_seconds=20) == SERVES


def test_clients_that_connect_and_leave_harm_nobody(tmp_path: Path) -> None:
    with serving(tmp_path / "data", engine="unix:///nobody") as server:
        before = server.open_files
        for _ in range(200):
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
                client.connect(name_of(tmp_path / "data"))
        assert health_of(tmp_path / "data", timeout_seconds=20) == SERVES
        eventually(lambda: server.open_files < before + 20)
        assert "defect" not in server.log


def test_a_name_that_is_taken_is_no_reason_not_to_serve(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as stranger:
        stranger.bind(name_of(tmp_path / "data"))
        with serving(tmp_path / "data", engine="unix:///nobody") as server:
            assert "the health of this server cannot be asked by `fastlane health`" in server.log
            with pytest.raises(NoHealth, match="no server uses"):
                health_of(tmp_path / "data", timeout_seconds=20)


@pytest.mark.skipif(os.geteuid() != 0, reason="makes a process of another user")
def test_a_program_of_another_user_is_not_taken_for_the_server(tmp_path: Path) -> None:
    code = (
        "import os, socket; os.setuid(65534); s = socket.socket(socket.AF_UNIX); "
        f"s.bind({name_of(tmp_path)!r}); s.listen(); print(); input()"
    )
    command = [sys.executable, "-I", "-S", "-u", "-c", code]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as stranger:
        assert stranger.stdout
        assert stranger.stdout.readline() == b"\n"
        with pytest.raises(NoHealth, match="is not its server, but of another user"):
            health_of(tmp_path, timeout_seconds=20)
        stranger.kill()


@pytest.mark.parametrize(("user", "owner", "trusted"), [(7, 7, True), (0, 7, True), (8, 7, False), (7, 0, False)])
def test_the_server_is_of_root_or_of_the_owner_of_its_directory(user: int, owner: int, trusted: bool) -> None:
    assert is_trusted(user, owner=owner) is trusted
