"""The address of a Docker engine, and the connections to it.

An address is what the docker CLI takes as DOCKER_HOST: `unix:///path`, `tcp://host:port` (with TLS if there are
certificates), `ssh://[user@]host[:port]`; or `context://name`, a context of the docker CLI. The SDK parses addresses,
contexts and the settings of TLS.

Connections are sockets of this module, because the SDK's have two faults (7.2). Over ssh, time limits have no effect:
a call to a frozen engine with a limit of 2 s was still waiting after a minute, and no other thread can cut it. A call
that meets a shortage of descriptors fails, though the engine is well.
"""

import errno
import os
import socket
import ssl
import subprocess
import time
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from urllib.parse import SplitResult, urlsplit

import docker.context
import docker.errors
import docker.tls
import docker.utils

from fastlane_grpc.docker.engine_errors import EngineDown
from fastlane_grpc.machine.shortage import PAUSE_SECONDS, outlast

# The engine's queue of connections is full; every local port is in use. Repeated until the timeout of the connection.
_PASSING = frozenset({errno.EAGAIN, errno.EADDRNOTAVAIL})
# An ssh whose other side sends nothing for so long, three times, ends.
_SSH_ALIVE_SECONDS = 10
# The longest wait for an ssh that was told to end.
_SSH_END_SECONDS = 1.0
_MAX_COMPLAINT_BYTES = 4096


@dataclass(frozen=True, slots=True)
class EngineAddress:
    """The address of an engine. `certificates` is a directory as DOCKER_CERT_PATH is, for `tcp://` alone.

    Certificates and contexts are read anew for each connection, so that a renewal needs no restart.
    """

    text: str
    certificates: Path | None = None

    def __str__(self) -> str:
        return self.text

    @property
    def local(self) -> bool:
        """Whether the engine is on this machine, and so shares its clock and files."""
        try:
            return self._target().url.scheme == "unix"
        except _Unusable:
            return False

    @property
    def socket_path(self) -> Path | None:
        """The engine's socket on this machine; None for an engine elsewhere."""
        return Path(self._target().url.path) if self.local else None

    @property
    def dear(self) -> bool:
        """Whether a connection takes several round trips to set up, so that it pays to use it again."""
        try:
            target = self._target()
        except _Unusable:
            return False
        return target.url.scheme == "ssh" or target.tls is not None

    def connect(self, timeout_seconds: float) -> socket.socket:
        """Return a connection to the engine. Raises EngineDown.

        A shortage in this process, as of open files, says nothing about the engine: its end is waited for, however
        long it lasts.
        """
        until = time.monotonic() + timeout_seconds
        while True:
            try:
                return outlast(lambda: self._connect(timeout_seconds))
            except _Unusable as error:
                raise EngineDown(f"no engine answers at {self}: {error}") from error
            except OSError as error:
                if error.errno not in _PASSING or time.monotonic() >= until:
                    raise EngineDown(f"no engine answers at {self}: {_text(error)}") from error
            time.sleep(PAUSE_SECONDS)

    def _connect(self, timeout_seconds: float) -> socket.socket:
        target = self._target()
        url = target.url
        if url.scheme == "unix":
            return _connect_unix(url.path, timeout_seconds)
        if url.scheme == "ssh":
            return _SshConnection.open(url, timeout_seconds)
        connection = _connect_tcp(url, timeout_seconds)
        if target.tls is None:
            return connection
        try:
            return _context(target.tls).wrap_socket(connection, server_hostname=url.hostname)
        except BaseException:
            connection.close()
            raise

    def _target(self) -> "_Target":
        kind, _, name = self.text.partition("://")
        if kind != "context":
            return _Target(_parsed(self.text), _tls_of(self.certificates) if kind == "tcp" else None)
        try:
            context = docker.context.ContextAPI.get_context(name)
        except (docker.errors.DockerException, OSError, ValueError, KeyError) as error:
            raise _Unusable(f"the docker context {name!r} cannot be read: {error}") from error
        if context is None or not context.Host:
            raise _Unusable(f"there is no docker context {name!r} on the server's machine (docker context ls)")
        return _Target(_parsed(context.Host), context.TLSConfig)


@dataclass(frozen=True, slots=True)
class _Target:
    url: SplitResult
    tls: docker.tls.TLSConfig | None


class _Unusable(Exception):
    """The address, its context or its certificates cannot be used, for the reason in the message."""


@lru_cache(256)
def _parsed(text: str) -> SplitResult:
    try:
        url = urlsplit(str(docker.utils.parse_host(text)))
        _ = url.port  # raises ValueError for a port out of range
    except (docker.errors.DockerException, ValueError) as error:
        raise _Unusable(str(error)) from error
    if url.scheme == "ssh":
        # Without the parser's port 22: ssh's own configuration may name another one.
        return urlsplit(text)
    return url._replace(scheme={"http+unix": "unix", "http": "tcp", "https": "tcp"}[url.scheme])


def _tls_of(certificates: Path | None) -> docker.tls.TLSConfig | None:
    """Return the settings of TLS for a directory as DOCKER_CERT_PATH is. Client certificates are optional."""
    if certificates is None:
        return None
    authority, certificate, key = (certificates / f"{name}.pem" for name in ("ca", "cert", "key"))
    pair = (str(certificate), str(key)) if certificate.exists() or key.exists() else None
    for file in (authority, *((certificate, key) if pair else ())):
        if not file.is_file():
            raise _Unusable(f"there is no certificate {file}")
    return docker.tls.TLSConfig(client_cert=pair, ca_cert=str(authority), verify=True)


def _context(tls: docker.tls.TLSConfig) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=tls.ca_cert if tls.verify else None)
        if not tls.verify:
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        if tls.cert:
            context.load_cert_chain(*tls.cert)
    except OSError as error:
        # A file that is missing, cannot be read, or is no certificate.
        raise _Unusable(f"the certificates for it cannot be used: {error}") from error
    return context


def _connect_unix(path: str, timeout_seconds: float) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.settimeout(timeout_seconds)
        connection.connect(path)
    except BaseException:
        connection.close()
        raise
    return connection


def _connect_tcp(url: SplitResult, timeout_seconds: float) -> socket.socket:
    try:
        connection = socket.create_connection((url.hostname or "", url.port or 0), timeout_seconds)
    except socket.gaierror:
        # A lookup without a free descriptor fails with an error that hides the cause: this line then raises the true
        # error.
        os.close(os.open("/", os.O_PATH | os.O_CLOEXEC))
        raise
    # A machine that is gone sends nothing: without keepalive a stream from it would never end.
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    return connection


class _SshConnection(socket.socket):
    """One end of a pair of sockets, whose other end is the standard input and output of an ssh."""

    process: "subprocess.Popen[bytes] | None" = None

    @classmethod
    def open(cls, url: SplitResult, timeout_seconds: float) -> "_SshConnection":
        """Start the machine's ssh client, which logs in and connects its input and output with the remote engine."""
        ours, theirs = socket.socketpair()
        connection = cls(fileno=ours.detach())
        with theirs:
            try:
                connection.settimeout(timeout_seconds)
                connection.process = subprocess.Popen(
                    _ssh_command(url, timeout_seconds),
                    stdin=theirs.fileno(),
                    stdout=theirs.fileno(),
                    stderr=subprocess.PIPE,
                    # Ctrl-C at the server's terminal is for the server.
                    start_new_session=True,
                )
            except FileNotFoundError as error:
                connection.close()
                raise _Unusable("there is no ssh client on the server's machine") from error
            except BaseException:
                connection.close()
                raise
        return connection

    def complaint(self) -> str:
        """Return what ssh, which has ended or is about to, wrote on its standard error."""
        if self.process is None or self.process.stderr is None:
            return ""
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(_SSH_END_SECONDS)
        descriptor = self.process.stderr.fileno()
        os.set_blocking(descriptor, False)
        try:
            return " ".join(os.read(descriptor, _MAX_COMPLAINT_BYTES).decode("utf-8", "replace").split())
        except BlockingIOError:
            return ""

    def _real_close(self, *arguments: object) -> None:
        # Called once the last reader of the socket is closed, unlike `close`.
        super()._real_close(*arguments)  # type: ignore[misc]
        process, self.process = self.process, None
        if process is None:
            return
        process.terminate()
        try:
            process.wait(_SSH_END_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.stderr is not None:
            process.stderr.close()


def _ssh_command(url: SplitResult, timeout_seconds: float) -> list[str]:
    options = [
        # Nobody is there to answer a question.
        "BatchMode=yes",
        # Its warnings would fill the pipe of a connection that lasts.
        "LogLevel=ERROR",
        f"ConnectTimeout={max(1, round(timeout_seconds))}",
        f"ServerAliveInterval={_SSH_ALIVE_SECONDS}",
        "ServerAliveCountMax=3",
    ]
    return [
        *("ssh", "-T", *(word for option in options for word in ("-o", option))),
        *(("-l", url.username) if url.username else ()),
        *(("-p", str(url.port)) if url.port else ()),
        *("--", url.hostname or "", "docker system dial-stdio"),
    ]


def complaint_of(connection: socket.socket) -> str:
    """Return why a connection ended, if the connection's own program says so; else an empty text."""
    return connection.complaint() if isinstance(connection, _SshConnection) else ""


def _text(error: OSError) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not accepted: {error.verify_message}"
    return error.strerror or str(error)
