"""An address to listen on, `HOST:PORT`: whether this process can have it."""

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
