"""An engine of a test's own that is reached as one on another machine is: by TLS, or by ssh."""

import os
import shutil
import socket
import subprocess
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from tests.own_engine import OwnEngine
from tests.tools import tool


class TlsEngine:
    """An engine that listens on loopback, and takes clients with a certificate of its authority alone."""

    def __init__(self, directory: Path) -> None:
        self.certificates = directory / "client"
        server = directory / "server"
        make_certificates(self.certificates, server)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"tcp://127.0.0.1:{self._listener.getsockname()[1]}"
        self.engine = OwnEngine(
            "--tlsverify",
            f"--tlscacert={server}/ca.pem",
            f"--tlscert={server}/cert.pem",
            f"--tlskey={server}/key.pem",
            listener=self._listener,
        )

    def close(self) -> None:
        self.engine.remove()
        self._listener.close()


class SshServer:
    """An sshd on loopback that lets one key in, as root, to whom `docker` speaks to the engine at `engine_address`.

    It sees a /etc/passwd, a /etc/shadow and a /run of its own, so that it needs nothing of this machine's.
    `directory` gets a program `ssh` that knows the key: to be first on the PATH.
    """

    def __init__(self, directory: Path, engine_address: str) -> None:
        self.port = free_port()
        self.address = f"ssh://root@127.0.0.1:{self.port}"
        self.programs = directory / "programs"
        self._directory = directory
        for kind in ("host", "client"):
            subprocess.run([tool("ssh-keygen"), "-q", "-t", "ed25519", "-N", "", "-f", directory / kind], check=True)
        shutil.copy(directory / "client.pub", directory / "authorized_keys")
        host_key = (directory / "host.pub").read_text()
        (directory / "known_hosts").write_text(f"[127.0.0.1]:{self.port} {host_key}")
        users = [f"root:*:0:0:root:{directory}:/bin/sh", "sshd:*:65533:65534::/run/sshd:/bin/false"]
        (directory / "passwd").write_text("".join(f"{user}\n" for user in users))
        (directory / "shadow").write_text("root:*:1::::::\n")
        docker = Path(shutil.which("docker") or "docker").parent
        (directory / "sshd_config").write_text(
            f"ListenAddress 127.0.0.1:{self.port}\n"
            f"HostKey {directory}/host\n"
            f"AuthorizedKeysFile {directory}/authorized_keys\n"
            f"SetEnv PATH={docker}:/usr/bin:/bin DOCKER_HOST={engine_address}\n"
            "PermitRootLogin yes\nPasswordAuthentication no\nUsePAM no\nStrictModes no\nPidFile none\n"
        )
        (directory / "ssh_config").write_text(
            f"UserKnownHostsFile {directory}/known_hosts\nIdentityFile {directory}/client\nIdentitiesOnly yes\n"
        )
        self.programs.mkdir()
        ssh = self.programs / "ssh"
        ssh.write_text(f'#!/bin/sh\nexec {tool("ssh")} -F {directory}/ssh_config "$@"\n')
        ssh.chmod(0o755)
        self._start()

    def forget_key(self) -> None:
        (self._directory / "authorized_keys").write_text("")

    def close(self) -> None:
        self._process.terminate()
        self._process.wait(30)

    def _start(self) -> None:
        own = self._directory
        script = (
            f"mount --bind {own}/passwd /etc/passwd && mount --bind {own}/shadow /etc/shadow && "
            f"mount -t tmpfs tmpfs /run && mkdir /run/sshd && exec {tool('sshd')} -D -e -f {own}/sshd_config"
        )
        with (own / "log").open("wb") as log:
            command = ["unshare", "--mount", "--propagation", "private", "sh", "-c", script]
            self._process = subprocess.Popen(command, stdout=log, stderr=log)
        until = time.monotonic() + 30
        while not listens(self.port):
            assert self._process.poll() is None, (own / "log").read_text()
            assert time.monotonic() < until
            time.sleep(0.02)


class SshEngine:
    """An engine behind an sshd."""

    certificates = None

    def __init__(self, directory: Path) -> None:
        with ExitStack() as opened:
            self.engine = OwnEngine()
            opened.callback(self.engine.remove)
            self.server = SshServer(directory, self.engine.address)
            self.address = self.server.address
            opened.pop_all()

    def close(self) -> None:
        self.server.close()
        self.engine.remove()


def make_certificates(client: Path, server: Path) -> None:
    """Make an authority, and with it a certificate for a client and one for a server at 127.0.0.1, each in a directory
    as DOCKER_CERT_PATH is."""
    with tempfile.TemporaryDirectory() as where:
        authority = Path(where)
        _openssl(
            *("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "1"),
            *("-subj", "/CN=a test's authority", "-keyout", authority / "key.pem", "-out", authority / "ca.pem"),
        )
        for directory, extension in (
            (client, "extendedKeyUsage=clientAuth"),
            (server, "subjectAltName=IP:127.0.0.1\nextendedKeyUsage=serverAuth"),
        ):
            directory.mkdir(exist_ok=True)
            shutil.copy(authority / "ca.pem", directory)
            (authority / "extension").write_text(extension)
            _openssl(
                *("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-subj", "/CN=test"),
                *("-keyout", directory / "key.pem", "-out", authority / "request.pem"),
            )
            _openssl(
                *("x509", "-req", "-in", authority / "request.pem", "-days", "1", "-CAcreateserial"),
                *("-CA", authority / "ca.pem", "-CAkey", authority / "key.pem"),
                *("-extfile", authority / "extension", "-out", directory / "cert.pem"),
            )


def _openssl(*arguments: str | Path) -> None:
    subprocess.run([tool("openssl"), *arguments], check=True, capture_output=True)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 5).close()
    except OSError:
        return False
    return True


def owns_engines() -> bool:
    return os.geteuid() == 0 and shutil.which("dockerd") is not None
