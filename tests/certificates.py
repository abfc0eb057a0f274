"""Authorities and certificates in PEM, as a test needs them."""

import subprocess
from dataclasses import dataclass
from pathlib import Path

from tests.tools import tool


@dataclass(frozen=True, slots=True)
class Pair:
    """The files of a certificate and of its key."""

    cert: Path
    key: Path


class Authority:
    """An authority in a directory: its certificate, and certificates that it signs."""

    def __init__(self, directory: Path, name: str = "authority") -> None:
        self._directory = directory / name
        self._directory.mkdir()
        self.pair = Pair(self._directory / "ca.pem", self._directory / "ca.key")
        _request(self.pair, name, "-addext", "keyUsage=critical,keyCertSign")

    @property
    def cert(self) -> Path:
        return self.pair.cert

    def sign(self, name: str, *, days: int = 1, names: str = "DNS:localhost,IP:127.0.0.1") -> Pair:
        """Return a certificate with this common name."""
        pair = Pair(self._directory / f"{name}.pem", self._directory / f"{name}.key")
        by = ("-CA", self.cert, "-CAkey", self.pair.key, "-addext", f"subjectAltName={names}")
        _request(pair, name, *by, "-addext", "basicConstraints=critical,CA:FALSE", days=days)
        return pair


def _request(pair: Pair, name: str, *more: str | Path, days: int = 1) -> None:
    curve = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    files = ("-keyout", pair.key, "-out", pair.cert)
    command = [tool("openssl"), "req", "-x509", *curve, "-days", str(days), "-subj", f"/CN={name}", *files, *more]
    subprocess.run(command, check=True, capture_output=True)
