"""Jobs through nginx, HAProxy and Envoy, as docs/proxies.md has them: live, exact, over cuts and restarts."""

import json
import re
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import docker
import grpc
import pytest

from fastlane_grpc.client import Backoff, Client, job_request
from tests.reading import Reader
from tests.remote_engine import make_certificates
from tests.reverse_proxies import FILES, PROXIES, ReverseProxy
from tests.serving import Server, clear, serving_on
from tests.succession import Succession, free_address
from tests.tools import tool

pytestmark = [pytest.mark.engine, pytest.mark.slow]

FLOOD = "seq 1 200000; printf '\\000\\377\\r\\n'; seq 1 50000 >&2; exit 7"
STDOUT = b"".join(b"%d\n" % number for number in range(1, 200_001)) + b"\x00\xff\r\n"
STDERR = b"".join(b"%d\n" % number for number in range(1, 50_001))
PAGE = FILES.parents[1] / "proxies.md"
QUICK = Backoff(0.05, 0.5)
# Silent for longer than a time-out of three seconds, twice.
SILENT = "echo begin; sleep 4; echo middle; sleep 4; echo end; exit 3"
# What makes a proxy's time-out for a silent stream so long.
SHORT: dict[str, Callable[[int], dict[str, str]]] = {
    "nginx": lambda seconds: {"listen 443": f"grpc_read_timeout {seconds}s; listen 443"},
    "haproxy": lambda seconds: {"server  50s": f"server {seconds}s", "client  50s": f"client {seconds}s"},
    "envoy": lambda seconds: {"stat_prefix": f"stream_idle_timeout: {seconds}s\n                stat_prefix"},
}


@pytest.fixture(scope="module")
def server(sdk: docker.DockerClient, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    directory = tmp_path_factory.mktemp("proxied")
    with serving_on(sdk, directory / "data", http_listen=free_address(), max_running=10) as server:
        yield server


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`cert.pem`, `key.pem` for 127.0.0.1, and `ca.pem`, which signed it."""
    directory = tmp_path_factory.mktemp("certificates")
    make_certificates(directory / "client", directory / "server")
    return directory / "server"


@contextmanager
def proxied(name: str, directory: Path, certificates: Path, server: Server, **changes: str) -> Iterator[ReverseProxy]:
    proxy = ReverseProxy(name, directory / name, certificates / "cert.pem", server.port, server.http_port, changes)
    proxy.start()
    try:
        yield proxy
    finally:
        proxy.kill()


@contextmanager
def connected(proxy: ReverseProxy, certificates: Path) -> Iterator[Client]:
    credentials = grpc.ssl_channel_credentials((certificates / "ca.pem").read_bytes())
    # As the client's own channels: a new connection is tried soon.
    options = [("grpc.initial_reconnect_backoff_ms", 100), ("grpc.max_reconnect_backoff_ms", 500)]
    with (
        grpc.secure_channel(proxy.address, credentials, [*options, ("grpc.enable_http_proxy", 0)]) as channel,
        Client(channel, backoff=QUICK) as client,
    ):
        yield client


def curl(proxy: ReverseProxy, certificates: Path, path: str, *options: str) -> str:
    asked: list[Any] = [tool("curl"), "-sS", "--noproxy", "*", "--cacert", certificates / "ca.pem", *options]
    ran = subprocess.run([*asked, f"https://{proxy.address}{path}"], capture_output=True, text=True, timeout=60)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


@pytest.mark.parametrize("name", PROXIES)
def test_every_call_passes_through_a_proxy(
    name: str, tmp_path: Path, server: Server, certificates: Path, image: str
) -> None:
    with proxied(name, tmp_path, certificates, server) as proxy, connected(proxy, certificates) as client:
        job = client.enqueue("proxied", image, args=["sh", "-c", FLOOD])
        reader = Reader(client, job.execution.id)
        assert (reader.end().exit_status, reader.stdout, reader.stderr) == (7, STDOUT, STDERR)
        assert reader.cuts == 0
        # A request near the largest that the server takes.
        large = [job_request("large", "none:latest", start_in=3600, args=[str(n) + "x" * 100_000]) for n in range(28)]
        assert len([*client.enqueue_many(large)]) == 28
        # HTTP/2 and HTTP/1.1, with the proxy's address in links, and the origin of the page that the proxy serves.
        for version in ("--http2", "--http1.1"):
            answer = json.loads(curl(proxy, certificates, f"/jobs/{job.id}", version))
            assert answer["links"]["job"] == f"https://{proxy.address}/jobs/{job.id}"
            stop = [version, "-X", "POST", "-H", f"Origin: https://{proxy.address}"]
            assert "problem" not in curl(proxy, certificates, f"/jobs/{job.id}/stop", *stop, "-w", "%{content_type}")
        events = curl(proxy, certificates, f"/executions/{job.execution.id}/logs", "-H", "Accept: text/event-stream")
        assert events.count("event: end") == 1
        assert curl(proxy, certificates, f"/executions/{job.execution.id}/logs?source=stderr") == STDERR.decode()
        assert "<title>" in curl(proxy, certificates, "/", "-H", "Accept: text/html")


def test_heartbeats_keep_a_silent_stream_open_and_what_is_cut_goes_on(
    tmp_path: Path, server: Server, certificates: Path, image: str
) -> None:
    with ExitStack() as stack:
        clients = []
        for name in PROXIES:
            proxy = stack.enter_context(proxied(name, tmp_path, certificates, server, **SHORT[name](3)))
            clients.append(stack.enter_context(connected(proxy, certificates)))
        job = clients[0].enqueue("proxied", image, args=["sh", "-c", SILENT])
        kept = [Reader(client, job.execution.id, heartbeat=1) for client in clients]
        cut = [Reader(client, job.execution.id, heartbeat=60) for client in clients]
        for reader in (*kept, *cut):
            assert (reader.end().exit_status, reader.stdout) == (3, b"begin\nmiddle\nend\n")
        assert [reader.cuts for reader in kept] == [0, 0, 0]
        assert all(reader.cuts >= 2 for reader in cut)


def test_envoy_cuts_streams_at_its_default_time_out_and_they_go_on(
    tmp_path: Path, server: Server, certificates: Path, image: str
) -> None:
    # In place of the 15 s that a route has by default.
    changes = {"route: { cluster: fastlane_grpc, timeout: 0s }": "route: { cluster: fastlane_grpc, timeout: 1s }"}
    with proxied("envoy", tmp_path, certificates, server, **changes) as proxy:
        with connected(proxy, certificates) as client:
            script = "for i in 1 2 3 4 5 6 7 8; do echo $i; sleep 0.4; done; exit 4"
            reader = Reader(client, client.enqueue("proxied", image, args=["sh", "-c", script]).execution.id)
            assert (reader.end().exit_status, reader.stdout) == (4, b"1\n2\n3\n4\n5\n6\n7\n8\n")
            assert reader.cuts > 1


@pytest.mark.parametrize("name", PROXIES)
def test_a_proxy_and_a_server_that_are_killed_lose_no_byte(
    name: str, tmp_path: Path, sdk: docker.DockerClient, certificates: Path, image: str
) -> None:
    succession = Succession(tmp_path / "data", sdk, image, http_listen=free_address())
    server = succession.server()
    script = f"for i in 1 2 3 4 5 6 7 8 9 10 11 12; do echo $i; sleep 0.25; done; {FLOOD}"
    expected = b"".join(b"%d\n" % number for number in range(1, 13)) + STDOUT
    try:
        with proxied(name, tmp_path, certificates, server) as proxy, connected(proxy, certificates) as client:
            reader = Reader(client, client.enqueue("proxied", image, args=["sh", "-c", script]).execution.id)
            reader.wait_for_output(b"1\n")
            proxy.kill()
            proxy.start()
            reader.wait_for_output(b"4\n")
            server.kill()
            server = succession.server()
            reader.wait_for_output(b"8\n")
            proxy.kill()
            proxy.start()
            assert (reader.end().exit_status, reader.stdout, reader.stderr) == (7, expected, STDERR)
            assert reader.cuts >= 3
    finally:
        for each in succession.servers:
            each.kill()
        clear(sdk, tmp_path / "data")


def test_tls_passes_through_a_proxy(tmp_path: Path, sdk: docker.DockerClient, certificates: Path, image: str) -> None:
    [text] = re.findall(r"```haproxy\n(.*?)```", PAGE.read_text(), re.DOTALL)
    rpc, http = free_address(), free_address()
    tls = {"tls_cert": str(certificates / "cert.pem"), "tls_key": str(certificates / "key.pem")}
    with serving_on(sdk, tmp_path / "data", http_listen=free_address(), **tls) as server:
        for old, new in {
            "bind :443": f"bind {rpc}",
            "bind :8443": f"bind {http}",
            "127.0.0.1:7020": server.address,
            "127.0.0.1:10000": f"127.0.0.1:{server.http_port}",
        }.items():
            assert old in text
            text = text.replace(old, new)
        (tmp_path / "haproxy.cfg").write_text(text)
        proxy = subprocess.Popen([tool("haproxy"), "-db", "-f", tmp_path / "haproxy.cfg"])
        try:
            with Client(rpc, tls_ca=certificates / "ca.pem", backoff=QUICK) as client:
                reader = Reader(client, client.enqueue("proxied", image, args=["sh", "-c", FLOOD]).execution.id)
                assert (reader.end().exit_status, reader.stdout, reader.stderr) == (7, STDOUT, STDERR)
            asked = [
                tool("curl"),
                "-sS",
                "--noproxy",
                "*",
                "--cacert",
                certificates / "ca.pem",
                f"https://{http}/healthz",
            ]
            ran = subprocess.run(asked, capture_output=True, timeout=60, check=True)
            assert ran.stdout
        finally:
            proxy.kill()
            proxy.wait()


def test_the_page_on_proxies_names_each_file() -> None:
    page = PAGE.read_text()
    assert set(re.findall(r"deploy/proxies/([\w.]+)", page)) == {each.name for each in FILES.iterdir()}
