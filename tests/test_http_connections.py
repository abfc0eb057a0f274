"""What one client of HTTP can take of the server: its headers, its bodies, its time, its connections."""

import asyncio
import ctypes
import socket
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from pathlib import Path

import pytest

from fastlane_grpc.http.limits import HttpLimits
from fastlane_grpc.v1 import fastlane_pb2 as pb
from tests.http_client import SECONDS, answer, connected, request
from tests.http_harness import HttpHarness

# Times so short that a test sees their end, and so long that a loaded machine stays within those that must not end.
SHORT = 0.2
JOB = {"image": "a"}


@pytest.fixture
async def harnesses(tmp_path: Path) -> AsyncIterator[Callable[..., HttpHarness]]:
    made: list[HttpHarness] = []

    def harness(limits: HttpLimits | None = None, **settings: object) -> HttpHarness:
        made.append(HttpHarness(tmp_path, limits, **settings))
        return made[-1]

    yield harness
    for each in made:
        await each.close()


async def rest(reader: asyncio.StreamReader) -> bytes:
    """All that the server sends until it closes the connection."""
    async with asyncio.timeout(SECONDS):
        try:
            return await reader.read()
        except ConnectionResetError:
            return b""


async def one_answer(reader: asyncio.StreamReader) -> bytes:
    """One response with a Content-Length, of a connection that stays open."""
    async with asyncio.timeout(SECONDS):
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(answer(head + b" " * 100_000).headers["content-length"])
        return head + await reader.readexactly(length)


async def test_a_connection_serves_many_requests(harnesses: Callable[..., HttpHarness]) -> None:
    harness = harnesses()
    await harness.start()
    async with connected(harness.http_port) as (reader, writer):
        for number in range(5):
            writer.write(request("POST", f"/tasks/t{number}", JOB))
            assert answer(await one_answer(reader)).json["job"]["task_id"] == f"t{number}"
        # An error does not end it, not even one before the body was read.
        writer.write(request("POST", "/nothing", JOB))
        assert answer(await one_answer(reader)).status == 404
        writer.write(request("GET", "/jobs"))
        assert len(answer(await one_answer(reader)).json["jobs"]) == 5


@pytest.mark.parametrize("sent", [b"", b"\r\n", b"GET / HTT", b"GET / HTTP/1.1\r\nhost: localhost\r\nx"])
async def test_a_client_that_does_not_finish_its_headers_is_cut(
    harnesses: Callable[..., HttpHarness], sent: bytes
) -> None:
    harness = harnesses(HttpLimits(head_seconds=SHORT))
    await harness.start()
    async with connected(harness.http_port) as (reader, writer):
        writer.write(sent)
        assert await rest(reader) == b""


async def test_a_client_that_sends_its_headers_byte_by_byte_is_cut(harnesses: Callable[..., HttpHarness]) -> None:
    harness = harnesses(HttpLimits(head_seconds=SHORT))
    await harness.start()
    async with connected(harness.http_port) as (reader, writer):
        # The time counts from the first byte, however often others follow.
        for byte in b"GET /" + b"a" * 10_000:
            writer.write(bytes([byte]))
            with suppress(TimeoutError):
                assert await asyncio.wait_for(reader.read(1), 0.01) == b""
                return
        raise AssertionError("the connection is still open")


async def test_a_connection_without_a_next_request_is_closed(harnesses: Callable[..., HttpHarness]) -> None:
    harness = harnesses(HttpLimits(idle_seconds=SHORT))
    await harness.start()
    async with connected(harness.http_port) as (reader, writer):
        writer.write(request("GET", "/jobs"))
        assert answer(await rest(reader)).status == 200


async def test_bytes_between_requests_do_not_keep_a_connection(harnesses: Callable[..., HttpHarness]) -> None:
    harness = harnesses(HttpLimits(head_seconds=SHORT))
    await harness.start()
    async with connected(harness.http_port) as (reader, writer):
        writer.write(request("GET", "/jobs"))
        assert answer(await one_answer(reader)).status == 200
        writer.write(b"\r\n")
        assert await rest(reader) == b""


async def test_a_client_that_does_not_finish_its_body_is_told_and_cut(harnesses: Callable[..., HttpHarness]) -> None:
    harness = harnesses(HttpLimits(body_seconds=SHORT, drain_seconds=SHORT))
    await harness.start()
    async with connected(harness.http_port) as (reader, writer):
        writer.write(request("POST", "/tasks/t", b'{"image": "a"}', content_length="100000"))
        told = answer(await rest(reader))
        assert (told.status, told.reason) == (408, "REQUEST_TOO_SLOW")


@pytest.mark.parametrize("length", ["9" * 15, str(2**63)])
async def test_a_body_without_end_is_cut_after_its_answer(harnesses: Callable[..., HttpHarness], length: str) -> None:
    harness = harnesses(HttpLimits(drain_seconds=SHORT))
    await harness.start()
    async with connected(harness.http_port) as (reader, writer):
        writer.write(request("POST", "/tasks/t", b"x", content_length=length))
        told = answer(await rest(reader))
        assert (told.status, told.reason) == (413, "REQUEST_TOO_LARGE")


async def test_the_rest_of_a_refused_body_is_dropped_and_the_connection_goes_on(
    harnesses: Callable[..., HttpHarness],
) -> None:
    harness = harnesses(max_request_bytes=1000)
    await harness.start()
    async with connected(harness.http_port) as (reader, writer):
        writer.write(request("POST", "/tasks/t", b" " * 300_000))
        assert answer(await one_answer(reader)).status == 413
        writer.write(request("POST", "/tasks/t", JOB))
        assert answer(await one_answer(reader)).status == 201


async def test_fields_after_a_body_take_bounded_memory(harnesses: Callable[..., HttpHarness]) -> None:
    harness = harnesses(HttpLimits(max_head_bytes=1 << 16))
    await harness.start()
    async with connected(harness.http_port) as (reader, writer):
        writer.write(request("POST", "/tasks/t", b"0\r\nx: ", transfer_encoding="chunked", content_length=""))
        with suppress(ConnectionError):
            for _ in range(200):
                writer.write(b"a" * (1 << 16))
                await writer.drain()
        assert await rest(reader) == b""
    # Few are dropped, and the request goes on.
    body = b'e\r\n{"image": "a"}\r\n0\r\nx: 1\r\n\r\n'
    assert (await harness.ask("POST", "/tasks/t", body, transfer_encoding="chunked", content_length="")).status == 201


async def test_a_client_that_does_not_read_its_last_answer_is_cut(harnesses: Callable[..., HttpHarness]) -> None:
    harness = harnesses(HttpLimits(idle_seconds=SHORT))
    await harness.start()
    for _ in range(50):
        stored = await harness.ask("POST", "/tasks/t", {"image": "a", "metadata": {"a": "x" * 60_000}})
    job_id = stored.json["job"]["id"]
    # More than the kernel keeps for a client with a small buffer.
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    with client:
        client.connect(("127.0.0.1", harness.http_port))
        client.sendall(request("GET", "/jobs?with_spec=true", connection="close"))
        async with asyncio.timeout(SECONDS):
            while harness.http_connections:
                await harness.jobs.GetJob(pb.GetJobRequest(job_id=job_id))


async def test_bodies_at_a_time_take_bounded_memory(harnesses: Callable[..., HttpHarness]) -> None:
    harness = harnesses(HttpLimits(max_body_bytes=1_000_000), max_request_bytes=1_000_000)
    await harness.start()
    async with connected(harness.http_port) as (slow, waiting), connected(harness.http_port) as (reader, writer):
        waiting.write(request("POST", "/tasks/t", b" " * 900_000, content_length="999999"))
        await waiting.drain()
        while True:
            async with connected(harness.http_port) as (reader, writer):
                writer.write(request("POST", "/tasks/t", b" " * 200_000, connection="close"))
                told = answer(await rest(reader))
                if told.status == 503:
                    break
        assert (told.reason, told.headers["retry-after"]) == ("TOO_MANY_REQUESTS", "1")
        waiting.write(b" " * 99_999)
        assert answer(await one_answer(slow)).status == 400
    assert (await harness.ask("POST", "/tasks/t", b" " * 200_000 + b'{"image": "a"}')).status == 201


@pytest.mark.parametrize(
    "head",
    [
        b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\n\r\n",
        b"GET /" + b"a" * 5_000 + b" HTTP/1.1\r\nhost: localhost\r\n\r\n",
        b"GET / HTTP/1.1\r\nx: " + b"a" * 100_000 + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"x: 1\r\n" * 200 + b"\r\n",
        b"GET / HTTP/1.1\r\n" + b"x: 1\r\n" * 200 + b"\0\r\n",
    ],
)
async def test_headers_beyond_their_limit_are_refused(harnesses: Callable[..., HttpHarness], head: bytes) -> None:
    harness = harnesses(HttpLimits(max_head_bytes=4096))
    await harness.start()
    async with connected(harness.http_port) as (reader, writer):
        writer.write(head)
        sent = await rest(reader)
        assert (answer(sent).status, answer(sent).reason) == (431, "HEADERS_TOO_LARGE")
        assert sent.count(b"HTTP/1.1 ") == 1


@pytest.mark.parametrize(
    "sent",
    [
        b"\x16\x03\x01\x02\x00\x01",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET / HTTP/1.1\r\ncontent-length: -1\r\n\r\n",
        b"GET /\xff HTTP/1.1\r\n\r\n",
        b"GET http:// HTTP/1.1\r\nhost: localhost\r\n\r\n",
        b"GET  HTTP/1.1\r\n\r\n",
        b"CONNECT a:1 HTTP/1.1\r\nhost: a:1\r\n\r\n",
        b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\ncontent-length: 3\r\n\r\nabc",
        b"POST /jobs HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
    ],
)
async def test_what_is_not_http_harms_nobody(
    harnesses: Callable[..., HttpHarness], sent: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    harness = harnesses(HttpLimits(head_seconds=SHORT, body_seconds=SHORT, idle_seconds=SHORT, drain_seconds=SHORT))
    await harness.start()
    async with connected(harness.http_port) as (reader, writer):
        writer.write(sent)
        told = await rest(reader)
        assert (answer(told).status, answer(told).reason) in {(400, "MALFORMED_REQUEST"), (400, "NOT_A_PROXY")}
    assert (await harness.ask("GET", "/jobs")).status == 200
    assert "defect" not in capsys.readouterr().out


@pytest.mark.parametrize("behind", [b"}", b"\0\0\0", b"GET / HTTP/1.1\r\nhost: a\0\r\n\r\n", b"\r\nPOST\r\n\r\n"])
async def test_a_request_is_answered_whatever_follows_it(harnesses: Callable[..., HttpHarness], behind: bytes) -> None:
    harness = harnesses()
    await harness.start()
    async with connected(harness.http_port) as (reader, writer):
        writer.write(request("POST", "/tasks/t", JOB) + behind)
        assert answer(await rest(reader)).status == 201


async def test_requests_sent_before_an_answer_are_dropped_with_the_connection(
    harnesses: Callable[..., HttpHarness],
) -> None:
    harness = harnesses()
    await harness.start()
    async with connected(harness.http_port) as (reader, writer):
        writer.write(request("POST", "/tasks/t", JOB) + request("POST", "/tasks/t", JOB) * 1000)
        assert (await rest(reader)).count(b"HTTP/1.1 ") == 1
    assert len((await harness.ask("GET", "/jobs")).json["jobs"]) == 1


async def test_a_stream_ends_with_a_client_that_sent_more_meanwhile(harnesses: Callable[..., HttpHarness]) -> None:
    harness = harnesses(max_streams=1)
    await harness.start()
    async with connected(harness.http_port) as (reader, writer):
        writer.write(request("GET", "/watch") + request("GET", "/jobs"))
        await reader.readuntil(b"caught_up")
    async with asyncio.timeout(SECONDS):
        while True:
            async with connected(harness.http_port) as (reader, writer):
                writer.write(request("GET", "/watch"))
                if (await reader.readline()).startswith(b"HTTP/1.1 200"):
                    break


async def test_connections_beyond_their_limit_are_closed(harnesses: Callable[..., HttpHarness]) -> None:
    harness = harnesses(HttpLimits(max_connections=2))
    await harness.start()
    async with connected(harness.http_port), connected(harness.http_port) as (held, holding):
        # Answered, so both are counted.
        holding.write(request("GET", "/jobs"))
        await one_answer(held)
        async with connected(harness.http_port) as (reader, _):
            assert await rest(reader) == b""
        holding.write(request("GET", "/jobs"))
        assert answer(await one_answer(held)).status == 200


async def test_a_client_that_expects_to_be_asked_for_its_body_is_asked(harnesses: Callable[..., HttpHarness]) -> None:
    harness = harnesses()
    await harness.start()
    async with connected(harness.http_port) as (reader, writer):
        head, _, body = request("POST", "/tasks/t", JOB, expect="100-continue").partition(b"\r\n\r\n")
        writer.write(head + b"\r\n\r\n")
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(body)
        assert answer(await one_answer(reader)).status == 201


async def test_a_silent_client_is_asked_by_tcp_whether_it_is_there(harnesses: Callable[..., HttpHarness]) -> None:
    harness = harnesses()
    await harness.start()
    async with connected(harness.http_port) as (reader, writer):
        writer.write(request("GET", "/jobs"))
        await one_answer(reader)
        [connection] = harness.http_connections
        accepted = connection.transport.get_extra_info("socket")
        assert accepted.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 30


def vanish(client: socket.socket) -> None:
    """Drop all that arrives for the client from now on, in the kernel: it acknowledges nothing, as a machine that lost
    its power."""
    drop_all = ctypes.create_string_buffer(struct.pack("HBBI", 0x06, 0, 0, 0))
    client.setsockopt(socket.SOL_SOCKET, 26, struct.pack("HxxxxxxP", 1, ctypes.addressof(drop_all)))


async def test_the_stream_of_a_client_that_vanished_is_ended_and_one_that_waits_is_not(
    harnesses: Callable[..., HttpHarness],
) -> None:
    harness = harnesses(HttpLimits(silent_seconds=1))
    await harness.start()
    async with connected(harness.http_port) as (_, gone), connected(harness.http_port) as (reader, waiting):
        for writer in (gone, waiting):
            writer.write(request("GET", "/watch?heartbeat_interval=1s"))
        await reader.readuntil(b"heartbeat")
        vanish(gone.get_extra_info("socket"))
        async with asyncio.timeout(SECONDS):
            while len(harness.http_connections) > 1:
                await reader.readuntil(b"heartbeat")
        [left] = harness.http_connections
        assert left.client == waiting.get_extra_info("sockname")


async def test_a_server_that_stops_answers_the_calls_in_flight(harnesses: Callable[..., HttpHarness]) -> None:
    harness = harnesses()
    await harness.start()
    async with connected(harness.http_port) as (idle, writing), connected(harness.http_port) as (reader, writer):
        writing.write(request("GET", "/jobs"))
        await one_answer(idle)
        body = b'{"image": "a"}'
        writer.write(request("POST", "/tasks/t", body)[: -len(body)])
        # The request has begun when another one, sent later, is answered.
        assert (await harness.ask("GET", "/jobs")).status == 200
        assert harness.http
        stopping = asyncio.create_task(harness.http.stop())
        # An idle connection is closed at once.
        assert await rest(idle) == b""
        writer.write(body)
        told = answer(await rest(reader))
        assert (told.status, told.reason) == (503, "SERVER_STOPPING")
        await stopping
        with pytest.raises(OSError, match="Connect"):
            await asyncio.open_connection("127.0.0.1", harness.http_port)


UPGRADES = [
    # Java's HttpClient and `curl --http2` ask so by default.
    {
        "connection": "Upgrade, HTTP2-Settings",
        "upgrade": "h2c",
        "http2_settings": "AAEAAEAAAAIAAAABAAMAAABkAAQBAAAAAAUAAEAA",
    },
    {"connection": "Upgrade", "upgrade": "websocket", "sec_websocket_key": "eA==", "sec_websocket_version": "13"},
    {"connection": "keep-alive, upgrade", "upgrade": "TLS/1.0, foo"},
]
CHUNKED = {"transfer_encoding": "chunked", "content_length": ""}


@pytest.mark.parametrize("upgrade", UPGRADES)
async def test_an_upgrade_is_ignored(harnesses: Callable[..., HttpHarness], upgrade: dict[str, str]) -> None:
    harness = harnesses()
    await harness.start()
    async with connected(harness.http_port) as (reader, writer):
        writer.write(request("GET", "/jobs", **upgrade))
        assert answer(await one_answer(reader)).json == {"jobs": []}
        writer.write(request("POST", "/tasks/t", b'{"image": "a"}' + b" " * 200_000, **upgrade))
        stored = answer(await one_answer(reader)).json["job"]
        writer.write(request("POST", "/tasks/t", b'e\r\n{"image": "a"}\r\n0\r\nx: y\r\n\r\n', **CHUNKED, **upgrade))
        assert answer(await one_answer(reader)).status == 201
        writer.write(request("POST", f"/jobs/{stored['id']}/stop", **upgrade))
        assert answer(await one_answer(reader)).status == 200
        head, _, body = request("POST", "/tasks/t", JOB, expect="100-continue", **upgrade).partition(b"\r\n\r\n")
        writer.write(head + b"\r\n\r\n")
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(body)
        assert answer(await one_answer(reader)).status == 201
        writer.write(request("GET", "/watch?task_id=nobody", **upgrade))
        async with asyncio.timeout(SECONDS):
            assert (await reader.readuntil(b"caught_up")).startswith(b"HTTP/1.1 200 ")
        [connection] = harness.http_connections
        # The stream is no connection that waits for its next request.
        assert connection.timeout_keep_alive_task is None
    assert len((await harness.ask("GET", "/jobs")).json["jobs"]) == 3


async def test_a_request_with_an_upgrade_may_arrive_in_any_parts(harnesses: Callable[..., HttpHarness]) -> None:
    harness = harnesses()
    await harness.start()
    async with connected(harness.http_port) as (reader, writer), connected(harness.http_port) as (told, asking):
        whole = request("POST", "/tasks/t", JOB, **UPGRADES[0])
        for cut in range(1, len(whole), 3):
            writer.write(whole[:cut])
            # The first part has arrived when another request, sent later, is answered.
            asking.write(request("GET", "/healthz"))
            await one_answer(told)
            writer.write(whole[cut:])
            assert answer(await one_answer(reader)).status == 201, cut


@pytest.mark.parametrize(
    "sent",
    [
        # A body that looks like a request.
        request("POST", "/tasks/t", request("POST", "/tasks/hidden", JOB), **UPGRADES[0]),
        # A request after the one with an Upgrade: of the other protocol, or one that a proxy did not see.
        request("GET", "/jobs", **UPGRADES[0]) + request("POST", "/tasks/hidden", JOB),
        request("GET", "/jobs", **UPGRADES[0]) + request("POST", "/tasks/hidden", JOB, **UPGRADES[0]),
        request("GET", "/jobs") + request("POST", "/tasks/hidden", JOB, **UPGRADES[0]),
        request("GET", "/jobs", **UPGRADES[0]) + b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0" * 9,
        # Two lengths, with an Upgrade between.
        request("POST", "/tasks/t", b"0\r\n\r\n" + request("POST", "/tasks/hidden", JOB), **UPGRADES[0]).replace(
            b"upgrade: h2c", b"upgrade: h2c\r\ntransfer-encoding: chunked"
        ),
        request("POST", "/tasks/t", request("POST", "/tasks/hidden", JOB), **UPGRADES[0]).replace(
            b"upgrade: h2c", b"upgrade: h2c\r\ncontent-length: 0"
        ),
        # Fields in the value of the header that is left out, and in others.
        request("GET", "/jobs", **UPGRADES[0]).replace(b"h2c", b"h2c\r\n content-length: 500"),
        request("GET", "/jobs", **UPGRADES[0]).replace(b"h2c", b"h2c\rcontent-length: 500"),
        request("GET", "/jobs", x="a\r\n\ttransfer-encoding: chunked", **UPGRADES[0]),
    ],
)
async def test_an_upgrade_hides_no_request(harnesses: Callable[..., HttpHarness], sent: bytes) -> None:
    harness = harnesses(HttpLimits(head_seconds=SHORT, body_seconds=SHORT, idle_seconds=SHORT, drain_seconds=SHORT))
    await harness.start()
    async with connected(harness.http_port) as (reader, writer):
        writer.write(sent)
        assert (await rest(reader)).count(b"HTTP/1.1 ") <= 1
    assert (await harness.ask("GET", "/jobs")).json == {"jobs": []}


@pytest.mark.parametrize("target", ["/jobs", "localhost:1"])
async def test_a_tunnel_is_refused(harnesses: Callable[..., HttpHarness], target: str) -> None:
    harness = harnesses()
    await harness.start()
    for more in ({}, UPGRADES[0]):
        async with connected(harness.http_port) as (reader, writer):
            writer.write(request("CONNECT", target, **more) + request("POST", "/tasks/hidden", JOB))
            told = await rest(reader)
            assert (answer(told).status, answer(told).reason) == (400, "NOT_A_PROXY")
            assert told.count(b"HTTP/1.1 ") == 1
    assert (await harness.ask("GET", "/jobs")).json == {"jobs": []}


async def test_headers_with_an_upgrade_have_their_limits(harnesses: Callable[..., HttpHarness]) -> None:
    harness = harnesses(HttpLimits(max_head_bytes=4096, head_seconds=SHORT))
    await harness.start()
    upgrade = request("GET", "/jobs", **UPGRADES[0])[:-2]
    for field in (b"x: " + b"a" * 100_000 + b"\r\n", b"x: 1\r\n" * 200):
        async with connected(harness.http_port) as (reader, writer):
            writer.write(upgrade + field + b"\r\n")
            sent = await rest(reader)
        assert (answer(sent).status, answer(sent).reason) == (431, "HEADERS_TOO_LARGE")
        assert sent.count(b"HTTP/1.1 ") == 1
    async with connected(harness.http_port) as (reader, writer):
        # Within the limit once, and so it may be parsed twice.
        writer.write(upgrade + b"x: " + b"a" * 3000 + b"\r\n\r\n")
        assert answer(await one_answer(reader)).status == 200
    async with connected(harness.http_port) as (reader, writer):
        writer.write(upgrade)
        assert await rest(reader) == b""
