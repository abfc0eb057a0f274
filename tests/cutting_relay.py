"""Stands between client and server and breaks connections after so many bytes of answers, wherever in a message that
is."""

import contextlib
import socket
import threading
from abc import ABC, abstractmethod
from collections.abc import Sequence


class Relay(ABC):
    """Listens on loopback at `self.address`. Each connection has a thread, which runs `_serve`."""

    def __init__(self, address: str) -> None:
        host, port = address.split(":")
        self._server_address = (host, int(port))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(near,), daemon=True).start()

    @abstractmethod
    def _serve(self, near: socket.socket) -> None: ...


class CuttingRelay(Relay):
    """Passes connections to `self.address` on to `address`. The first one breaks after as many bytes of answers as the
    first of `cuts`, the second after the second, and so on."""

    def __init__(self, address: str, cuts: Sequence[int]) -> None:
        self.cuts = list(cuts)
        super().__init__(address)

    def _serve(self, near: socket.socket) -> None:
        try:
            far = socket.create_connection(self._server_address)
        except OSError:
            near.close()
            return
        limit = self.cuts.pop(0) if self.cuts else 1 << 60
        threading.Thread(target=self._pass_on, args=(near, far, 1 << 60), daemon=True).start()
        self._pass_on(far, near, limit)

    def _pass_on(self, source: socket.socket, target: socket.socket, limit: int) -> None:
        with contextlib.suppress(OSError):
            while limit > 0 and (data := source.recv(min(limit, 65_536))):
                target.sendall(data)
                limit -= len(data)
        for each in (source, target):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
