"""Receivers of notifications on loopback: an HTTP server and an SMTP server that do what a test says."""

import asyncio
import json
import ssl
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from email import message_from_bytes
from email.message import EmailMessage
from email.policy import default
from typing import Any

from aiosmtpd.controller import UnthreadedController
from aiosmtpd.smtp import AuthResult, LoginPassword

OK = b"HTTP/1.1 204 No Content\r\n\r\n"


@dataclass(frozen=True)
class Post:
    """A request that a receiver got."""

    path: str
    headers: Mapping[str, str]
    body: bytes

    @property
    def id(self) -> str:
        return self.headers["webhook-id"]

    @property
    def json(self) -> Any:
        return json.loads(self.body)


Answer = Callable[[Post, asyncio.StreamWriter], Awaitable[None]]


async def accept(post: Post, writer: asyncio.StreamWriter) -> None:
    writer.write(OK)


def answer_with(*answers: bytes) -> Answer:
    """Answer with these, one after another, and with the last one from then on."""
    left = list(answers)

    async def answer(post: Post, writer: asyncio.StreamWriter) -> None:
        writer.write(left.pop(0) if len(left) > 1 else left[0])

    return answer


async def hang(post: Post, writer: asyncio.StreamWriter) -> None:
    await asyncio.Event().wait()


@dataclass
class HttpReceiver:
    """A receiver of webhooks. `answer` says what it does with each request."""

    answer: Answer = accept
    context: ssl.SSLContext | None = None
    posts: list[Post] = field(default_factory=list)
    # Requests that were read and not answered.
    open: int = 0

    async def __aenter__(self) -> "HttpReceiver":
        self.changed = asyncio.Condition()
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=self.context)
        self.port = int(self._server.sockets[0].getsockname()[1])
        self._tasks: set[asyncio.Task[Any]] = set()
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    @property
    def url(self) -> str:
        return f"http{'s' if self.context else ''}://127.0.0.1:{self.port}/hook"

    async def received(self, count: int) -> list[Post]:
        """Return the requests once there are so many."""
        async with self.changed:
            await self.changed.wait_for(lambda: len(self.posts) >= count)
        return self.posts

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task
        self._tasks.add(task)
        try:
            with suppress(ConnectionError, asyncio.IncompleteReadError):
                post = await _read(reader)
                self.open += 1
                async with self.changed:
                    self.posts.append(post)
                    self.changed.notify_all()
                await self.answer(post, writer)
                await writer.drain()
        finally:
            self.open -= 1
            self._tasks.discard(task)
            writer.close()


async def _read(reader: asyncio.StreamReader) -> Post:
    head = (await reader.readuntil(b"\r\n\r\n")).decode()
    first, *lines = head.strip().split("\r\n")
    headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
    return Post(first.split(" ")[1], headers, await reader.readexactly(int(headers["content-length"])))


@dataclass
class MailReceiver:
    """A mail server with STARTTLS and a login. `refusals`: what it answers to a command, by the command's name."""

    certificates: tuple[str, str] | None = None
    login: tuple[str, str] | None = None
    refusals: dict[str, str] = field(default_factory=dict)
    mails: list[EmailMessage] = field(default_factory=list)
    recipients: list[str] = field(default_factory=list)
    # Called with a command before it is answered.
    before: Callable[[str], Awaitable[None]] | None = None

    async def __aenter__(self) -> "MailReceiver":
        self.changed = asyncio.Condition()
        context = None
        if self.certificates:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*self.certificates)
        self._controller = UnthreadedController(
            self,
            hostname="127.0.0.1",
            port=0,
            loop=asyncio.get_running_loop(),
            tls_context=context,
            require_starttls=context is not None,
            auth_required=self.login is not None,
            authenticator=self._authenticate if self.login else None,
        )
        server: Any = await self._controller._create_server()
        self._controller.server = server
        self.port = int(server.sockets[0].getsockname()[1])
        return self

    async def __aexit__(self, *_: object) -> None:
        self._controller.server.close()

    async def received(self, count: int) -> list[EmailMessage]:
        """Return the mails once there are so many."""
        async with self.changed:
            await self.changed.wait_for(lambda: len(self.mails) >= count)
        return self.mails

    def _authenticate(self, server: Any, session: Any, envelope: Any, mechanism: str, data: Any) -> AuthResult:
        given = data.login.decode(), data.password.decode() if isinstance(data, LoginPassword) else ""
        return AuthResult(success=given == self.login, handled=False)

    async def _asked(self, command: str) -> str | None:
        if self.before:
            await self.before(command)
        return self.refusals.get(command)

    async def handle_RCPT(self, server: Any, session: Any, envelope: Any, address: str, options: Any) -> str:  # noqa: N802
        if refusal := await self._asked("RCPT"):
            return refusal
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_QUIT(self, server: Any, session: Any, envelope: Any) -> str:  # noqa: N802
        return await self._asked("QUIT") or "221 Bye"

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:  # noqa: N802
        if refusal := await self._asked("DATA"):
            return refusal
        message = message_from_bytes(envelope.content, policy=default)
        assert isinstance(message, EmailMessage)
        async with self.changed:
            self.mails.append(message)
            self.recipients += envelope.rcpt_tos
            self.changed.notify_all()
        return "250 queued"
