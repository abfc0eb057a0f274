"""The certificate of a server: read from files, checked, and read again when the files change.

Open connections keep the certificate that they began with. Files that changed and do not fit together leave the last
good certificate in force: a renewal writes one file after the other."""

import re
import ssl
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import structlog

from fastlane_grpc.errors import CannotServe

log = structlog.get_logger(__name__)

_IN_PEM = re.compile(rb"-----BEGIN CERTIFICATE-----[^-]+-----END CERTIFICATE-----", re.ASCII)

# Device, inode, size and time of change of each file.
_Stamps = Sequence[tuple[int, int, int, int]]


@dataclass(frozen=True, slots=True)
class CertificateFiles:
    """The files of a server's certificate chain and key in PEM, and of the authorities of clients. With these, each
    client must have a certificate."""

    cert: Path
    key: Path
    client_ca: Path | None = None

    @property
    def settings(self) -> Sequence[tuple[str, Path]]:
        """The files by the names of their settings."""
        named = [("tls_cert", self.cert), ("tls_key", self.key)]
        return [*named, ("tls_client_ca", self.client_ca)] if self.client_ca else named


@dataclass(frozen=True, slots=True)
class Certificate:
    """A certificate whose files fit together. `context` is for the connections that begin now."""

    chain: bytes
    key: bytes
    client_ca: bytes | None
    context: ssl.SSLContext

    @property
    def public(self) -> str:
        """The certificates of the chain in PEM. A key that is in the same file is left out."""
        return certificates_in(self.chain)


class Certificates:
    """The certificate in force. May be used on any thread."""

    def __init__(self, files: CertificateFiles) -> None:
        """CannotServe: a file cannot be read, or the files do not fit together."""
        self.files = files
        self._lock = threading.Lock()
        # The last fault that was logged.
        self._fault = ""
        try:
            self._stamps = self._read_stamps()
            self._certificate = _load(files)
        except _Unusable as error:
            raise CannotServe(str(error)) from error

    @property
    def mutual(self) -> bool:
        """Whether clients must have a certificate."""
        return self.files.client_ca is not None

    def current(self) -> Certificate:
        """Return the certificate for a new connection."""
        with self._lock:
            try:
                stamps = self._read_stamps()
                if stamps != self._stamps:
                    # Set first: a fault is logged once for each change.
                    self._stamps = stamps
                    self._certificate = _load(self.files)
                    self._fault = ""
                    log.info("the TLS certificate was read again", tls_cert=str(self.files.cert))
            except _Unusable as error:
                if str(error) != self._fault:
                    log.warning(f"the TLS certificate was not read again: {error}; the last one stays in force")
                self._fault = str(error)
            return self._certificate

    def _read_stamps(self) -> _Stamps:
        return [_stamp(name, path) for name, path in self.files.settings]


def certificates_in(content: bytes) -> str:
    """Return the certificates of a file in PEM, and nothing else of it."""
    return "".join(f"{found.decode('ascii')}\n" for found in _IN_PEM.findall(content))


def read_authorities(setting: str, path: Path) -> str:
    """Return the certificates of a file in PEM, by which others know this server. Raises CannotServe."""
    try:
        found = certificates_in(path.read_bytes())
    except OSError as error:
        raise CannotServe(str(_unreadable(setting, path, error))) from error
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=found)
    except (ssl.SSLError, ValueError) as error:
        raise CannotServe(f"{setting}, {path}, has no certificate in PEM (-----BEGIN CERTIFICATE-----)") from error
    return found


class _Unusable(Exception):
    """Files that make no certificate; the message names the setting."""


def _stamp(name: str, path: Path) -> tuple[int, int, int, int]:
    try:
        found = path.stat()
    except OSError as error:
        raise _unreadable(name, path, error) from error
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def _unreadable(name: str, path: Path, error: OSError) -> _Unusable:
    return _Unusable(f"cannot read {name}, {path}: {error.strerror}; the server's user must be able to read it")


def _load(files: CertificateFiles) -> Certificate:
    contents = {}
    for name, path in files.settings:
        try:
            contents[name] = path.read_bytes()
        except OSError as error:
            raise _unreadable(name, path, error) from error
    client_ca = contents.get("tls_client_ca")
    context = _context(files, client_ca)
    return Certificate(contents["tls_cert"], contents["tls_key"], client_ca, context)


def _context(files: CertificateFiles, client_ca: bytes | None) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_CIPHER_SERVER_PREFERENCE
    # A resumed session would skip the check of the client's certificate, whose authority may be gone by then.
    context.options |= ssl.OP_NO_TICKET
    context.num_tickets = 0
    context.set_alpn_protocols(["http/1.1"])
    try:
        # Without a password OpenSSL would ask for one at the terminal.
        context.load_cert_chain(files.cert, files.key, password=lambda: "")
    except (ssl.SSLError, OSError, ValueError) as error:
        raise _Unusable(_chain_fault(files, error)) from error
    if client_ca is not None:
        context.verify_mode = ssl.CERT_REQUIRED
        try:
            context.load_verify_locations(cadata=client_ca.decode("ascii"))
        except (ssl.SSLError, ValueError) as error:
            raise _Unusable(
                f"tls_client_ca, {files.client_ca}, has no certificate in PEM (-----BEGIN CERTIFICATE-----)"
            ) from error
    return context


def _chain_fault(files: CertificateFiles, error: Exception) -> str:
    reason = getattr(error, "reason", None)
    if reason == "KEY_VALUES_MISMATCH":
        return f"tls_key, {files.key}, is not the key of tls_cert, {files.cert}"
    try:
        text = files.key.read_text(errors="replace")
    except OSError as unreadable:
        return str(_unreadable("tls_key", files.key, unreadable))
    if "ENCRYPTED" in text:
        return f"tls_key, {files.key}, has a passphrase; give a key without one"
    if "PRIVATE KEY-----" not in text:
        return f"tls_key, {files.key}, has no private key in PEM (-----BEGIN PRIVATE KEY-----)"
    detail = f": {reason.replace('_', ' ').lower()}" if reason else ""
    return f"tls_cert, {files.cert}, and tls_key, {files.key}, are no certificate and key in PEM{detail}"
