"""Readers of logs: one that comes late, and a crowd that follows. Against a bare stream of messages of the same size,
to the same readers.

The record is written here, as a recorder does: what is measured is the way from there to the readers, and no container.
"""

import json
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from google.protobuf.message import Message

from bench.ratio import Limit, Margin, Ratio, in_turn
from bench.server import Running, server
from fastlane_grpc import Client
from fastlane_grpc.logs import Logs
from fastlane_grpc.model import Source
from fastlane_grpc.record import RecordWriter
from fastlane_grpc.v1 import fastlane_pb2 as pb

LINE = b"0123456789" * 9 + b"01234567\n"
LATE_BYTES = 200_000_000
FOLLOWERS = 1_000
FOLLOWED_BYTES = 2_000_000
# A log that grows by this at a time, as often as it can be while its server is busy: what a thousand take of it is less
# than what there is.
PIECE_BYTES = 16_000
PIECE_SECONDS = 0.002


@dataclass(frozen=True)
class Got:
    """What readers got, all together."""

    seconds: float
    bytes: int
    messages: int

    @property
    def megabytes_per_second(self) -> float:
        return self.bytes / 1e6 / self.seconds


def rows(stage: Path, rounds: int) -> Iterator[Ratio | Margin | Limit]:
    yield from _late(stage, rounds)
    yield from _crowd(stage, rounds)
    yield from _event_streams(stage, rounds)
    yield _unread(stage)


def _late(stage: Path, rounds: int) -> Iterator[Ratio | Margin]:
    with no_engine(stage) as running:
        execution_id, writer = record(running)
        for _ in range(LATE_BYTES // 65_000):
            writer.write([(Source.STDOUT, LINE * (65_000 // len(LINE)))], time.time_ns())
        writer.close()
        request = pb.StreamExecutionLogsRequest(execution_id=execution_id, follow=False)

        def ours() -> Got:
            return read(running.address, request, LATE_BYTES * 2, 1, lambda: None)

        yield from _compared(
            f"{LATE_BYTES / 1e6:.0f} MB to one who comes late, against bare grpc.aio", 0.5, running, ours, 1, rounds
        )


def _crowd(stage: Path, rounds: int) -> Iterator[Ratio | Margin]:
    with no_engine(stage) as running:

        def ours() -> Got:
            execution_id, writer = record(running)
            request = pb.StreamExecutionLogsRequest(execution_id=execution_id, sources=[pb.SOURCE_STDOUT])
            with closing(writer):
                return read(running.address, request, FOLLOWED_BYTES, FOLLOWERS, lambda: _write(writer))

        what = f"{FOLLOWERS} followers of one live log, against bare grpc.aio"
        yield from _compared(what, 0.6, running, ours, FOLLOWERS, rounds)


def _event_streams(stage: Path, rounds: int) -> Iterator[Ratio | Margin]:
    """A crowd by HTTP against the same crowd by gRPC, each at a server of its own; bytes are those of the log."""
    with no_engine(stage) as by_http, no_engine(stage) as by_grpc:

        def events() -> float:
            execution_id, writer = record(by_http)
            with closing(writer):
                path = f"/executions/{execution_id}/logs?source=stdout"
                crowd = ["bench.http_crowd", str(by_http.http_port), path, str(FOLLOWED_BYTES), str(FOLLOWERS)]
                return _crowd_of(crowd, lambda: _write(writer)).megabytes_per_second

        def messages() -> float:
            execution_id, writer = record(by_grpc)
            request = pb.StreamExecutionLogsRequest(execution_id=execution_id, sources=[pb.SOURCE_STDOUT])
            with closing(writer):
                crowd = read(by_grpc.address, request, FOLLOWED_BYTES, FOLLOWERS, lambda: _write(writer))
                return crowd.megabytes_per_second

        what = f"{FOLLOWERS} event streams of one live log, against ours by gRPC"
        yield in_turn(what, "MB/s", 0.6, events, messages, rounds=rounds)
        yield Margin("  the server's memory at its most", "MB", peak_megabytes(by_http), peak_megabytes(by_grpc), 200.0)


def _unread(stage: Path) -> Limit:
    """What clients cost that ask for events and read nothing: once the server sends to none of them any more."""
    with no_engine(stage) as running, ExitStack() as connections:
        execution_id, writer = record(running)
        for _ in range(LATE_BYTES // 10 // 65_000):
            writer.write([(Source.STDOUT, LINE * (65_000 // len(LINE)))], time.time_ns())
        writer.close()
        path = f"/executions/{execution_id}/logs"
        request = f"GET {path} HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\n\r\n".encode()
        before = _resident_megabytes(running)
        for _ in range(FOLLOWERS):
            client = connections.enter_context(socket.create_connection(("127.0.0.1", running.http_port)))
            client.sendall(request)
            assert client.recv(1, socket.MSG_PEEK)
        earlier, now = 0.0, _resident_megabytes(running)
        while now > earlier:
            time.sleep(2)
            earlier, now = now, _resident_megabytes(running)
        return Limit(f"memory for {FOLLOWERS} event streams that are not read", "MB", [now - before], 150.0)


def _compared(
    what: str, goal: float, running: Running, ours: Callable[[], Got], streams: int, rounds: int
) -> Iterator[Ratio | Margin]:
    """Its rate, and its memory, beside those of a server that sends as many bytes in messages of the same size."""
    first = ours()
    message_bytes = first.bytes // first.messages
    messages = max(first.bytes // streams // message_bytes, 1)
    with bare(message_bytes, messages, streams) as peer:
        anything = pb.StreamExecutionLogsRequest()
        yield in_turn(
            f"{what}, {message_bytes / 1000:.0f} KB each",
            "MB/s",
            goal,
            lambda: ours().megabytes_per_second,
            lambda: read(peer.address, anything, first.bytes, streams, lambda: None).megabytes_per_second,
            rounds=rounds,
        )
        yield Margin("  the server's memory at its most", "MB", peak_megabytes(running), peak_megabytes(peer), 200.0)


def no_engine(stage: Path) -> AbstractContextManager[Running]:
    """A server whose jobs stay queued: what is in their records is ours."""
    return server(stage, "--engine", f"unix://{stage}/no-engine.sock")


def record(running: Running) -> tuple[str, RecordWriter]:
    with Client(running.address) as client:
        execution_id = client.enqueue("bench", "none").execution.id
    path = Logs(running.directory / "logs").output_path(execution_id)
    path.parent.mkdir(parents=True)
    return execution_id, RecordWriter.create(path, execution_id=execution_id, capture="bench")


def _write(writer: RecordWriter) -> None:
    for _ in range(-(-FOLLOWED_BYTES // PIECE_BYTES)):
        writer.write([(Source.STDOUT, LINE * (PIECE_BYTES // len(LINE) + 1))], time.time_ns())
        time.sleep(PIECE_SECONDS)


def read(
    address: str, request: Message, wanted: int, streams: int, when_ready: Callable[[], None], *method: str
) -> Got:
    """What so many readers get of a stream; each ends with it, or when it has `wanted` bytes. `method`: the full name
    of another one than that of log streams. `when_ready` is called when each reader has its first message."""
    command = ["bench.crowd", address, request.SerializeToString().hex(), str(wanted), str(streams), *method]
    return _crowd_of(command, when_ready)


def _crowd_of(command: Sequence[str], when_ready: Callable[[], None]) -> Got:
    with subprocess.Popen([sys.executable, "-m", *command], stdout=subprocess.PIPE, text=True) as crowd:
        assert crowd.stdout is not None
        if crowd.stdout.readline() != "ready\n":
            sys.exit("the readers of the bench did not get ready")
        when_ready()
        return Got(*json.loads(crowd.stdout.readline()))


@contextmanager
def bare(message_bytes: int, messages: int, streams: int) -> Iterator[Running]:
    command = [sys.executable, "-m", "bench.bare", str(message_bytes), str(messages), str(streams)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield Running(f"127.0.0.1:{int(process.stdout.readline())}", 0, process.pid, Path())
        finally:
            process.terminate()


def peak_megabytes(running: Running) -> float:
    """The most that the process ever had in memory."""
    return _megabytes(running, "VmHWM:")


def _resident_megabytes(running: Running) -> float:
    return _megabytes(running, "VmRSS:")


def _megabytes(running: Running, name: str) -> float:
    lines = Path(f"/proc/{running.process_id}/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1000 for line in lines if line.startswith(name))
