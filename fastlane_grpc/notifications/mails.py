"""Mails: one text over SMTP, to one address. What a job or its output contains cannot become a header or a command."""

import asyncio
import socket
import ssl
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from datetime import datetime
from email.headerregistry import Address
from email.message import EmailMessage
from email.policy import SMTP
from email.utils import format_datetime
from functools import partial
from pathlib import Path

import aiosmtplib

from fastlane_grpc.model import Delivery, Execution, Mail, NotificationEvent, Reason, State, told_line, utc_now
from fastlane_grpc.notifications.reply import Reply
from fastlane_grpc.text.redaction import SecretNames
from fastlane_grpc.text.sanitize import one_line

# The maximum time of one attempt, and of each command within it.
TIMEOUT_SECONDS = 60.0
# The maximum time of a farewell after it.
_QUIT_SECONDS = 1.0
_MAX_SUBJECT = 200


@dataclass(frozen=True, slots=True)
class SmtpServer:
    """A mail server. `tls`: "starttls", "tls" from the start, or "off". `user` empty: no login."""

    host: str
    port: int | None
    tls: str
    sender: str
    user: str = ""
    password_file: Path | None = None


class MailSender:
    """A sender of mails. `last_lines` returns the end of an execution's output; None: no log is kept."""

    def __init__(
        self,
        server: SmtpServer | None,
        last_lines: Callable[[str], Awaitable[Sequence[str] | None]],
        *,
        secret_names: SecretNames,
        external_url: str = "",
        timeout_seconds: float = TIMEOUT_SECONDS,
    ) -> None:
        """`server` None: no mail can be sent."""
        self._server = server
        self._last_lines = last_lines
        self._secret_names = secret_names
        self._external_url = external_url
        self._timeout_seconds = timeout_seconds

    async def send(self, delivery: Delivery, attempt: int) -> Reply:
        """Make one attempt to deliver. It ends within a limited time."""
        if self._server is None:
            return Reply(False, "no mail server is configured (smtp_host)")
        try:
            async with AsyncExitStack() as connection, asyncio.timeout(self._timeout_seconds):
                lines = await self._last_lines(delivery.execution.id)
                message = self._message(delivery, lines, self._server.sender)
                return await self._deliver(self._server, message, connection)
        except (TimeoutError, aiosmtplib.SMTPTimeoutError):
            return Reply(False, f"the mail server did not answer within {self._timeout_seconds:g} s")
        except (aiosmtplib.SMTPException, OSError, ValueError) as error:
            return _failure(error)

    def _message(self, delivery: Delivery, lines: Sequence[str] | None, sender: str) -> EmailMessage:
        return mail_of(delivery, lines, sender=sender, secret_names=self._secret_names, external_url=self._external_url)

    async def _deliver(self, server: SmtpServer, message: EmailMessage, connection: AsyncExitStack) -> Reply:
        """Send the message. What is left on `connection` is closed after the attempt."""
        context = None if server.tls == "off" else await asyncio.to_thread(ssl.create_default_context)
        password = None
        if server.password_file is not None:
            password = (await asyncio.to_thread(server.password_file.read_text, "utf-8")).rstrip("\r\n")
        client = aiosmtplib.SMTP(
            hostname=server.host,
            port=server.port,
            username=server.user or None,
            password=password,
            use_tls=server.tls == "tls",
            start_tls=server.tls == "starttls",
            tls_context=context,
            # Without a name, the library asks a name server for one.
            local_hostname=socket.gethostname(),
            timeout=self._timeout_seconds,
        )
        connection.push_async_exit(partial(_close, client))
        await client.connect()
        _, answer = await client.send_message(message)
        return Reply(True, answer)


async def _close(client: aiosmtplib.SMTP, kind: type[BaseException] | None, error: object, trace: object) -> None:
    """End a connection. The result of the attempt is known by now: whatever the server answers to a farewell, or how
    long that takes, the mail is accepted or refused."""
    if kind is None or issubclass(kind, aiosmtplib.SMTPResponseException | aiosmtplib.SMTPRecipientsRefused):
        with suppress(aiosmtplib.SMTPException, OSError):
            await client.quit(timeout=_QUIT_SECONDS)
    client.close()


def mail_of(
    delivery: Delivery,
    lines: Sequence[str] | None,
    *,
    sender: str,
    secret_names: SecretNames,
    external_url: str = "",
    now: datetime | None = None,
) -> EmailMessage:
    """Return the mail of a delivery. `lines`: the end of the output; None: no log is kept."""
    mail = delivery.notification.target
    assert isinstance(mail, Mail), "a webhook has another sender"
    message = EmailMessage(policy=SMTP)
    message["From"] = Address(addr_spec=sender)
    message["To"] = Address(addr_spec=mail.to[0])
    message["Subject"] = one_line(mail.subject or _headline(delivery), _MAX_SUBJECT)
    message["Date"] = format_datetime(now or utc_now())
    # The same in each attempt: mail programs show one mail.
    message["Message-ID"] = f"<{delivery.id}@{sender.rpartition('@')[2]}>"
    # No out-of-office reply is wanted.
    message["Auto-Submitted"] = "auto-generated"
    message.set_content(_text(delivery, lines, external_url, secret_names), cte="quoted-printable")
    return message


def _headline(delivery: Delivery) -> str:
    state = delivery.ended_state.name.replace("_", " ").lower()
    return f"{delivery.job.task_id}: {state}{_what_ended(delivery)}"


def _what_ended(delivery: Delivery) -> str:
    if delivery.event is NotificationEvent.ATTEMPT_ENDED:
        return f" (attempt {delivery.execution.attempt})"
    return ""


def _text(delivery: Delivery, lines: Sequence[str] | None, external_url: str, secret_names: SecretNames) -> str:
    job, execution = delivery.job, delivery.execution
    facts = [
        ("task", job.task_id),
        ("job", job.id),
        ("execution", f"{execution.id} (run {execution.run}, attempt {execution.attempt})"),
        ("state", delivery.ended_state.name),
        ("why", _why(delivery)),
        ("host", execution.host),
        ("started", _time(execution.times.start_time)),
        ("ended", _time(execution.times.end_time)),
        ("labels", ", ".join(f"{name}={value}" for name, value in sorted(delivery.labels.items()))),
        ("details", f"{external_url}/jobs/{job.id}" if external_url else ""),
    ]
    text = "".join(f"{name + ':':<11}{told_line(secret_names.mask(value))}\n" for name, value in facts if value)
    return f"{told_line(_headline(delivery))}\n\n{text}\n{_output(execution, lines)}"


def _why(delivery: Delivery) -> str:
    outcome = delivery.execution.outcome
    if delivery.event is NotificationEvent.JOB_ENDED:
        outcome = delivery.job.outcome or outcome
    if outcome is None:
        return ""
    reason = "" if outcome.reason is Reason.UNSPECIFIED else outcome.reason.name
    code = (
        "" if outcome.exit_code is None or delivery.ended_state is State.SUCCEEDED else f"exit code {outcome.exit_code}"
    )
    return ", ".join(filter(None, [reason, code, outcome.detail]))


def _output(execution: Execution, lines: Sequence[str] | None) -> str:
    if lines is None:
        return "Its output is not kept.\n" if execution.times.start_time else "Its container was not started.\n"
    if not lines:
        return "It printed nothing.\n"
    return "The end of its output:\n\n" + "".join(f"  {line}\n" for line in lines)


def _time(time: datetime | None) -> str:
    return "" if time is None else f"{time:%Y-%m-%d %H:%M:%S} UTC"


def _failure(error: Exception) -> Reply:
    if isinstance(error, aiosmtplib.SMTPRecipientsRefused):
        # The mail has one recipient.
        [refused] = error.recipients
        return _answer(refused.code, refused.message, "the mail server refuses the address")
    if isinstance(error, aiosmtplib.SMTPAuthenticationError):
        # Nothing that the receiver or the notification is to blame for.
        return Reply(False, f"the mail server refuses the login: {error.code} {error.message}")
    if isinstance(error, aiosmtplib.SMTPSenderRefused | aiosmtplib.SMTPDataError):
        return _answer(error.code, error.message, "the mail server refuses the mail")
    if isinstance(error, aiosmtplib.SMTPResponseException):
        # The library itself has codes below 0, for answers that are none.
        code = f"{error.code} " if error.code > 0 else ""
        return Reply(False, f"the mail server cannot be used: {code}{error.message}")
    return Reply(False, f"the mail server cannot be used: {error}")


def _answer(code: int, words: str, what: str) -> Reply:
    """Return the reply of a mail server: a code from 500 on is for good."""
    return Reply(False, f"{what}: {code} {words}", rejected=code >= 500)
