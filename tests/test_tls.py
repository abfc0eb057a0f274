"""TLS at both doors of a server, as clients and attackers see it from outside."""

import asyncio
import re
import socket
import ssl
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from http.client import HTTPSConnection
from pathlib import Path

import pytest

from fastlane_grpc.client import AsyncClient, Client, Disconnected, StateChange, TlsFailed
from fastlane_grpc.errors import CannotServe
from fastlane_grpc.http.tls_listener import TlsListener
from fastlane_grpc.supervisor import ALONE
from fastlane_grpc.trust import CertificateFiles, Certificates, read_authorities
from tests.certificates import Authority, Pair
from tests.commands import environment, fastlane
from tests.serving import Server
from tests.tools import tool


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("stranger"), "stranger")


@contextmanager
def tls_server(data_dir: Path, pair: Pair, **settings: object) -> Iterator[Server]:
    more = {name: str(value) for name, value in settings.items()}
    server = Server(
        data_dir,
        http_listen="127.0.0.1:0",
        engine="unix:///nobody",
        tls_cert=str(pair.cert),
        tls_key=str(pair.key),
        **more,
    )
    try:
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="module")
def encrypted(authority: Authority, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with a certificate."""
    with tls_server(tmp_path_factory.mktemp("encrypted") / "data", authority.sign("server")) as server:
        yield server


@pytest.fixture(scope="module")
def mutual(authority: Authority, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that requires certificates of its clients."""
    directory = tmp_path_factory.mktemp("mutual")
    with tls_server(directory / "data", authority.sign("mutual"), tls_client_ca=authority.cert) as server:
        yield server


def context_of(authority: Authority, own: Pair | None = None) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=authority.cert)
    if own:
        context.load_cert_chain(own.cert, own.key)
    return context


def http_status(port: int, context: ssl.SSLContext) -> int:
    with closing(HTTPSConnection("localhost", port, timeout=20, context=context)) as connection:
        connection.request("GET", "/info")
        return connection.getresponse().status


def jobs(server: Server, *options: str | Path) -> tuple[int, str]:
    """What `fastlane jobs` says."""
    ran = fastlane(None, "jobs", "--address", server.address, *map(str, options))
    return ran.returncode, ran.stderr.decode()


async def test_both_clients_and_the_command_line_speak_tls(encrypted: Server, authority: Authority) -> None:
    with Client(encrypted.address, tls_ca=authority.cert) as client:
        assert client.server_info().version
    async with AsyncClient(encrypted.address, tls_ca=str(authority.cert)) as client:
        assert (await client.server_info()).version
    assert jobs(encrypted, "--tls-ca", authority.cert) == (0, "fastlane: no jobs\n")
    assert http_status(encrypted.http_port, context_of(authority)) == 200


def test_a_server_of_another_authority_is_refused_at_once(encrypted: Server, stranger: Authority) -> None:
    with Client(encrypted.address, tls_ca=stranger.cert) as client, pytest.raises(TlsFailed, match="unknown authority"):
        client.server_info()
    code, said = jobs(encrypted, "--tls-ca", stranger.cert)
    assert code == 69
    assert "the server's certificate is signed by an unknown authority: check --tls-ca" in said
    with pytest.raises(ssl.SSLCertVerificationError):
        http_status(encrypted.http_port, context_of(stranger))


def test_a_client_without_tls_is_told_that_the_server_speaks_it(encrypted: Server) -> None:
    code, said = jobs(encrypted)
    assert (code, "the server speaks TLS: give the file of its authority with --tls-ca" in said) == (69, True), said
    with socket.create_connection(("127.0.0.1", encrypted.http_port), 20) as connection:
        connection.sendall(b"GET /info HTTP/1.1\r\nHost: localhost\r\n\r\n")
        said = connection.makefile("rb").read().decode()
    assert said.startswith("HTTP/1.1 400 ")
    assert "this port speaks TLS" in said
    assert "a TLS handshake failed: the client speaks no TLS" in encrypted.log


def test_a_server_without_tls_is_told_from_one_that_is_down(tmp_path: Path, authority: Authority) -> None:
    server = Server(tmp_path / "data", engine="unix:///nobody")
    try:
        code, said = jobs(server, "--tls-ca", authority.cert)
    finally:
        server.stop()
    assert (code, "the server does not speak TLS: leave out --tls-ca" in said) == (69, True), said


def test_a_certificate_for_another_name_is_refused(tmp_path: Path, authority: Authority) -> None:
    with tls_server(tmp_path / "data", authority.sign("elsewhere", names="DNS:elsewhere")) as server:
        with Client(server.address, tls_ca=authority.cert) as client, pytest.raises(TlsFailed, match="another name"):
            client.server_info()


@pytest.mark.parametrize("door", ["port", "http_port"])
def test_versions_before_tls_1_2_are_refused(encrypted: Server, authority: Authority, door: str) -> None:
    for version, accepted in [(ssl.TLSVersion.TLSv1_1, False), (ssl.TLSVersion.TLSv1_2, True)]:
        context = context_of(authority)
        context.set_alpn_protocols(["h2", "http/1.1"])
        context.set_ciphers("DEFAULT:@SECLEVEL=0")
        with warnings.catch_warnings(action="ignore"):
            context.minimum_version = ssl.TLSVersion.TLSv1
            context.maximum_version = version
        try:
            with (
                socket.create_connection(("127.0.0.1", getattr(encrypted, door)), 20) as connection,
                context.wrap_socket(connection, server_hostname="localhost"),
            ):
                shaken = True
        except (ssl.SSLError, ConnectionError):
            shaken = False
        assert shaken is accepted


@pytest.mark.parametrize("door", ["port", "http_port"])
def test_a_client_may_not_renegotiate(encrypted: Server, authority: Authority, door: str) -> None:
    address = f"localhost:{getattr(encrypted, door)}"
    command = [tool("openssl"), "s_client", "-connect", address, "-tls1_2", "-alpn", "h2,http/1.1"]
    # "R" on a line of its own asks the program for a renegotiation.
    ran = subprocess.run(
        [*command, "-CAfile", authority.cert], input=b"R\n", capture_output=True, timeout=60, check=False
    )
    assert b"Verify return code: 0 (ok)" in ran.stdout
    assert b"RENEGOTIATING\n" in ran.stderr
    # One door says no, the other one closes the connection.
    assert re.search(rb"no renegotiation|unexpected eof|alert", ran.stderr.partition(b"RENEGOTIATING")[2])


def test_clients_need_a_certificate_of_the_authority(mutual: Server, authority: Authority, stranger: Authority) -> None:
    known, unknown = authority.sign("client"), stranger.sign("client")
    options = ["--tls-ca", authority.cert]
    assert jobs(mutual, *options, "--tls-cert", known.cert, "--tls-key", known.key)[0] == 0
    assert http_status(mutual.http_port, context_of(authority, known)) == 200
    code, said = jobs(mutual, *options, "--tls-cert", unknown.cert, "--tls-key", unknown.key)
    assert (code, "it requires a certificate of its clients that it knows; see --tls-cert" in said) == (69, True), said
    for own in (None, unknown):
        with pytest.raises((ssl.SSLError, ConnectionError)):
            http_status(mutual.http_port, context_of(authority, own))


def test_a_renewed_certificate_is_used_and_no_stream_is_cut(tmp_path: Path, authority: Authority) -> None:
    first = authority.sign("first")
    pair = Pair(tmp_path / "cert.pem", tmp_path / "key.pem")
    put(pair, first)
    with tls_server(tmp_path / "data", pair) as server, Client(server.address, tls_ca=authority.cert) as client:
        job = client.enqueue("task", "busybox")
        tail = client.tail(job.execution.id, heartbeat=1)
        assert isinstance(next(tail), StateChange)
        assert names(server, authority) == {"first"}
        # Halfway through: the new certificate with the old key.
        second = authority.sign("second")
        replace(pair.cert, second.cert)
        assert names(server, authority) == {"first"}
        replace(pair.key, second.key)
        assert names(server, authority) == {"second"}
        client.stop(job.id)
        assert not any(isinstance(event, Disconnected) for event in tail)
    assert server.log.count("the TLS certificate was not read again: tls_key,") == 1
    assert server.log.count("the TLS certificate was read again") == 1


def names(server: Server, authority: Authority) -> set[str]:
    """The common names of the certificates that both doors have."""
    found = set()
    for port, protocol in ((server.port, "h2"), (server.http_port, "http/1.1")):
        context = context_of(authority)
        context.set_alpn_protocols([protocol])
        with (
            socket.create_connection(("127.0.0.1", port), 20) as connection,
            context.wrap_socket(connection, server_hostname="localhost") as encrypted,
        ):
            found.add(str(dict(part[0] for part in encrypted.getpeercert()["subject"])["commonName"]))  # type: ignore[index, arg-type]
    return found


def put(pair: Pair, other: Pair) -> None:
    replace(pair.cert, other.cert)
    replace(pair.key, other.key)


def replace(path: Path, by: Path) -> None:
    """As programs that renew certificates do: a new file gets the name of the old one."""
    new = path.with_suffix(".new")
    new.write_bytes(by.read_bytes())
    new.rename(path)


FAULTS: list[tuple[str, Callable[[Pair, Authority], object], str]] = [
    ("no certificate", lambda pair, _: pair.cert.unlink(), "cannot read tls_cert, {cert}: No such file or directory"),
    ("no key", lambda pair, _: pair.key.unlink(), "cannot read tls_key, {key}: No such file or directory"),
    ("a key of another", lambda pair, ca: replace(pair.key, ca.pair.key), "tls_key, {key}, is not the key of tls_cert"),
    ("an empty key", lambda pair, _: pair.key.write_text(""), "tls_key, {key}, has no private key in PEM"),
    ("an empty certificate", lambda pair, _: pair.cert.write_text(""), "are no certificate and key in PEM"),
    (
        "a directory",
        lambda pair, _: (pair.key.unlink(), pair.key.mkdir()),
        "cannot read tls_key, {key}: Is a directory",
    ),
]


@pytest.mark.parametrize(("spoil", "said"), [fault[1:] for fault in FAULTS], ids=[fault[0] for fault in FAULTS])
def test_files_that_cannot_be_used_are_named_at_the_start(
    tmp_path: Path, authority: Authority, spoil: Callable[[Pair, Authority], object], said: str
) -> None:
    pair = Pair(tmp_path / "cert.pem", tmp_path / "key.pem")
    put(pair, authority.sign("spoilt"))
    spoil(pair, authority)
    with pytest.raises(CannotServe) as raised:
        Certificates(CertificateFiles(pair.cert, pair.key))
    assert said.format(cert=pair.cert, key=pair.key) in str(raised.value)


def test_a_key_with_a_passphrase_is_refused_without_asking_for_it(tmp_path: Path, authority: Authority) -> None:
    pair = authority.sign("locked")
    locked = tmp_path / "locked.pem"
    command = ["openssl", "ec", "-aes128", "-passout", "pass:secret", "-in", pair.key, "-out", locked]
    subprocess.run(command, check=True, capture_output=True)
    with pytest.raises(CannotServe, match="has a passphrase; give a key without one"):
        Certificates(CertificateFiles(pair.cert, locked))


def test_an_authority_of_clients_without_a_certificate_is_refused(authority: Authority) -> None:
    pair = authority.sign("other")
    with pytest.raises(CannotServe, match=r"tls_client_ca, .* has no certificate in PEM"):
        Certificates(CertificateFiles(pair.cert, pair.key, pair.key))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--tls-cert", "cert.pem"], "tls_cert and tls_key go together"),
        (["--tls-client-ca", "ca.pem"], "tls_client_ca is set, and tls_cert is not"),
    ],
)
def test_settings_of_tls_that_do_not_fit_are_refused(options: list[str], said: str) -> None:
    ran = fastlane(None, "config", *options)
    assert (ran.returncode, said in ran.stderr.decode()) == (2, True), ran.stderr


def test_files_of_a_client_that_cannot_be_used_are_named(authority: Authority, tmp_path: Path) -> None:
    pair = authority.sign("mine")
    for arguments, said in [
        ({"tls_ca": tmp_path / "nope"}, "cannot read tls_ca, .*: No such file"),
        ({"tls_ca": pair.key}, "tls_ca, .*, has no certificate in PEM"),
        ({"tls_cert": pair.cert}, "tls_cert and tls_key go together"),
        ({"tls_cert": pair.cert, "tls_key": authority.pair.key}, "tls_key, .*, is not the key of tls_cert"),
        ({"tls_cert": pair.cert, "tls_key": pair.cert}, "must be a certificate and its key in PEM"),
    ]:
        with pytest.raises(TlsFailed, match=said):
            Client("127.0.0.1:1", **arguments)  # type: ignore[arg-type]


async def test_clients_that_never_finish_a_handshake_are_counted_and_closed(authority: Authority) -> None:
    pair = authority.sign("listener")
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    handshakes: list[int] = []

    def has_room(number: int) -> bool:
        handshakes.append(number)
        return number < 2

    certificates = Certificates(CertificateFiles(pair.cert, pair.key))
    tls = TlsListener(
        listener, certificates, asyncio.Protocol, has_room=has_room, supervisor=ALONE, handshake_seconds=0.5
    )
    with closing(tls):
        connections = [await asyncio.open_connection("127.0.0.1", port) for _ in range(3)]
        connections[1][1].write(b"\x16\x03")
        async with asyncio.timeout(20):
            # The third has no room; the other two take too long, one of them in the middle of its handshake.
            assert [await reader.read() for reader, _ in reversed(connections)] == [b"", b"", b""]
        for _, writer in connections:
            writer.close()
    assert handshakes == [0, 1, 2]


def test_the_variables_of_a_client_are_no_settings_of_the_server(tmp_path: Path) -> None:
    more = {"FASTLANE_TLS_CA": "x", "FASTLANE_CLIENT_TLS_CERT": "x", "FASTLANE_CLIENT_TLS_KEY": "x"}
    command = [sys.executable, "-m", "fastlane_grpc.cli", "config"]
    ran = subprocess.run(command, env=environment(None, **more), capture_output=True, text=True)
    assert (ran.returncode, ran.stderr) == (0, "")


def test_a_key_beside_the_certificate_is_not_shown(tmp_path: Path, authority: Authority) -> None:
    pair, both = authority.sign("both"), tmp_path / "both.pem"
    both.write_bytes(b"text\n" + pair.key.read_bytes() + pair.cert.read_bytes() + authority.cert.read_bytes())
    shown = Certificates(CertificateFiles(both, both)).current().public
    assert "PRIVATE" not in shown
    assert shown == pair.cert.read_text() + authority.cert.read_text()
    assert read_authorities("relay_ca", both) == shown
    for content in (pair.key.read_bytes(), b""):
        both.write_bytes(content)
        with pytest.raises(CannotServe, match=r"relay_ca, .* has no certificate in PEM"):
            read_authorities("relay_ca", both)
