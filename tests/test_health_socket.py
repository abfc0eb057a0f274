"""The health of a server for its own machine: with TLS, certificates of clients and tokens, and while it hangs."""

import os
import signal
import socket
from pathlib import Path

import pytest

from fastlane_grpc.health_socket import NoHealth, health_of
from tests.certificates import Authority
from tests.commands import fastlane
from tests.serving import Server, serving

SERVES = {"live": True, "server": True, "engine": False}


def test_a_server_that_trusts_nobody_tells_its_machine_how_it_is(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    pair = authority.sign("server")
    files = {"tls_cert": pair.cert, "tls_key": pair.key, "tls_client_ca": authority.cert}
    tls = {name: str(path) for name, path in files.items()}
    # As long as no path of a socket may be.
    data_dir = tmp_path / ("long-" * 30)
    with serving(data_dir, engine="unix:///nobody", auth="tokens", public="off", **tls):
        assert health_of(data_dir, timeout_seconds=20) == SERVES
        assert (data_dir / "health.sock").stat().st_mode & 0o077 == 0
        ran = fastlane(None, "health", FASTLANE_DATA_DIR=str(data_dir))
        assert (ran.returncode, ran.stderr) == (0, b"")
        assert ran.stdout.decode().split() == ["live", "SERVING", "server", "SERVING", "engine", "NOT_SERVING"]
        assert fastlane(None, "health", "--service", "engine", "--data-dir", str(data_dir)).returncode == 1
    assert not (data_dir / "health.sock").exists()
    ran = fastlane(None, "health", "--data-dir", str(data_dir))
    assert (ran.returncode, ran.stdout) == (1, b"")
    assert ran.stderr == f"fastlane: no server uses {data_dir}: set --data-dir as the server has it\n".encode()


def test_a_server_that_hangs_does_not_answer(tmp_path: Path) -> None:
    with serving(tmp_path / "data", engine="unix:///nobody") as server:
        os.kill(server.process.pid, signal.SIGSTOP)
        with pytest.raises(NoHealth, match=r"the server does not respond within 0\.2 s"):
            health_of(tmp_path / "data", timeout_seconds=0.2)
        os.kill(server.process.pid, signal.SIGCONT)


def test_the_socket_of_a_server_that_was_killed_is_replaced(tmp_path: Path) -> None:
    server = Server(tmp_path / "data", engine="unix:///nobody")
    server.kill()
    assert (tmp_path / "data" / "health.sock").exists()
    with pytest.raises(NoHealth, match="no server uses"):
        health_of(tmp_path / "data", timeout_seconds=20)
    with serving(tmp_path / "data", engine="unix:///nobody"):
        assert health_of(tmp_path / "data", timeout_seconds=20) == SERVES


def test_clients_that_connect_and_leave_harm_nobody(tmp_path: Path) -> None:
    with serving(tmp_path / "data", engine="unix:///nobody") as server:
        before = server.open_files
        for _ in range(200):
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
                client.connect(os.path.relpath(tmp_path / "data" / "health.sock"))
        assert health_of(tmp_path / "data", timeout_seconds=20) == SERVES
        assert server.open_files < before + 50
        assert "defect" not in server.log


def test_a_file_system_without_sockets_is_no_reason_not_to_serve(tmp_path: Path) -> None:
    # A directory in its place cannot be replaced.
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "health.sock").mkdir()
    with serving(tmp_path / "data", engine="unix:///nobody") as server:
        assert "the health of this server cannot be asked by `fastlane health`" in server.log
        with pytest.raises(NoHealth):
            health_of(tmp_path / "data", timeout_seconds=20)
