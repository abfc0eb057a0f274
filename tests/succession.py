"""Servers that follow each other over one data directory, each in a process of its own."""

import socket
from contextlib import closing
from pathlib import Path

import docker

from fastlane_grpc.client import Backoff, Client
from fastlane_grpc.client.retries import DEFAULT_BACKOFF
from tests.serving import Server


class Succession:
    """A data directory, the servers over it one after another, all at one address, and a client that outlives them."""

    def __init__(
        self,
        data_dir: Path,
        sdk: docker.DockerClient,
        image: str,
        *,
        backoff: Backoff = DEFAULT_BACKOFF,
        **settings: object,
    ) -> None:
        self.data_dir = data_dir
        self.image = image
        self.sdk = sdk
        self.listen = free_address()
        self.client = Client(self.listen, backoff=backoff)
        self.servers: list[Server] = []
        self._settings = settings

    def server(self, *, kill_at: str = "", **settings: object) -> Server:
        """The next one."""
        self.servers.append(
            Server(self.data_dir, kill_at=kill_at, listen=self.listen, **{**self._settings, **settings})
        )
        return self.servers[-1]


def free_address(host: str = "127.0.0.1") -> str:
    """An address of this machine, by default of loopback, that nobody listens on."""
    with closing(socket.create_server((host, 0))) as listener:
        return f"{host}:{listener.getsockname()[1]}"
