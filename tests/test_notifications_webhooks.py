"""Webhooks over real connections: what a receiver gets, and what it may do without harm to others."""

import asyncio
import base64
import gc
import hmac
import re
import socket
import ssl
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from standardwebhooks import Webhook as Verifier
from standardwebhooks import WebhookVerificationError
from structlog.testing import capture_logs

from fastlane_grpc.model import DeliveryState, NotificationEvent, Retry, State, Webhook
from fastlane_grpc.networks import Networks
from fastlane_grpc.notifications.notifier import IN_ALL, OF_HOST
from fastlane_grpc.store.writer import Written
from tests.notified import WHSEC, Notified, hook
from tests.receivers import OK, HttpReceiver, Post, answer_with, hang
from tests.remote_engine import make_certificates
from tests.tools import ROOT

SECOND = timedelta(seconds=1)
CHUNKED = b"HTTP/1.1 500 Fault\r\nTransfer-Encoding: chunked\r\n\r\n"
DELIVERED, FAILED, PENDING = DeliveryState.DELIVERED, DeliveryState.FAILED, DeliveryState.PENDING


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[Notified]:
    async with Notified(tmp_path, notify_retries=2) as house:
        yield house


@pytest.fixture
async def receiver() -> AsyncIterator[HttpReceiver]:
    async with HttpReceiver() as receiver:
        yield receiver


# --------------------------------------------------------------------------------------------------------- what it gets


async def test_a_webhook_is_verified_by_the_specification_s_own_library(
    house: Notified, receiver: HttpReceiver
) -> None:
    execution = await house.end(hook(receiver.url, secret=WHSEC), labels={"team": "mail"})
    [post] = await receiver.received(1)
    told = Verifier(WHSEC).verify(post.body, dict(post.headers))
    assert told["type"] == "run.ended"
    assert told["data"]["state"] == "STATE_FAILED"
    assert told["data"]["labels"] == {"team": "mail"}
    job = told["data"]["job"]
    assert (job["id"], job["task_id"], job["state"]) == (execution.job_id, "send-mail", "STATE_FAILED")
    assert job["execution"]["id"] == execution.id
    assert job["outcome"] == {"reason": "REASON_EXIT_CODE", "exit_code": 1}
    assert "spec" not in job
    with pytest.raises(WebhookVerificationError):
        Verifier("whsec_" + "A" * 32).verify(post.body, dict(post.headers))
    [delivery] = await house.over()
    assert (delivery.id, delivery.state, delivery.detail) == (post.id, DELIVERED, "HTTP 204")


async def test_the_documentation_has_each_field_of_a_webhook_and_verifies_it(
    tmp_path: Path, receiver: HttpReceiver
) -> None:
    page = (ROOT / "docs" / "notifications.md").read_text()
    async with Notified(tmp_path, external_url="https://fastlane.example.org") as house:
        job = await house.enqueue(hook(receiver.url, secret=WHSEC), retry=Retry(1), labels={"a": "b"})
        await house.end_of(job.execution.id)
        await house.end(
            hook(receiver.url, secret=WHSEC), replace(hook(receiver.url), event=NotificationEvent.ATTEMPT_ENDED)
        )
        await receiver.received(2)
    post = receiver.posts[0]
    documented = set(re.findall(r"^\| `([\w.-]+)` \|", page.partition("## What a webhook gets")[2], re.MULTILINE))
    assert {name for name in post.headers if name not in _OF_HTTP} <= documented
    assert {*post.json, *(f"data.{name}" for name in post.json["data"])} - {"data"} <= documented
    assert {name for name in documented if "." in name} == {
        *(f"data.{name}" for name in post.json["data"]),
        "data.job.execution",
    }
    for post in receiver.posts:
        assert f"`{post.json['type']}`" in page
    [snippet] = re.findall(r"```python verify\n(.+?)```", page, re.DOTALL)
    known: dict[str, Any] = {"base64": base64, "hmac": hmac, "time": time, "secret": WHSEC}
    for body, is_ours in ((receiver.posts[0].body, True), (b"{}", False)):
        known |= {"headers": receiver.posts[0].headers, "body": body}
        exec(snippet, known)
        assert (known["is_ours"], known["is_young"]) == (is_ours, True)


# What HTTP itself needs.
_OF_HTTP = {"host", "connection", "accept", "accept-encoding", "content-length"}


async def test_a_webhook_has_its_own_headers_and_those_of_the_caller(house: Notified, receiver: HttpReceiver) -> None:
    await house.end(hook(receiver.url, headers={"Authorization": "Bearer abc", "X-Team": "mail"}))
    [post] = await receiver.received(1)
    assert post.headers["authorization"] == "Bearer abc"
    assert post.headers["x-team"] == "mail"
    assert post.headers["content-type"] == "application/json"
    assert post.headers["fastlane-attempt"] == "1"
    assert post.headers["user-agent"].startswith("fastlane/")
    assert "webhook-signature" not in post.headers


async def test_keys_have_names_and_can_be_replaced_without_a_restart(tmp_path: Path, receiver: HttpReceiver) -> None:
    keys, other = tmp_path / "keys", "whsec_" + "B" * 32
    keys.write_text(f"# ours\ndefault = {WHSEC}\nteam={other}\n")
    async with Notified(tmp_path, webhook_secrets=keys) as house:
        await house.end(hook(receiver.url))
        await house.end(hook(receiver.url, secret_name="team"))
        first, second = await receiver.received(2)
        Verifier(WHSEC).verify(first.body, dict(first.headers))
        Verifier(other).verify(second.body, dict(second.headers))
        await house.over(2)
        keys.write_text(f"default={other} \n")
        await house.end(hook(receiver.url))
        third = (await receiver.received(3))[2]
        Verifier(other).verify(third.body, dict(third.headers))
        keys.unlink()
        await house.end(hook(receiver.url, secret_name="team"))
        assert "cannot be read" in (await house.over(4))[3].detail


async def test_each_attempt_has_the_same_id_and_body(house: Notified, receiver: HttpReceiver) -> None:
    receiver.answer = answer_with(b"HTTP/1.1 500 Oops\r\n\r\n", OK)
    await house.end(hook(receiver.url, secret=WHSEC))
    first, second = await receiver.received(2)
    assert (first.id, first.body) == (second.id, second.body)
    assert [post.headers["fastlane-attempt"] for post in (first, second)] == ["1", "2"]
    Verifier(WHSEC).verify(second.body, dict(second.headers))
    [delivery] = await house.over()
    assert (delivery.state, delivery.attempts) == (DELIVERED, 2)


# ------------------------------------------------------------------------------------------------------ what it may do


@pytest.mark.parametrize(
    ("answer", "detail"),
    [
        (b"HTTP/1.1 500 Oops\r\n\r\nthe database\r\nis down", "HTTP 500: the database  is down"),
        (b"HTTP/1.1 404 Not Found\r\n\r\n", "HTTP 404"),
        (b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\n\r\n", "HTTP 302: redirects are not followed"),
        (b"", "the receiver closed the connection without an answer"),
        (b"HTTP/1.1 200 OK", "the receiver closed the connection without an answer"),
        (b"HTTP/1.1 503 Busy\r\nContent-Length: 10\r\n\r\nnot", "HTTP 503"),
    ],
)
async def test_an_answer_that_is_no_success_is_repeated_and_then_given_up(
    house: Notified, receiver: HttpReceiver, answer: bytes, detail: str
) -> None:
    receiver.answer = answer_with(answer)
    await house.end(hook(receiver.url))
    [delivery] = await house.over()
    assert (delivery.state, delivery.attempts) == (FAILED, 3)
    assert delivery.detail.startswith(detail)
    assert len(receiver.posts) == 3


async def test_the_webhook_itself_says_how_often_it_is_repeated(house: Notified, receiver: HttpReceiver) -> None:
    receiver.answer = answer_with(b"HTTP/1.1 500 Oops\r\n\r\n")
    await house.end(hook(receiver.url, max_retries=1))
    [delivery] = await house.over()
    assert (delivery.state, delivery.attempts) == (FAILED, 2)


async def test_a_receiver_that_is_gone_is_not_asked_again(house: Notified, receiver: HttpReceiver) -> None:
    receiver.answer = answer_with(b"HTTP/1.1 410 Gone\r\n\r\n", OK)
    await house.end(hook(receiver.url))
    [delivery] = await house.over()
    assert (delivery.state, delivery.attempts, delivery.detail) == (FAILED, 1, "HTTP 410")
    # A dead letter, which somebody may deliver once more.
    await house.store.redeliver(delivery.id)
    _, second = await receiver.received(2)
    assert second.id == delivery.id
    [delivery] = await house.over()
    assert (delivery.state, delivery.attempts) == (DELIVERED, 1)


async def test_a_receiver_says_how_long_to_wait_up_to_the_longest_wait(tmp_path: Path, receiver: HttpReceiver) -> None:
    receiver.answer = answer_with(b"HTTP/1.1 429 Slow down\r\nRetry-After: 100\r\n\r\n")
    async with Notified(tmp_path, notify_max_backoff=timedelta(seconds=60)) as house:
        await house.end(hook(receiver.url))
        await receiver.received(1)
        await house.attempted()
        [delivery] = await house.deliveries()
        assert delivery.next_time
        assert delivery.last_time
        assert timedelta(seconds=59) < delivery.next_time - delivery.last_time < timedelta(seconds=61)


async def test_a_wait_that_makes_no_sense_is_ignored(house: Notified, receiver: HttpReceiver) -> None:
    after = b"Mon, 01 Jan 2024 00:00:00 +99999999999999999"
    receiver.answer = answer_with(b"HTTP/1.1 503 Busy\r\nRetry-After: " + after + b"\r\n\r\n")
    await house.end(hook(receiver.url, max_retries=1))
    [delivery] = await house.over()
    assert (delivery.state, delivery.attempts, delivery.detail) == (FAILED, 2, "HTTP 503")


async def test_a_receiver_that_hangs_costs_its_timeout_alone(house: Notified, receiver: HttpReceiver) -> None:
    receiver.answer = hang
    began = time.monotonic()
    await house.end(hook(receiver.url, timeout=SECOND / 5, max_retries=1))
    [delivery] = await house.over()
    assert delivery.detail == "timed out after 0.2 s"
    assert time.monotonic() - began < 5


async def test_an_endless_answer_is_not_read(house: Notified, receiver: HttpReceiver) -> None:
    sent = 0

    async def endless(post: Post, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        writer.write(b"HTTP/1.1 500 Oops\r\nContent-Length: 10000000000\r\n\r\n")
        while True:
            writer.write(b"x" * 65536)
            sent += 65536
            await writer.drain()

    receiver.answer = endless
    await house.end(hook(receiver.url, max_retries=1))
    [delivery] = await house.over()
    assert delivery.detail == "HTTP 500: " + "x" * 120
    # What fits into buffers on the way, and no more.
    assert sent < 64 << 20


@pytest.mark.parametrize(
    ("piece", "detail"),
    [
        (b"HTTP/1.1 100 Continue\r\n\r\n", "the answer cannot be read: the answer has no end"),
        (b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n", "the answer cannot be read: the answer has no end"),
        (CHUNKED + b"1;" + b"x" * 9000, "HTTP 500"),
    ],
    ids=["continue", "early hints", "extension of a chunk"],
)
async def test_what_comes_before_an_answer_for_ever_is_not_read(
    house: Notified, receiver: HttpReceiver, piece: bytes, detail: str
) -> None:
    sent = 0

    async def answer(post: Post, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        while sent < 100 << 20:
            writer.write(piece if not sent else piece.removeprefix(CHUNKED) * 100)
            sent += len(piece) * 100
            await writer.drain()

    receiver.answer = answer
    await house.end(hook(receiver.url, max_retries=1))
    [delivery] = await house.attempted()
    assert delivery.detail == detail
    # What the buffers of the system take, beside what was read.
    assert sent < 20 << 20


async def test_endless_headers_are_an_error(house: Notified, receiver: HttpReceiver) -> None:
    receiver.answer = answer_with(b"HTTP/1.1 200 OK\r\nX: " + b"x" * 100_000 + b"\r\n\r\n")
    await house.end(hook(receiver.url, max_retries=1))
    [delivery] = await house.over()
    assert delivery.state is FAILED


@pytest.mark.parametrize(
    "answer",
    [b"SSH-2.0-OpenSSH\r\n\r\n", b"HTTP/1.1 500 " + b"x" * 100_000, b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n", b""],
    ids=["no HTTP", "long status", "no header", "nothing"],
)
async def test_no_error_of_an_answer_shows_the_path_of_its_url(
    house: Notified, receiver: HttpReceiver, answer: bytes
) -> None:
    receiver.answer = answer_with(answer)
    with capture_logs() as logged:
        await house.end(hook(f"{receiver.url}/hunter2", max_retries=1))
        [delivery] = await house.over()
    assert delivery.detail.startswith(("the answer is not HTTP: ", "the receiver closed the connection"))
    assert "hunter2" not in delivery.detail + str(logged)


async def test_webhooks_that_come_together_share_what_is_closed_at_the_end(
    tmp_path: Path, receiver: HttpReceiver
) -> None:
    unclosed: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: unclosed.append(context))
    async with Notified(tmp_path) as house, HttpReceiver() as other:
        await house.end(hook(receiver.url), hook(other.url), hook("http://127.0.0.1:1"))
        found = await house.over(3)
    gc.collect()
    asyncio.get_running_loop().set_exception_handler(None)
    assert not unclosed
    assert sum(delivery.detail == "cannot connect: Connection refused" for delivery in found) == 1


async def test_one_slow_receiver_holds_up_no_other(house: Notified, receiver: HttpReceiver) -> None:
    async with HttpReceiver() as slow:
        await house.end(hook(slow.url))
        await house.over(1)
        # It was quick, and so it has four attempts at a time.
        slow.answer = hang
        # The same host, written in two ways.
        for url in (slow.url, slow.url.replace("://", "://user:key@")) * 10:
            await house.end(hook(url.replace("http:", "HTTP:") if "@" in url else url))
        await slow.received(5)
        await house.end(hook(receiver.url))
        await receiver.received(1)
        assert slow.open == len(slow.posts) - 1 == 4


async def test_many_slow_receivers_hold_up_no_quick_one(tmp_path: Path, receiver: HttpReceiver) -> None:
    async with AsyncExitStack() as opened, Notified(tmp_path) as house:
        await house.end(hook(receiver.url))
        await receiver.received(1)
        slow = [await opened.enter_async_context(HttpReceiver(hang)) for _ in range(IN_ALL)]
        # More than is read at once, of each receiver and in all.
        for each in slow:
            await house.end(*[hook(f"{each.url}/{path}") for path in range(2 * OF_HOST)])
        for _ in range(2 * OF_HOST):
            await house.end(hook(receiver.url))
        await receiver.received(1 + 2 * OF_HOST)
        assert sum(len(each.posts) for each in slow) <= IN_ALL // 2
        assert all(len(each.posts) <= 1 for each in slow)


@pytest.mark.parametrize(
    ("url", "host"),
    [
        ("http://Example.org", "example.org:80"),
        ("http://user:key@example.org.:80/a?b=c", "example.org:80"),
        ("HTTPS://example.org?a", "example.org:443"),
        ("https://example.org:80", "example.org:80"),
        ("http://[0:0::0:1]/", "::1:80"),
        ("http://[::1]:80", "::1:80"),
    ],
)
def test_attempts_are_counted_by_host_and_port_however_these_are_written(url: str, host: str) -> None:
    assert Webhook(url).host == host


async def test_a_notification_that_nobody_can_make_holds_up_no_other(house: Notified, receiver: HttpReceiver) -> None:
    await house.end(hook(receiver.url))
    await house.over()
    # As a later release might write it.
    await house.store._writer.write(_break)
    await house.store.redeliver((await house.deliveries())[0].id)
    with capture_logs() as logged:
        await house.end(hook(receiver.url), state=State.SUCCEEDED)
        await receiver.received(2)
        found = await house.over(2)
    assert [delivery.state for delivery in found] == [FAILED, DELIVERED]
    assert found[0].detail.startswith("a defect of fastlane")
    assert any("a defect of fastlane" in entry["event"] for entry in logged)


def _break(db: Any) -> Written[int]:
    """Give the notification a header that no request can have."""
    text = """replace(notification, '"url"', '"headers":{"a":1},"url"')"""
    return Written(db.execute(f"UPDATE deliveries SET notification = {text}").rowcount)


# ---------------------------------------------------------------------------------------------------- where it may be


@pytest.mark.parametrize(
    "host",
    [
        "169.254.169.254",
        "[::ffff:169.254.169.254]",
        "2852039166",
        "0xa9.0xfe.0xa9.0xfe",
        "0.0.0.0",
        "0",
        "[::]",
        "224.0.0.1",
        "[fe80::1]",
        "[fd00:ec2::254]",
        "168.63.129.16",
        "10.0.0.1",
        "[64:ff9b::a9fe:a9fe]",
    ],
)
async def test_an_address_that_is_not_allowed_is_never_connected_to(house: Notified, host: str) -> None:
    await house.end(hook(f"http://{host}:80/"))
    [delivery] = await house.over()
    assert (delivery.state, delivery.attempts) == (FAILED, 1)
    words = ("is never allowed", "is not in webhook_networks (public,loopback)", "is not a canonical IPv4 address")
    assert any(each in delivery.detail for each in words)


async def test_a_name_is_checked_by_the_address_that_is_connected_to(
    tmp_path: Path, receiver: HttpReceiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name server that answers anew each time: first an address that is allowed, then one that is not."""
    answers = ["192.0.2.1", "127.0.0.1", "127.0.0.1"]
    resolve = socket.getaddrinfo

    def rebinding(host: str, *arguments: object) -> object:
        return resolve(answers.pop(0) if host == "rebound.example.org" else host, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(socket, "getaddrinfo", rebinding)
    async with Notified(tmp_path, webhook_networks=Networks(("192.0.2.0/24",))) as house:
        url = receiver.url.replace("127.0.0.1", "rebound.example.org")
        await house.end(hook(url, timeout=SECOND / 5, max_retries=2))
        [delivery] = await house.over()
    assert "127.0.0.1 is not in webhook_networks" in delivery.detail
    assert len(answers) == 1, "each attempt resolves the name once"
    assert not receiver.posts


async def test_loopback_can_be_forbidden_also_by_name(tmp_path: Path, receiver: HttpReceiver) -> None:
    async with Notified(tmp_path, webhook_networks=Networks(("public",))) as house:
        await house.end(hook(receiver.url))
        await house.end(hook(receiver.url.replace("127.0.0.1", "localhost")))
        found = await house.over(2)
    assert all("is not in webhook_networks (public)" in delivery.detail for delivery in found)
    assert not receiver.posts


async def test_a_certificate_is_verified(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_certificates(tmp_path / "client", tmp_path / "server")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "server" / "cert.pem", tmp_path / "server" / "key.pem")
    async with HttpReceiver(context=context) as receiver:
        for trusted, state in ((False, FAILED), (True, DELIVERED)):
            if trusted:
                monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "server" / "ca.pem"))
            directory = tmp_path / str(trusted)
            directory.mkdir()
            async with Notified(directory) as house:
                await house.end(hook(receiver.url, max_retries=1))
                await house.end(hook(receiver.url.replace("127.0.0.1", "localhost"), max_retries=1))
                by_address, by_name = await house.over(2)
            assert by_address.state is state, by_address.detail
            assert by_name.state is FAILED, "the certificate has no such name"
            assert "TLS: " in by_name.detail
        assert len(receiver.posts) == 1


# ------------------------------------------------------------------------------------------------------------- its log


async def test_each_attempt_is_one_line_without_secrets(house: Notified, receiver: HttpReceiver) -> None:
    receiver.answer = answer_with(b"HTTP/1.1 500 Oops\r\n\r\npassword=hunter2", OK)
    url = receiver.url.replace("http://", "http://user:hunter2@") + "/T0KEN/hunter2?token=hunter2"
    with capture_logs() as logged:
        await house.end(hook(url, secret=WHSEC, headers={"X-Api-Key": "hunter2"}))
        [delivery] = await house.over()
    lines = [entry for entry in logged if entry["event"].startswith("notification")]
    assert [line["event"] for line in lines] == [
        "notification not delivered; trying again",
        "notification delivered",
    ]
    assert [(line["attempt"], line["delivery_id"]) for line in lines] == [(1, delivery.id), (2, delivery.id)]
    assert lines[0]["receiver"] == f"http://127.0.0.1:{receiver.port}"
    assert "hunter2" not in str(logged)
    assert WHSEC not in str(logged)


# ------------------------------------------------------------------------------------------------------------- restarts


async def test_what_was_pending_is_delivered_by_the_next_server(tmp_path: Path, receiver: HttpReceiver) -> None:
    receiver.answer = hang
    async with Notified(tmp_path) as house:
        await house.end(hook(receiver.url))
        await receiver.received(1)
        await house.end(hook(receiver.url), state=State.SUCCEEDED)
    receiver.answer = answer_with(OK)
    async with Notified(tmp_path) as house:
        found = await house.over(2)
    assert [delivery.state for delivery in found] == [DELIVERED, DELIVERED]
    first, *others = receiver.posts
    assert first.id in {post.id for post in others}
    assert [post.headers["fastlane-attempt"] for post in others] == ["1", "1"]


async def test_an_end_that_nobody_announced_is_found_at_the_next_start(tmp_path: Path, receiver: HttpReceiver) -> None:
    async with Notified(tmp_path) as house:
        house.listeners.remove(house.notifier.on_change)
        await house.end(hook(receiver.url))
        assert not await house.deliveries()
    async with Notified(tmp_path) as house:
        await house.over()
    assert len(receiver.posts) == 1


async def test_a_defect_of_the_notifier_restarts_it(tmp_path: Path, receiver: HttpReceiver) -> None:
    async with Notified(tmp_path) as house:
        look, failures = house.store.due_deliveries, 1

        def broken(**limits: int) -> object:
            nonlocal failures
            if failures:
                failures -= 1
                raise RuntimeError("a defect")
            return look(**limits)

        house.store.due_deliveries = broken  # type: ignore[method-assign, assignment]
        await house.end(hook(receiver.url))
        await receiver.received(1)
        assert not failures
