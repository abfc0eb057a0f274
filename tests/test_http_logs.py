"""Logs over HTTP: raw, as events, as JSON lines. No engine: the test is the runner."""

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from http.client import IncompleteRead
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import json_format

from fastlane_grpc.model import Cause, Execution, Source
from fastlane_grpc.record import RecordWriter
from fastlane_grpc.v1 import fastlane_pb2 as pb
from tests.http_client import SECONDS, answer, connected, request
from tests.http_harness import HttpHarness

OUT, ERR, SYSTEM = Source.STDOUT, Source.STDERR, Source.SYSTEM
SECOND = 1_000_000_000
BINARY = bytes(range(256)) * 300

LINES = {"accept": "application/x-ndjson"}
EVENTS = {"accept": "text/event-stream"}


@pytest.fixture
async def harness(tmp_path: Path) -> AsyncIterator[HttpHarness]:
    harness = HttpHarness(tmp_path, max_streams=60)
    await harness.start()
    yield harness
    await harness.close()


async def running(harness: HttpHarness) -> tuple[Execution, RecordWriter]:
    await harness.enqueue()
    return await harness.begin()


async def stored(harness: HttpHarness) -> Execution:
    """An execution that has ended, with output of every kind."""
    execution, writer = await running(harness)
    writer.write([(OUT, b"one\n"), (ERR, b"two\n")], 1)
    writer.gap(OUT, 5, Cause.ENGINE, SECOND)
    writer.write([(OUT, BINARY)], SECOND + 1_000)
    writer.gap(ERR, None, Cause.STORE, 2 * SECOND)
    writer.write([(ERR, b"\xff\xc3"), (OUT, b"\xe2\x82"), (OUT, b"\xac\n")], 3 * SECOND + 1_000_000)
    harness.logs.system(execution.id, "a line of fastlane's own")
    await harness.finish(execution, writer, 3)
    return execution


@dataclass(frozen=True)
class Event:
    """A server-sent event."""

    name: str
    id: str
    data: Any


def events_of(body: bytes) -> list[Event]:
    events = []
    for block in body.decode().split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines())
        if "event" in fields:
            events.append(Event(fields["event"], fields.get("id", ""), json.loads(fields["data"])))
    return events


def lines_of(body: bytes) -> list[Any]:
    return [json.loads(line) for line in body.splitlines()]


def bytes_of(messages: Sequence[Mapping[str, Any]], source: Source) -> bytes:
    return b"".join(
        base64.b64decode(chunk.get("data", ""))
        for message in messages
        for chunk in message.get("chunks", [])
        if chunk["source"] == f"SOURCE_{source.name}"
    )


async def read_until(reader: asyncio.StreamReader, part: bytes) -> bytes:
    async with asyncio.timeout(SECONDS):
        return await reader.readuntil(part)


async def rest(reader: asyncio.StreamReader) -> bytes:
    async with asyncio.timeout(SECONDS):
        return await reader.read()


def path_of(execution: Execution, query: str = "") -> str:
    return f"/executions/{execution.id}/logs{query}"


async def test_a_raw_log_is_what_the_container_printed(harness: HttpHarness) -> None:
    execution = await stored(harness)
    found = await harness.ask("GET", path_of(execution, "?source=stdout"))
    assert (found.status, found.headers["content-type"]) == (200, "application/octet-stream")
    assert found.headers["x-content-type-options"] == "nosniff"
    assert found.body == b"one\n" + BINARY + b"\xe2\x82\xac\n"
    both = await harness.ask("GET", path_of(execution))
    assert both.body == b"one\ntwo\n" + BINARY + b"\xff\xc3\xe2\x82\xac\n"


async def test_a_raw_log_arrives_while_the_job_prints(harness: HttpHarness) -> None:
    execution, writer = await running(harness)
    async with connected(harness.http_port) as (reader, sender):
        sender.write(request("GET", path_of(execution), connection="close"))
        # The headers come before any output: the client knows that the log is there.
        head = await read_until(reader, b"\r\n\r\n")
        assert b"200 OK" in head
        for number in range(3):
            writer.write([(OUT, b"number %d\n" % number)], number)
            await read_until(reader, b"number %d\n" % number)
        await harness.finish(execution, writer)
        assert (await rest(reader)).endswith(b"\r\n0\r\n\r\n")


@pytest.mark.parametrize("query", ["", "?text=true", "?sources=SOURCE_STDERR&number_lines=true", "?tail_lines=2"])
async def test_lines_and_events_have_the_messages_of_grpc(harness: HttpHarness, query: str) -> None:
    execution = await stored(harness)
    fields: dict[str, object] = {
        "": {},
        "?text=true": {"text": True},
        "?sources=SOURCE_STDERR&number_lines=true": {"sources": [2], "number_lines": True},
        "?tail_lines=2": {"tail_lines": 2},
    }[query]  # type: ignore[assignment]
    expected = [message async for message in harness.stream(execution.id, **fields)]  # type: ignore[arg-type]
    lines = await harness.ask("GET", path_of(execution, query), **LINES)
    assert lines.headers["content-type"] == "application/x-ndjson"
    parsed = [json_format.ParseDict(each, pb.StreamExecutionLogsResponse()) for each in lines_of(lines.body)]
    assert parsed == expected
    events = await harness.ask("GET", path_of(execution, query), **EVENTS)
    assert events.headers["content-type"].startswith("text/event-stream")
    found = events_of(events.body)
    assert [json_format.ParseDict(each.data, pb.StreamExecutionLogsResponse()) for each in found] == expected
    assert [each.id for each in found] == [message.cursor for message in expected]
    assert [each.name for each in found] == [message.WhichOneof("event") or "chunks" for message in expected]


async def test_an_event_stream_resumes_after_its_last_event(harness: HttpHarness) -> None:
    execution = await stored(harness)
    whole = events_of((await harness.ask("GET", path_of(execution), **EVENTS)).body)
    expected = {source: bytes_of([each.data for each in whole], source) for source in Source}
    for count in range(1, len(whole)):
        # The query is that of the first request, as a browser repeats it.
        query = f"?cursor={whole[0].id}"
        answered = await harness.ask("GET", path_of(execution, query), last_event_id=whole[count - 1].id, **EVENTS)
        both = [each.data for each in [*whole[:count], *events_of(answered.body)]]
        assert {source: bytes_of(both, source) for source in Source} == expected


async def test_short_names_of_parameters_mean_the_fields_of_the_request(harness: HttpHarness) -> None:
    execution, writer = await running(harness)
    writer.write([(OUT, b"1\n2\n3\n"), (ERR, b"e\n")], SECOND)
    cases = {
        "?follow=false&tail=2": b"3\ne\n",
        "?follow=false&line=3&source=stdout": b"3\n",
        "?follow=false&source=stdout,stderr&source=system": b"1\n2\n3\ne\n",
        "?follow=false&since=1h": b"",
        "?follow=false&since=1970-01-01T00:00:01Z&source=STDERR": b"e\n",
        "?follow=false&since=1970-01-01T00:00:02Z&heartbeat=2s": b"",
    }
    for query, expected in cases.items():
        assert (await harness.ask("GET", path_of(execution, query))).body == expected


async def test_faults_of_a_request_are_answered_before_the_first_byte(harness: HttpHarness) -> None:
    execution, _ = await running(harness)
    other = "1.00000000-0000-7000-8000-000000000000.0.0.0.0"
    cases = {
        "/executions/nothing/logs": (404, "EXECUTION_NOT_FOUND"),
        "/jobs/nothing/logs": (404, "JOB_NOT_FOUND"),
        path_of(execution, "?tail=-1"): (400, "INVALID_FIELD"),
        path_of(execution, "?tail=many"): (400, "INVALID_FIELD"),
        path_of(execution, "?line=-4"): (400, "INVALID_FIELD"),
        path_of(execution, "?since=yesterday"): (400, "INVALID_FIELD"),
        path_of(execution, "?source=stdin"): (400, "INVALID_FIELD"),
        path_of(execution, "?heartbeat=1h"): (400, "INVALID_FIELD"),
        path_of(execution, "?follow=maybe"): (400, "INVALID_FIELD"),
        path_of(execution, "?exit_line=2"): (400, "INVALID_FIELD"),
        path_of(execution, "?tail=1&tail_lines=2"): (400, "INVALID_FIELD"),
        path_of(execution, "?tial=1"): (400, "UNKNOWN_FIELD"),
        path_of(execution, "?cursor=x"): (400, "CURSOR_INVALID"),
        path_of(execution, f"?before_cursor={other}"): (400, "CURSOR_OF_ANOTHER_EXECUTION"),
    }
    for accept in ({}, LINES, EVENTS):
        for path, expected in cases.items():
            found = await harness.ask("GET", path, **accept)
            assert (found.status, found.reason) == expected, path
    # A field has the name by which it was asked for.
    for query, field in {
        "?tail=-1": "tail",
        "?tail_lines=-1": "tail_lines",
        "?line=x": "line",
        "?source=stdin": "source[0]",
        "?heartbeat=1h": "heartbeat",
        "?since=yesterday": "since",
    }.items():
        found = await harness.ask("GET", path_of(execution, query))
        assert [each["field"] for each in found.json["violations"]] == [field]
        assert found.json["detail"].startswith(f"{field}: ")
    found = await harness.ask("GET", f"/jobs/{execution.job_id}/logs?line=3")
    assert [each["field"] for each in found.json["violations"]] == ["line"]
    found = await harness.ask("GET", path_of(execution, "?exit_line=1"), **LINES)
    assert found.json["violations"][0]["field"] == "exit_line"


async def test_head_of_a_log_has_the_status_of_get_and_no_body(harness: HttpHarness) -> None:
    execution, _ = await running(harness)
    found = await harness.ask("HEAD", path_of(execution), **EVENTS)
    assert (found.status, found.body) == (200, b"")
    assert found.headers["content-type"] == "text/event-stream"
    for path in ("/executions/nothing/logs", "/jobs/nothing/logs", path_of(execution, "?cursor=x")):
        expected = (await harness.ask("GET", path)).status
        assert expected >= 400
        assert (await harness.ask("HEAD", path)).status == expected
    assert (await harness.ask("HEAD", "/watch")).status == 200


async def test_a_log_that_was_pruned_is_a_gap_in_each_form(harness: HttpHarness) -> None:
    execution = await stored(harness)
    whole = lines_of((await harness.ask("GET", path_of(execution), **LINES)).body)
    assert (await harness.ask("POST", "/prune", {"older_than": 0, "logs_only": True})).status == 200
    lines = lines_of((await harness.ask("GET", path_of(execution, "?number_lines=true"), **LINES)).body)
    gaps = [each["gap"] for each in lines if "gap" in each]
    assert {each["source"] for each in gaps} == {"SOURCE_STDOUT", "SOURCE_STDERR", "SOURCE_SYSTEM"}
    assert {each["cause"] for each in gaps} == {"CAUSE_PRUNED"}
    assert lines[-1]["end"] == {**whole[-1]["end"]}
    events = events_of((await harness.ask("GET", path_of(execution), **EVENTS)).body)
    assert [each.name for each in events] == ["state", *["gap"] * len(gaps), "end"]
    raw = (await harness.ask("GET", path_of(execution, "?exit_line=1"))).body
    assert raw.startswith(b"\nfastlane-end exit_status=3 state=FAILED ")


async def test_ranges_by_two_cursors_end_whatever_they_are(harness: HttpHarness) -> None:
    execution = await stored(harness)
    whole = lines_of((await harness.ask("GET", path_of(execution), **LINES)).body)
    cursors = [each["cursor"] for each in whole]
    for first in cursors:
        for last in cursors:
            query = f"?cursor={first}&before_cursor={last}"
            found = lines_of((await harness.ask("GET", path_of(execution, query), **LINES)).body)
            between = whole[cursors.index(first) + 1 : cursors.index(last) + 1]
            for source in Source:
                assert bytes_of(found, source) == bytes_of(between, source)
            assert "end" in found[-1]
    beyond = cursors[-1].rsplit(".", 4)[0] + ".999999999.999.999.0"
    # Only at the end of the log is it known that the cursor is of another one.
    with pytest.raises(IncompleteRead) as cut:
        await harness.ask("GET", path_of(execution, f"?cursor={beyond}"), **LINES)
    assert lines_of(cut.value.partial)[-1]["problem"]["reason"] == "CURSOR_AHEAD"
    found = lines_of((await harness.ask("GET", path_of(execution, f"?before_cursor={beyond}"), **LINES)).body)
    assert found[-1]["end"]["sealed"], found
    assert {source: bytes_of(found, source) for source in Source} == {
        source: bytes_of(whole, source) for source in Source
    }


async def test_a_server_that_stops_leaves_no_stream_complete(harness: HttpHarness) -> None:
    execution, writer = await running(harness)
    writer.write([(OUT, b"all so far\n")], 1)

    async def received(**accept: str) -> bytes:
        async with connected(harness.http_port) as (reader, sender):
            sender.write(request("GET", path_of(execution), **accept))
            begun = await read_until(reader, b"all so far\n" if not accept else b"YWxsIHNvIGZhcgo=")
            ready.release()
            return begun + await rest(reader)

    ready = asyncio.Semaphore(0)
    reads = [asyncio.ensure_future(received(**accept)) for accept in ({}, LINES, EVENTS)]
    for _ in reads:
        await ready.acquire()
    await harness.http.stop()
    raw, lines, events = await asyncio.gather(*reads)
    for whole in (raw, lines, events):
        with pytest.raises(IncompleteRead):
            answer(whole)
    assert b'{"problem": {' in lines
    assert b"SERVER_STOPPING" in lines
    assert b"event: problem\ndata: {" in events


async def test_trailers_tell_the_end_to_those_who_accept_them(harness: HttpHarness) -> None:
    execution = await stored(harness)
    async with connected(harness.http_port) as (reader, sender):
        sender.write(request("GET", path_of(execution), te="trailers", connection="TE, close"))
        head, _, body = (await rest(reader)).partition(b"\r\n\r\n")
    assert b"trailer: Fastlane-Exit-Status, Fastlane-State" in head
    trailers = dict(line.split(": ") for line in body.rpartition(b"\r\n0\r\n")[2].decode().splitlines() if line)
    assert trailers.pop("Fastlane-Cursor").startswith(f"1.{execution.id}.")
    assert int(trailers.pop("Fastlane-System-Bytes")) >= 0
    assert trailers == {
        "Fastlane-Exit-Status": "3",
        "Fastlane-State": "FAILED",
        "Fastlane-Outcome": "EXIT_CODE",
        "Fastlane-Stdout-Bytes": str(4 + 5 + len(BINARY) + 4),
        "Fastlane-Stderr-Bytes": "6",
        "Fastlane-Missing-Bytes": "5",
    }
    # The connection goes on after them.
    async with connected(harness.http_port) as (reader, sender):
        for _ in range(2):
            sender.write(request("GET", path_of(execution, "?source=stderr"), te="trailers", connection="TE"))
            assert (await read_until(reader, b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
            await read_until(reader, b"\r\nFastlane-Cursor: ")
            await read_until(reader, b"\r\n\r\n")
    # Without that header none are sent.
    async with connected(harness.http_port) as (reader, sender):
        sender.write(request("GET", path_of(execution), connection="close"))
        assert (await rest(reader)).endswith(b"\r\n0\r\n\r\n")


async def test_an_exit_line_is_the_last_one_whatever_was_printed(harness: HttpHarness) -> None:
    execution, writer = await running(harness)
    writer.write([(OUT, b"no newline at its end")], 1)
    query = "?exit_line=1&follow=false"
    log, line = (await harness.ask("GET", path_of(execution, query))).body.rstrip(b"\n").rsplit(b"\n", 1)
    assert log == b"no newline at its end"
    assert line.startswith(b"fastlane-end exit_status=75 state=RUNNING cursor=1.")
    await harness.finish(execution, writer)
    body = (await harness.ask("GET", path_of(execution, "?exit_line=true"))).body
    assert body.startswith(log + b"\nfastlane-end exit_status=0 state=SUCCEEDED stdout_bytes=21 ")


async def test_the_log_of_a_job_tells_each_execution_and_the_end(harness: HttpHarness) -> None:
    execution = await stored(harness)
    path = f"/jobs/{execution.job_id}/logs"
    lines = lines_of((await harness.ask("GET", path, **LINES)).body)
    assert "execution" in lines[0]
    assert lines[-1]["job_end"]["exit_status"] == 3
    assert bytes_of(lines, ERR) == b"two\n\xff\xc3"
    names = [each.name for each in events_of((await harness.ask("GET", path, **EVENTS)).body)]
    assert (names[0], names[-1]) == ("execution", "job_end")
    raw = (await harness.ask("GET", f"{path}?exit_line=1&source=stderr")).body
    assert raw.startswith(b"two\n\xff\xc3\nfastlane-end exit_status=3 state=FAILED outcome=EXIT_CODE cursor=")


async def test_readers_of_one_encoding_share_what_one_of_them_read(harness: HttpHarness) -> None:
    execution, writer = await running(harness)
    for number in range(80):
        writer.write([(OUT, b"%06d" % number * 10_000)], number)
    await harness.finish(execution, writer)
    await harness.ask("GET", path_of(execution), **EVENTS)
    reads = harness.tails.cache.reads
    assert reads > 3
    bodies = await asyncio.gather(*(harness.ask("GET", path_of(execution), **EVENTS) for _ in range(10)))
    # A last look of each reader at the end; and what ends short of a segment may be read once more.
    assert harness.tails.cache.reads <= reads + 10 + 1
    assert len({bytes_of([each.data for each in events_of(found.body)], OUT) for found in bodies}) == 1


async def test_the_cache_stays_within_its_bytes_with_readers_of_all_forms(tmp_path: Path) -> None:
    harness = HttpHarness(tmp_path, cache_bytes=1 << 20)
    await harness.start()
    execution, writer = await running(harness)
    for number in range(40):
        writer.write([(OUT, b"%06d" % number * 10_000)], number)
    await harness.finish(execution, writer)
    paths = [path_of(execution, query) for query in ("", "?source=stdout&number_lines=true")]
    asked = [harness.ask("GET", path, **accept) for path in paths for accept in ({}, LINES, EVENTS)]
    assert [found.status for found in await asyncio.gather(*asked)] == [200] * 6
    cache = harness.tails.cache
    assert 0 < cache.bytes <= 1 << 20
    assert cache.bytes == sum(each.size for each in cache._values.values())
    await harness.close()


async def test_a_reader_that_does_not_read_holds_up_nobody_else(harness: HttpHarness) -> None:
    execution, writer = await running(harness)
    async with connected(harness.http_port) as (reader, slow):
        slow.write(request("GET", path_of(execution), connection="close"))
        for number in range(200):
            writer.write([(OUT, b"%06d" % number * 10_000)], number)
        await harness.finish(execution, writer)
        # The log has twelve megabytes. The server holds one piece of it for the slow client.
        assert len((await harness.ask("GET", path_of(execution))).body) == 12_000_000
        [held] = [each for each in harness.http_connections if not each.cycle.response_complete]
        assert held.transport.get_write_buffer_size() < 1_000_000
        assert answer(await rest(reader)).body == b"".join(b"%06d" % number * 10_000 for number in range(200))


async def test_streams_of_both_doors_count_together(tmp_path: Path) -> None:
    harness = HttpHarness(tmp_path, max_streams=1)
    await harness.start()
    execution, _ = await running(harness)
    stream = harness.stream(execution.id)
    await stream.read()
    found = await harness.ask("GET", path_of(execution))
    assert (found.status, found.reason) == (429, "TOO_MANY_STREAMS")
    assert int(found.headers["retry-after"]) >= 1
    stream.cancel()
    # A reader over HTTP takes the place, and gives it back when it goes.
    async with connected(harness.http_port) as (reader, sender):
        head = b"HTTP/1.1 429"
        while head.startswith(b"HTTP/1.1 429"):
            sender.write(request("GET", path_of(execution)))
            head = await read_until(reader, b"\r\n\r\n")
            if head.startswith(b"HTTP/1.1 429"):
                await reader.readexactly(int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]))
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await harness.stream(execution.id).read()
        assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    while (await harness.ask("GET", path_of(execution, "?follow=false"))).status == 429:
        pass
    await harness.close()
