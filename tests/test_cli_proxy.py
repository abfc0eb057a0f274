"""A proxy that the environment names: that it was asked is said, which one and why, and its password is not."""

import socket
import subprocess
import threading
from collections.abc import Iterator

import pytest

from fastlane_grpc.client import proxy
from tests.scripted_server import ScriptedServer
from tests.test_cli import FASTLANE, environment

NAME = "fastlane.invalid:7020"
PROXY = "http://user:hunter2@proxy:3128"


@pytest.fixture
def refusing_proxy() -> Iterator[str]:
    """The address of a proxy that takes nobody anywhere; it says so to each who connects."""
    listener = socket.create_server(("127.0.0.1", 0))

    def refuse() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                connection.recv(65_536)
                connection.sendall(b"HTTP/1.1 403 Forbidden\r\n\r\n")

    thread = threading.Thread(target=refuse, daemon=True)
    thread.start()
    yield f"127.0.0.1:{listener.getsockname()[1]}"
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    thread.join()


def ran(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    names = ("grpc_proxy", "https_proxy", "http_proxy", "no_proxy", "no_grpc_proxy")
    environ = {name: value for name, value in environment(None).items() if name not in names}
    return subprocess.run(
        [*FASTLANE, *arguments], env={**environ, **variables}, capture_output=True, text=True, timeout=60
    )


@pytest.mark.parametrize("variable", ["http_proxy", "https_proxy", "grpc_proxy"])
def test_a_proxy_that_was_asked_is_told_with_its_variable_and_without_its_password(
    refusing_proxy: str, variable: str
) -> None:
    failed = ran("jobs", "-a", NAME, **{variable: f"http://user:hunter2@{refusing_proxy}"})
    assert failed.returncode == 69
    [line] = failed.stderr.splitlines()
    used = f"the proxy http://user:***@{refusing_proxy} was used (variable {variable})"
    said = f"{used}; set no_proxy=fastlane.invalid to bypass it"
    assert said in line
    assert "hunter2" not in line


def test_a_proxy_that_is_not_asked_is_not_told() -> None:
    assert "proxy" not in ran("jobs", "-a", NAME, http_proxy=PROXY, no_proxy="invalid").stderr


def test_verbose_tells_of_a_proxy_before_anything_fails(refusing_proxy: str) -> None:
    for arguments in (["run", "--verbose", "--wait", "0s", "-a", NAME, "busybox"], ["logs", "-v", "-a", NAME, "x"]):
        first, _ = ran(*arguments, http_proxy=f"http://{refusing_proxy}").stderr.splitlines()
        assert first.startswith(f"fastlane: the proxy http://{refusing_proxy} was used (variable http_proxy)")


def test_no_proxy_is_asked_for_loopback() -> None:
    server = ScriptedServer()
    listed = ran("jobs", "-a", server.address, "-o", "json", http_proxy="http://127.0.0.1:1")
    server.stop()
    assert (listed.returncode, listed.stderr) == (0, "fastlane: no jobs\n")


@pytest.mark.parametrize(
    ("address", "environ", "found"),
    [
        (NAME, {}, None),
        (NAME, {"http_proxy": PROXY}, (PROXY, "http_proxy")),
        (NAME, {"http_proxy": "http://x:1", "https_proxy": PROXY}, (PROXY, "https_proxy")),
        (NAME, {"https_proxy": PROXY, "grpc_proxy": "http://x:1"}, ("http://x:1", "grpc_proxy")),
        (NAME, {"HTTP_PROXY": PROXY}, None),
        (NAME, {"https_proxy": "", "http_proxy": PROXY}, None),
        (NAME, {"grpc_proxy": "https://x:1", "http_proxy": PROXY}, None),
        (NAME, {"http_proxy": "x:1"}, None),
        (NAME, {"http_proxy": PROXY, "no_proxy": "other, .INVALID "}, None),
        (NAME, {"http_proxy": PROXY, "no_proxy": "fastlane.invalid:7020"}, (PROXY, "http_proxy")),
        (NAME, {"http_proxy": PROXY, "no_proxy": "*"}, (PROXY, "http_proxy")),
        (NAME, {"http_proxy": PROXY, "no_proxy": ",,"}, (PROXY, "http_proxy")),
        (NAME, {"http_proxy": PROXY, "no_proxy": "invalid", "no_grpc_proxy": "x"}, (PROXY, "http_proxy")),
        ("192.0.2.7:7020", {"http_proxy": PROXY, "no_proxy": "192.0.2.0/24"}, None),
        ("[2001:db8::7]:7020", {"http_proxy": PROXY, "no_proxy": "2001:db8::/32"}, None),
        ("192.0.2.7:7020", {"http_proxy": PROXY, "no_proxy": "198.51.100.0/24"}, (PROXY, "http_proxy")),
        ("127.0.0.1:7020", {"http_proxy": PROXY}, None),
        ("localhost:7020", {"http_proxy": PROXY}, None),
    ],
)
def test_the_proxy_is_the_one_that_grpc_asks(
    address: str, environ: dict[str, str], found: tuple[str, str] | None
) -> None:
    assert proxy(address, environ) == found
