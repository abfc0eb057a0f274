"""An SMTP server on the engine's first bridge, which containers reach."""

import email
import queue
import socket
from contextlib import closing
from email.message import EmailMessage
from email.policy import default
from typing import Any, Self

from aiosmtpd.controller import Controller

BRIDGE = "172.17.0.1"


class Mails:
    """Takes every mail, on a free port."""

    def __init__(self) -> None:
        # In the order in which they came.
        self.received: queue.SimpleQueue[EmailMessage] = queue.SimpleQueue()
        with closing(socket.create_server((BRIDGE, 0))) as listener:
            self.port: int = listener.getsockname()[1]
        self._controller = Controller(self, hostname=BRIDGE, port=self.port)

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:  # noqa: N802 -- the library's name
        self.received.put(email.message_from_bytes(envelope.content, EmailMessage, policy=default))
        return "250 OK"

    def __enter__(self) -> Self:
        self._controller.start()
        return self

    def __exit__(self, *raised: object) -> None:
        self._controller.stop()
