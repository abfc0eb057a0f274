"""Servers of a test on the loopback addresses of nodes: there, as on the machine itself, images come without TLS."""

import ctypes
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import ThreadingHTTPServer
from typing import TYPE_CHECKING

from tests.cluster.node import Node
from tests.registry import Registry

if TYPE_CHECKING:
    from tests.cluster.running import Cluster

_NEW_NETWORK = 0x40000000


@contextmanager
def on_nodes(registry: Registry, cluster: "Cluster") -> Iterator[None]:
    """Serve the registry under its address on each node, too."""
    handler = registry.server.RequestHandlerClass
    servers = []
    try:
        for node in cluster.nodes.values():
            server = ThreadingHTTPServer(("127.0.0.1", registry.server.server_port), handler, bind_and_activate=False)
            server.daemon_threads = True
            server.socket.close()
            server.socket = _listener(node, registry.server.server_port)
            servers.append(server)
            threading.Thread(target=server.serve_forever, daemon=True).start()
        yield
    finally:
        for server in servers:
            server.shutdown()
            server.server_close()


def _listener(node: Node, port: int) -> socket.socket:
    """Return a socket that listens on the loopback address of a node. A socket stays in the network it was made in."""
    made: list[socket.socket] = []

    def make() -> None:
        network = os.open(f"/proc/{node.init}/ns/net", os.O_RDONLY)
        try:
            # Of this thread alone.
            if ctypes.CDLL(None, use_errno=True).setns(network, _NEW_NETWORK):
                raise OSError(ctypes.get_errno(), "the network of a node cannot be entered")
            made.append(socket.create_server(("127.0.0.1", port)))
        finally:
            os.close(network)

    thread = threading.Thread(target=make)
    thread.start()
    thread.join()
    assert made, f"nothing listens on {node.name}"
    return made[0]
