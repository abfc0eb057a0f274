"""A door before an engine's socket: shut, frozen, or made to lose an answer, to refuse, or to tell other events than
the engine's."""

import contextlib
import json
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass
class Refusing:
    """So many requests with `request` in them are answered with this message; `carried_out`: by the engine all the
    same."""

    request: bytes
    message: str
    carried_out: bool = False
    times: int = 1
    status: int = 500

    def takes(self, request: bytes) -> bool:
        taken = self.times > 0 and self.request in request
        self.times -= taken
        return taken

    @property
    def answer(self) -> bytes:
        body = json.dumps({"message": self.message}).encode()
        return b"HTTP/1.0 %d Refused\r\nContent-Length: %d\r\n\r\n%b" % (self.status, len(body), body)


class Proxy:
    """Listens at `path` and passes on what comes, both ways."""

    def __init__(self, path: Path, engine_path: str) -> None:
        self.path = path
        self.address = f"unix://{path}"
        # A request with this in it is passed on, and its connection cut when the answer comes.
        self.lose_answer_to = b""
        self.lost = threading.Event()
        self.refusing: Refusing | None = None
        # What comes of the engine's events, as it is passed on.
        self.alter: Callable[[bytes], bytes] = lambda events: events
        self._engine_path = engine_path
        self._listeners: set[socket.socket] = set()
        self._open: set[socket.socket] = set()
        self._flowing = threading.Event()
        self._flowing.set()
        self._lock = threading.Lock()
        self.open()

    def open(self) -> None:
        self.path.unlink(missing_ok=True)
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(self.path))
        self._listener.listen(64)
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def shut(self) -> None:
        """As if the engine were killed: nothing listens, and every connection breaks."""
        self._flowing.set()
        _cut(self._listener)
        self.path.unlink(missing_ok=True)
        with self._lock:
            for connection in self._open:
                _cut(connection)
            self._open.clear()

    def freeze(self) -> None:
        """As if the engine were stopped: connections are taken, and nothing comes of them."""
        self._flowing.clear()

    def thaw(self) -> None:
        self._flowing.set()

    def say(self, events: bytes) -> None:
        """As if the engine told these events, to all who listen to it."""
        with self._lock:
            listeners = list(self._listeners)
        assert listeners
        for client in listeners:
            client.sendall(events)

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            engine = socket.socket(socket.AF_UNIX)
            engine.connect(self._engine_path)
            with self._lock:
                self._open |= {client, engine}
            losing = threading.Event()
            threading.Thread(target=self._pass_on, args=(client, engine, losing, False), daemon=True).start()
            threading.Thread(target=self._pass_on, args=(engine, client, losing, True), daemon=True).start()

    def _pass_on(self, source: socket.socket, target: socket.socket, losing: threading.Event, answers: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65_536):
                self._flowing.wait()
                if not answers and b"/events?" in data:
                    with self._lock:
                        self._listeners.add(source)
                elif answers and target in self._listeners:
                    data = self.alter(data)
                if answers and losing.is_set():
                    if self.refusing:
                        target.sendall(self.refusing.answer)
                    self.lost.set()
                    break
                if not answers and self.lose_answer_to and self.lose_answer_to in data:
                    losing.set()
                if not answers and self.refusing and self.refusing.takes(data):
                    if not self.refusing.carried_out:
                        source.sendall(self.refusing.answer)
                        break
                    losing.set()
                target.sendall(data)
        with self._lock:
            self._listeners -= {source, target}
        _cut(target)


def _cut(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
    connection.close()
