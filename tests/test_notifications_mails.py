"""Mails over a real SMTP server: what they say, what a server may do, and that nothing can be smuggled into them."""

import asyncio
import re
import time
from collections.abc import AsyncIterator
from email import message_from_bytes
from email.policy import default
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastlane_grpc.config import ConfigError, Settings
from fastlane_grpc.model import (
    Delivery,
    DeliveryState,
    Execution,
    Job,
    Mail,
    Notification,
    NotificationEvent,
    Outcome,
    Reason,
    Source,
    State,
    Times,
    utc_now,
)
from fastlane_grpc.notifications import LogEnd, MailSender, SmtpServer
from fastlane_grpc.notifications.log_end import LINES, MAX_LINE_CHARACTERS
from fastlane_grpc.notifications.mails import mail_of
from fastlane_grpc.record import RecordWriter
from fastlane_grpc.text.redaction import SecretNames
from fastlane_grpc.text.sanitize import one_line
from tests.notified import Notified, mail
from tests.receivers import MailReceiver
from tests.remote_engine import make_certificates

DELIVERED, FAILED = DeliveryState.DELIVERED, DeliveryState.FAILED
TO = "ops@example.org"


def mail_settings(server: MailReceiver, **settings: Any) -> dict[str, Any]:
    given = {"smtp_host": "127.0.0.1", "smtp_port": server.port, "smtp_from": "fastlane@example.org"}
    return {**given, "smtp_tls": "off", "notify_retries": 1, **settings}


@pytest.fixture
async def server() -> AsyncIterator[MailReceiver]:
    async with MailReceiver() as server:
        yield server


@pytest.fixture
async def house(tmp_path: Path, server: MailReceiver) -> AsyncIterator[Notified]:
    async with Notified(tmp_path, **mail_settings(server, external_url="https://fastlane.example.org")) as house:
        yield house


def print_output(house: Notified, execution_id: str, *output: tuple[Source, bytes]) -> None:
    """Write what the container of an execution printed."""
    path = house.logs.output_path(execution_id)
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = RecordWriter.create(path, execution_id=execution_id, capture="test")
    for number, chunk in enumerate(output):
        writer.write([chunk], time.time_ns() + number)
    writer.seal(None, {}, time.time_ns())
    writer.close()


# ------------------------------------------------------------------------------------------------------- what they say


async def test_a_mail_says_what_ended_why_and_the_end_of_the_output(house: Notified, server: MailReceiver) -> None:
    job = await house.enqueue(mail(TO), labels={"team": "mail"})
    print_output(house, job.execution.id, (Source.STDOUT, b"sending\n"), (Source.STDERR, b"no route to host\n"))
    await house.end_of(job.execution.id)
    [message] = await server.received(1)
    assert (message["From"], message["To"]) == ("fastlane@example.org", TO)
    assert message["Subject"] == "send-mail: failed"
    assert message["Auto-Submitted"] == "auto-generated"
    [delivery] = await house.over()
    assert message["Message-ID"] == f"<{delivery.id}@example.org>"
    text = message.get_content().replace("\r\n", "\n")
    for line in (
        "task:      send-mail",
        f"job:       {job.id}",
        f"execution: {job.execution.id} (run 1, attempt 1)",
        "state:     FAILED",
        "why:       EXIT_CODE, exit code 1",
        "labels:    team=mail",
        f"details:   https://fastlane.example.org/jobs/{job.id}",
    ):
        assert f"{line}\n" in text
    assert text.endswith("The end of its output:\n\n  sending\n  no route to host\n")
    assert (delivery.state, server.recipients) == (DELIVERED, [TO])


async def test_each_address_gets_a_mail_of_its_own(house: Notified, server: MailReceiver) -> None:
    await house.end(mail("a@example.org", "b@example.org", subject="Grüße"))
    messages = await server.received(2)
    assert sorted(message["To"] for message in messages) == ["a@example.org", "b@example.org"]
    assert {message["Subject"] for message in messages} == {"Grüße"}
    assert "Its output is not kept." in messages[0].get_content()


async def test_a_job_that_never_ran_says_so(house: Notified, server: MailReceiver) -> None:
    job = await house.enqueue(mail(TO))
    await house.store.stop(job.id, grace=None, note="not needed")
    [message] = await server.received(1)
    assert "Its container was not started." in message.get_content()
    assert "stopped while it was queued: not needed" in message.get_content()


async def test_long_output_is_cut_to_its_last_lines(tmp_path: Path) -> None:
    async with Notified(tmp_path) as house:
        job = await house.enqueue()
        many = b"".join(b"line %d\n" % number for number in range(100_000))
        print_output(
            house,
            job.execution.id,
            *((Source.STDOUT, many[at : at + 60_000]) for at in range(0, len(many), 60_000)),
            *((Source.STDERR, b"x" * 60_000) for _ in range(50)),
            (Source.STDERR, b"\n"),
            (Source.STDOUT, b"password=hunter2 \x1b[31mred\x1b[0m\r\nthe last"),
        )
        end = LogEnd(house.logs, SecretNames())
        lines = await end.lines(job.execution.id)
        end.close()
    assert lines
    assert len(lines) == LINES
    assert lines[-1] == "the last"
    assert lines[-2] == "password=***  [31mred [0m"
    assert [line for line in lines if line.startswith("x")] == ["x" * (MAX_LINE_CHARACTERS - 1) + "…"]
    assert lines[0].startswith("line 99")


async def test_a_mail_hides_what_the_setting_calls_a_secret(tmp_path: Path, server: MailReceiver) -> None:
    names = {"secret_names": SecretNames.read("default,pin")}
    async with Notified(tmp_path, **mail_settings(server, **names)) as house:
        job = await house.enqueue(mail(TO), labels={"pin": "1234", "args": "--pin=1234"})
        print_output(house, job.execution.id, (Source.STDOUT, b"PIN=1234\n"))
        await house.end_of(job.execution.id)
        [message] = await server.received(1)
    text = message.get_content()
    assert "1234" not in text
    assert "PIN=***" in text


async def test_a_damaged_record_does_not_keep_a_mail_back(house: Notified, server: MailReceiver) -> None:
    job = await house.enqueue(mail(TO))
    path = house.logs.output_path(job.execution.id)
    path.parent.mkdir(parents=True)
    path.write_bytes(b"\xff" * 200_000)
    await house.end_of(job.execution.id)
    await server.received(1)


# ------------------------------------------------------------------------------------------------ what a server may do


async def test_the_connection_is_encrypted_and_the_login_is_sent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_certificates(tmp_path / "client", tmp_path / "server")
    certificates = str(tmp_path / "server" / "cert.pem"), str(tmp_path / "server" / "key.pem")
    password = tmp_path / "password"
    async with MailReceiver(certificates, ("fastlane", "hunter2")) as server:
        login = {"smtp_tls": "starttls", "smtp_user": "fastlane", "smtp_password_file": password}
        async with Notified(tmp_path, **mail_settings(server, **login)) as house:
            await house.end(mail(TO))
            assert "No such file" in (await house.over())[0].detail
            password.write_text("wrong\n")
            await house.end(mail(TO))
            assert "certificate" in (await house.over(2))[1].detail.lower(), "the authority is not known"
            monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "server" / "ca.pem"))
            await house.end(mail(TO))
            refused = (await house.over(3))[2]
            assert refused.detail.startswith("the mail server refuses the login: 535")
            assert refused.attempts == 2, "the login may be mended"
            password.write_text("hunter2\n")
            await house.end(mail(TO))
            await server.received(1)
            found = await house.over(4)
    assert [delivery.state for delivery in found] == [FAILED, FAILED, FAILED, DELIVERED]
    assert not any("hunter2" in delivery.detail for delivery in found)


async def test_a_server_without_starttls_gets_nothing(tmp_path: Path, server: MailReceiver) -> None:
    async with Notified(tmp_path, **mail_settings(server, smtp_tls="starttls")) as house:
        await house.end(mail(TO))
        [delivery] = await house.over()
    assert delivery.state is FAILED
    assert "STARTTLS" in delivery.detail
    assert not server.mails


@pytest.mark.parametrize(
    ("refusals", "attempts", "words"),
    [
        ({"RCPT": "550 no such user"}, 1, "the mail server refuses the address: 550 no such user"),
        ({"RCPT": "450 try later"}, 2, "the mail server refuses the address: 450 try later"),
        ({"DATA": "554 spam"}, 1, "the mail server refuses the mail: 554 spam"),
        ({"DATA": "452 no space"}, 2, "the mail server refuses the mail: 452 no space"),
    ],
)
async def test_a_refusal_for_good_is_not_repeated(
    house: Notified, server: MailReceiver, refusals: dict[str, str], attempts: int, words: str
) -> None:
    server.refusals = refusals
    await house.end(mail(TO))
    [delivery] = await house.over()
    assert (delivery.state, delivery.attempts, delivery.detail) == (FAILED, attempts, words)


async def test_a_server_that_drops_the_connection_is_asked_again(house: Notified, server: MailReceiver) -> None:
    async def drop(command: str) -> None:
        server.before = None
        raise ConnectionResetError

    server.before = drop
    await house.end(mail(TO))
    await server.received(1)
    [delivery] = await house.over()
    assert (delivery.state, delivery.attempts) == (DELIVERED, 2)


async def test_a_server_that_hangs_costs_a_limited_time(server: MailReceiver) -> None:
    async def hang(command: str) -> None:
        await asyncio.Event().wait()

    async def nothing(execution_id: str) -> None:
        return None

    server.before = hang
    smtp = SmtpServer("127.0.0.1", server.port, "off", "fastlane@example.org")
    reply = await MailSender(smtp, nothing, secret_names=SecretNames(), timeout_seconds=0.3).send(delivery_of(), 1)
    assert (reply.accepted, reply.rejected) == (False, False)
    assert reply.detail == "the mail server did not answer within 0.3 s"


async def test_a_server_that_hangs_at_the_farewell_has_answered(server: MailReceiver) -> None:
    async def hang_at_the_end(command: str) -> None:
        if command == "QUIT":
            await asyncio.Event().wait()

    async def nothing(execution_id: str) -> None:
        return None

    async with MailReceiver(refusals={"RCPT": "550 no such user"}) as other:
        replies = []
        for receiver in (server, other):
            receiver.before = hang_at_the_end
            smtp = SmtpServer("127.0.0.1", receiver.port, "off", "fastlane@example.org")
            replies.append(MailSender(smtp, nothing, secret_names=SecretNames()).send(delivery_of(), 1))
        accepted, refused = await asyncio.gather(*replies)
    assert (accepted.accepted, len(server.mails)) == (True, 1)
    assert (refused.accepted, refused.rejected) == (False, True)
    assert refused.detail == "the mail server refuses the address: 550 no such user"


async def test_a_server_that_is_busy_is_asked_again_and_told_in_its_words(tmp_path: Path) -> None:
    async def busy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"421 too many connections\r\n")

    listening = await asyncio.start_server(busy, "127.0.0.1", 0)
    port = listening.sockets[0].getsockname()[1]
    given = {"smtp_host": "127.0.0.1", "smtp_port": port, "smtp_from": "fastlane@example.org", "smtp_tls": "off"}
    async with listening, Notified(tmp_path, notify_retries=1, **given) as house:
        await house.end(mail(TO))
        [delivery] = await house.over()
    assert (delivery.state, delivery.attempts) == (FAILED, 2)
    assert delivery.detail == "the mail server cannot be used: 421 too many connections"


async def test_a_server_that_is_not_there_is_asked_again(tmp_path: Path, server: MailReceiver) -> None:
    async with Notified(tmp_path, **mail_settings(server, smtp_port=1)) as house:
        await house.end(mail(TO))
        [delivery] = await house.over()
    assert (delivery.state, delivery.attempts) == (FAILED, 2)
    assert "cannot be used" in delivery.detail


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"notify_urls": ("http://169.254.169.254/",)}, "notify_urls has a URL that cannot be used: 169.254.169.254"),
        ({"smtp_host": "mail"}, "smtp_host is set, and smtp_from is not"),
        ({"notify_mails": (TO,)}, "notify_mails is set, and smtp_host is not"),
        ({"smtp_host": "mail", "smtp_from": TO, "smtp_user": "u"}, "smtp_user and smtp_password_file go together"),
        (
            {"smtp_host": "m", "smtp_from": TO, "smtp_user": "u", "smtp_password_file": Path("/p"), "smtp_tls": "off"},
            "smtp_user cannot be combined with smtp_tls = off",
        ),
    ],
)
def test_settings_that_cannot_be_together_are_refused(given: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Settings(**given)


# ------------------------------------------------------------------------------------------------- nothing is smuggled


def delivery_of(
    *, subject: str = "", detail: str = "", host: str = "", labels: dict[str, str] | None = None
) -> Delivery:
    now = utc_now()
    execution = Execution(
        "e", "j", "task", State.FAILED, Times(now, now), now, outcome=Outcome(Reason.EXIT_CODE, detail, 1), host=host
    )
    job = Job("j", "task", None, execution, now, State.FAILED, outcome=execution.outcome, end_time=now)
    notification = Notification(Mail((TO,), subject))
    event, state = NotificationEvent.RUN_ENDED, DeliveryState.PENDING
    return Delivery("d", event, State.FAILED, notification, job, labels or {}, state, 0, now)


ANY_TEXT = st.text(st.characters(codec=None, exclude_categories=()), max_size=300) | st.sampled_from(
    ["\r\nBcc: evil@example.org", "\n.\r\nMAIL FROM:<x@y>", "a\rb\x85c\u2028d", "\r\n\r\n<html>", "\x00\x1b[2J"]
)


@given(subject=ANY_TEXT, detail=ANY_TEXT, label=ANY_TEXT, lines=st.lists(ANY_TEXT, max_size=5))
@settings(max_examples=100)
def test_no_text_becomes_a_header_or_a_command(subject: str, detail: str, label: str, lines: list[str]) -> None:
    delivery = delivery_of(subject=subject, detail=detail, host=label, labels={"l": label})
    # As LogEnd reads them.
    shown = [one_line(line, MAX_LINE_CHARACTERS) for line in lines]
    data = mail_of(delivery, shown, sender="fastlane@example.org", secret_names=SecretNames()).as_bytes()
    parsed = message_from_bytes(data, policy=default)
    assert sorted(parsed.keys()) == sorted(
        [
            *("From", "To", "Subject", "Date", "Message-ID", "Auto-Submitted"),
            *("Content-Type", "Content-Transfer-Encoding", "MIME-Version"),
        ]
    )
    assert (parsed["To"], parsed["From"]) == (TO, "fastlane@example.org")
    assert parsed.get_content_type() == "text/plain"
    # Lines end as SMTP wants them, and are short enough for any server.
    assert not re.search(rb"(?<!\r)\n|\r(?!\n)", data)
    assert max(map(len, data.split(b"\r\n"))) < 998
    text = parsed.get_content()
    assert text.isprintable() or set(filter(lambda each: not each.isprintable(), text)) <= {"\n", "\r"}
