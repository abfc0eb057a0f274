"""Check of an address, `HOST:PORT`, before a server listens on it."""

import ipaddress
import socket


def cannot_listen(listen: str) -> OSError | None:
    """Return the error of listening on the address; None: the address is free. Accepts no connection."""
    try:
        listening_socket(listen).close()
    except OSError as error:
        return error
    return None


def listening_socket(listen: str) -> socket.socket:
    """Return a socket that is bound to the address. OSError."""
    host, _, port = listen.rpartition(":")
    family, kind, protocol, _, address = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)[0]
    bound = socket.socket(family, kind, protocol)
    try:
        # As gRPC does: closed connections of an earlier server do not block the address.
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except OSError:
        bound.close()
        raise
    return bound


def is_loopback(listen: str) -> bool:
    """Return whether only this machine reaches the address. A name without an address counts as loopback."""
    host, _, port = listen.rpartition(":")
    try:
        found = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)
    except OSError:
        return True
    return all(ipaddress.ip_address(str(address[0]).partition("%")[0]).is_loopback for *_, address in found)
