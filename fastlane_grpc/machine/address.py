"""Check of an address, `HOST:PORT`, before a server listens on it."""

import ipaddress
import socket


def cannot_listen(listen: str) -> OSError | None:
    """Return the error of listening on the address; None: the address is free. Accepts no connection."""
    host, _, port = listen.rpartition(":")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as attempt:
            # As gRPC does: closed connections of an earlier server do not block the address.
            attempt.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            attempt.bind(address)
    except OSError as error:
        return error
    return None


def is_loopback(listen: str) -> bool:
    """Return whether only this machine reaches the address. A name without an address counts as loopback."""
    host, _, port = listen.rpartition(":")
    try:
        found = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)
    except OSError:
        return True
    return all(ipaddress.ip_address(str(address[0]).partition("%")[0]).is_loopback for *_, address in found)
