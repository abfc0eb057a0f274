"""nginx, HAProxy and Envoy in front of a server, each with its file from docs/deploy/proxies."""

import os
import re
import socket
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tests.recorder_program import eventually
from tests.remote_engine import listens
from tests.tools import tool

FILES = Path(__file__).parent.parent / "docs" / "deploy" / "proxies"


@dataclass
class ReverseProxy:
    """A proxy on a port of loopback, as its file says but for addresses, certificate and `changes` of its text."""

    name: str
    directory: Path
    certificate: Path
    rpc_port: int
    http_port: int
    changes: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self.port = int(listener.getsockname()[1])
        self.directory.mkdir()
        self._key = self.certificate.with_name("key.pem")
        self._command = _COMMANDS[self.name](self)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def start(self) -> None:
        with (self.directory / "stderr").open("ab") as stderr:
            self._process = subprocess.Popen(
                self._command, stdout=stderr, stderr=stderr, cwd=self.directory, start_new_session=True
            )
        eventually(lambda: listens(self.port) or self._process is None or self._process.poll() is not None)
        assert self._process.poll() is None, self.log

    def kill(self) -> None:
        """As a crash would; nginx and HAProxy have workers, which go too."""
        if self._process:
            os.killpg(self._process.pid, 9)
            self._process.wait()
            self._process = None

    @property
    def log(self) -> str:
        return (self.directory / "stderr").read_text()

    def configuration(self, name: str) -> str:
        """Return the documented file as it is used here."""
        text = (FILES / name).read_text()
        own = {
            "/etc/ssl/fastlane.pem": str(self.certificate),
            "/etc/ssl/fastlane.key": str(self._key),
            "127.0.0.1:7020": f"127.0.0.1:{self.rpc_port}",
            "127.0.0.1:10000": f"127.0.0.1:{self.http_port}",
        }
        for old, new in {**own, **self.changes}.items():
            assert old in text or old not in self.changes, f"{name} has no {old!r}"
            text = text.replace(old, new)
        return text

    def nginx(self) -> list[str | Path]:
        site = re.sub(r"listen 443\b", f"listen {self.address}", self.configuration("nginx.conf"))
        # As a user who may not write where Debian's nginx does.
        places = "".join(f"{each}_temp_path {each};\n" for each in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
        main = f"daemon off;\npid nginx.pid;\nevents {{}}\nhttp {{\naccess_log off;\n{places}{site}}}\n"
        (self.directory / "nginx.conf").write_text(main)
        return [tool("nginx"), "-p", self.directory, "-c", self.directory / "nginx.conf", "-e", "stderr"]

    def haproxy(self) -> list[str | Path]:
        both = self.directory / "both.pem"
        both.write_bytes(self.certificate.read_bytes() + self._key.read_bytes())
        text = self.configuration("haproxy.cfg").replace(str(self.certificate), str(both))
        (self.directory / "haproxy.cfg").write_text(text.replace("bind :443", f"bind {self.address}"))
        return [tool("haproxy"), "-db", "-f", self.directory / "haproxy.cfg"]

    def envoy(self) -> list[str | Path]:
        text = self.configuration("envoy.yaml")
        text = text.replace("address: 0.0.0.0, port_value: 443", f"address: 127.0.0.1, port_value: {self.port}")
        for port in (self.rpc_port, self.http_port):
            standard = {self.rpc_port: 7020, self.http_port: 10000}[port]
            text = text.replace(f"port_value: {standard} ", f"port_value: {port} ")
        (self.directory / "envoy.yaml").write_text(text)
        return [
            *(tool("envoy"), "-c", self.directory / "envoy.yaml", "--concurrency", "1"),
            *("--disable-hot-restart", "--log-level", "warning"),
        ]


_COMMANDS: Mapping[str, Callable[[ReverseProxy], list[str | Path]]] = {
    "nginx": ReverseProxy.nginx,
    "haproxy": ReverseProxy.haproxy,
    "envoy": ReverseProxy.envoy,
}
PROXIES = tuple(_COMMANDS)
