"""An address to listen on, `HOST:PORT`: whether this process can have it."""

import ipaddress
import socket


def cannot_listen(listen: str) -> OSError | None:
    """Why nobody can listen on the address now; None: it is free. Nothing listens on it afterwards, and no connection
    is taken."""
    host, _, port = listen.rpartition(":")
    try:
        family, kind, protocol, _, place = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as attempt:
            # As a server does: connections of an earlier one that still fade away are not in the way.
            attempt.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            attempt.bind(place)
    except OSError as error:
        return error
    return None


def is_loopback(listen: str) -> bool:
    """Whether only this machine reaches the address. One whose name has no address is reached by nobody."""
    host, _, port = listen.rpartition(":")
    try:
        found = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)
    except OSError:
        return True
    return all(ipaddress.ip_address(str(place[0]).partition("%")[0]).is_loopback for *_, place in found)
