"""TLS of the clients: credentials from files, and what an error of TLS means."""

import socket
import ssl
from os import PathLike
from pathlib import Path
from typing import TypeAlias

import grpc

from fastlane_grpc.client.errors import TlsFailed

FilePath: TypeAlias = str | PathLike[str]

# In place of a file of authorities: those of the system.
SYSTEM = "system"
_PROBE_SECONDS = 2.0
_NO_CERTIFICATE = (
    "the server closes the connection after the handshake: it requires a certificate of its clients that it knows; "
    "see tls_cert and tls_key"
)


def credentials(
    tls_ca: FilePath | None, tls_cert: FilePath | None, tls_key: FilePath | None
) -> grpc.ChannelCredentials | None:
    """Return the credentials of a channel; None without any file: the connection is not encrypted. TlsFailed: a file
    cannot be used."""
    if tls_ca is None and tls_cert is None and tls_key is None:
        return None
    if (tls_cert is None) != (tls_key is None):
        raise _unusable("tls_cert and tls_key go together: give both, or neither")
    authorities = _read("tls_ca", _system_authorities() if tls_ca in {None, SYSTEM} else tls_ca)
    if tls_cert is None or tls_key is None:
        _check(tls_ca, authorities)
        return grpc.ssl_channel_credentials(authorities)
    chain, key = _read("tls_cert", tls_cert), _read("tls_key", tls_key)
    _check(tls_ca, authorities, tls_cert, tls_key)
    return grpc.ssl_channel_credentials(authorities, key, chain)


def advice(address: str, *, encrypted: bool) -> str:
    """Return what is wrong with TLS at an address where a connection failed, and what to do; empty if nothing is known.

    gRPC does not tell: the server has closed the connection."""
    host, _, port = address.rpartition(":")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    # Nothing is sent to the server that it could misuse.
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    try:
        with socket.create_connection((host.strip("[]"), int(port)), _PROBE_SECONDS) as connection:
            with context.wrap_socket(connection) as encrypted_connection:
                if not encrypted:
                    return "the server speaks TLS: give the file of its authority with tls_ca"
                return "" if _speaks(encrypted_connection) else _NO_CERTIFICATE
    except (OSError, ValueError):
        return ""


def _speaks(connection: ssl.SSLSocket) -> bool:
    """Return whether the server sends its first frame, as it does once it accepts a client."""
    try:
        connection.settimeout(_PROBE_SECONDS)
        return bool(connection.recv(1))
    except TimeoutError:
        return True
    except OSError:
        return False


def _unusable(message: str) -> TlsFailed:
    return TlsFailed(message, code=grpc.StatusCode.UNAUTHENTICATED)


def _read(name: str, path: FilePath | None) -> bytes | None:
    if path is None:
        return None
    try:
        return Path(path).expanduser().read_bytes()
    except OSError as error:
        raise _unusable(f"cannot read {name}, {path}: {error.strerror}") from error


def _system_authorities() -> str | None:
    """Return the file of the system's authorities; None: gRPC has a list of its own."""
    return ssl.get_default_verify_paths().cafile


def _check(
    tls_ca: FilePath | None,
    authorities: bytes | None,
    tls_cert: FilePath | None = None,
    tls_key: FilePath | None = None,
) -> None:
    """Raise TlsFailed for files that gRPC could not use: it would only say that it cannot connect."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if authorities is not None and tls_ca not in {None, SYSTEM}:
        try:
            context.load_verify_locations(cadata=authorities.decode("ascii"))
        except (ssl.SSLError, ValueError) as error:
            raise _unusable(f"tls_ca, {tls_ca}, has no certificate in PEM (-----BEGIN CERTIFICATE-----)") from error
    if tls_cert is not None and tls_key is not None:
        try:
            context.load_cert_chain(Path(tls_cert).expanduser(), Path(tls_key).expanduser(), password=lambda: "")
        except (ssl.SSLError, OSError, ValueError) as error:
            if getattr(error, "reason", "") == "KEY_VALUES_MISMATCH":
                raise _unusable(f"tls_key, {tls_key}, is not the key of tls_cert, {tls_cert}") from error
            raise _unusable(
                f"tls_cert, {tls_cert}, and tls_key, {tls_key}, must be a certificate and its key in PEM, without a "
                "passphrase"
            ) from error
