"""Capture by attach, against a socket that says what an engine says: what comes whole, and what is owned up to as
missing."""

import contextlib
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastlane_grpc.capture.attach import AttachCapture
from fastlane_grpc.capture.capture import ContainerEnd
from fastlane_grpc.capture.container_files import NoFiles
from fastlane_grpc.capture.frames import BUFFER_BYTES, Frames
from fastlane_grpc.docker.engine import Engine
from fastlane_grpc.model import Cause, Source
from tests.engine import Output, read_output

UNKNOWN = [(Source.STDOUT, None, Cause.ENGINE), (Source.STDERR, None, Cause.ENGINE)]


def frame(source: int, data: bytes) -> bytes:
    return struct.pack(">BxxxI", source, len(data)) + data


class Stream:
    """An engine that knows one thing: to say this on attach."""

    def __init__(self, directory: Path) -> None:
        self.address = f"unix://{directory}/engine.sock"
        self.said: list[str] = []
        self.path = directory / "log"
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(f"{directory}/engine.sock")
        self._listener.listen()
        self._attached: list[socket.socket] = []

    def capture(self, *, resume: bool = False) -> AttachCapture:
        capture = self.new_capture()
        thread = threading.Thread(target=self._accept, daemon=True)
        thread.start()
        if resume:
            capture.resume("c")
        else:
            capture.open("c")
        thread.join()
        return capture

    def new_capture(self) -> AttachCapture:
        return AttachCapture(
            Engine(self.address),
            NoFiles("the engine of this test has none"),
            self.path,
            "01900000-0000-7000-8000-000000000000",
            max_log_bytes=1 << 30,
            log_line=self.said.append,
        )

    def says(self, *data: bytes) -> None:
        for each in data:
            self._attached[-1].sendall(each)

    def ends(self) -> None:
        self._attached[-1].close()

    def close(self) -> None:
        for connection in (self._listener, *self._attached):
            connection.close()

    def _accept(self) -> None:
        while True:
            connection, _ = self._listener.accept()
            request = connection.recv(65_536)
            if b"/attach" in request:
                # The first bytes may come in one piece with the head.
                connection.sendall(
                    b"HTTP/1.1 101 UPGRADED\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n" + frame(1, b"first ")
                )
                self._attached.append(connection)
                return
            connection.sendall(b"HTTP/1.0 200 OK\r\nApi-Version: 1.41\r\nContent-Length: 2\r\n\r\nOK")
            connection.close()


@pytest.fixture
def stream(tmp_path: Path) -> Iterator[Stream]:
    with contextlib.closing(Stream(tmp_path)) as stream:
        yield stream


def now(seconds: float = 0) -> datetime:
    return datetime.now(UTC) + timedelta(seconds=seconds)


def sealed(stream: Stream, capture: AttachCapture) -> Output:
    capture.seal(0, {})
    return read_output(stream.path)


def gaps(output: Output) -> Sequence[object]:
    return [(gap.source, gap.missing_bytes, gap.cause) for gap in output.gaps]


def test_a_stream_that_ended_in_time_between_two_frames_is_whole(stream: Stream) -> None:
    capture = stream.capture()
    stream.says(frame(2, b"error"), frame(1, b""), frame(1, b"out"))
    stream.ends()
    assert not capture.drain(ContainerEnd(now(), witnessed=True), time.sleep)
    output = sealed(stream, capture)
    assert (output.stdout, output.stderr, gaps(output)) == (b"first out", b"error", [])
    assert capture.first_byte_time is not None


@pytest.mark.parametrize(
    "end",
    [
        lambda: ContainerEnd(now(-2), witnessed=True),
        lambda: ContainerEnd(now(), witnessed=False),
        lambda: ContainerEnd(None, witnessed=True),
    ],
    ids=["late", "not witnessed", "nobody knows when"],
)
def test_a_stream_that_may_have_been_cut_short_ends_with_a_gap(stream: Stream, end: Callable[[], ContainerEnd]) -> None:
    capture = stream.capture()
    stream.ends()
    assert capture.drain(end(), time.sleep)
    output = sealed(stream, capture)
    assert (output.stdout, gaps(output)) == (b"first ", UNKNOWN)


@pytest.mark.parametrize("tail", [frame(1, b"whole")[:-1], frame(1, b"whole")[:5]], ids=["data", "header"])
def test_a_frame_that_is_torn_is_a_gap_after_what_came_of_it(stream: Stream, tail: bytes) -> None:
    capture = stream.capture()
    stream.says(tail)
    stream.ends()
    assert capture.drain(ContainerEnd(now(), witnessed=True), time.sleep)
    output = sealed(stream, capture)
    assert output.stdout == b"first " + tail[8:]
    assert gaps(output) == UNKNOWN


def test_what_the_engine_says_of_itself_is_told_and_makes_the_log_doubtful(stream: Stream) -> None:
    capture = stream.capture()
    stream.says(frame(3, b"something broke\n"), frame(1, b"more"))
    stream.ends()
    assert capture.drain(ContainerEnd(now(), witnessed=True), time.sleep)
    output = sealed(stream, capture)
    assert (output.stdout, output.stderr, gaps(output)) == (b"first more", b"", UNKNOWN)
    assert stream.said == ["the engine says of the output: something broke"]


def test_a_stream_of_a_container_that_never_ran_is_not_waited_for(stream: Stream) -> None:
    capture = stream.capture()
    capture.drain(None, time.sleep)
    assert gaps(sealed(stream, capture)) == []


def test_a_break_is_a_gap_and_then_it_goes_on(stream: Stream) -> None:
    capture = stream.capture()
    capture.detach()
    capture = stream.capture(resume=True)
    stream.says(frame(1, b"after"))
    stream.ends()
    assert capture.drain(ContainerEnd(now(), witnessed=True), time.sleep)
    output = sealed(stream, capture)
    assert output.stdout.endswith(b"first after")
    assert gaps(output) == UNKNOWN


def test_a_break_that_is_found_twice_at_one_place_is_one_gap(stream: Stream) -> None:
    stream.capture().detach()
    capture = stream.new_capture()
    capture.resume(None)
    capture.resume(None)
    assert capture.drain(ContainerEnd(now(), witnessed=True), time.sleep)
    assert gaps(sealed(stream, capture)) == UNKNOWN


@given(
    st.lists(st.tuples(st.sampled_from([1, 2]), st.binary(max_size=300)), max_size=20),
    st.lists(st.integers(1, 40), min_size=1),
)
@settings(max_examples=200)
def test_frames_come_out_the_same_however_they_are_cut(sent: list[tuple[int, bytes]], cuts: list[int]) -> None:
    data = b"".join(frame(source, content) for source, content in sent)
    frames, got, at = Frames(), {1: b"", 2: b""}, 0
    while at < len(data):
        size = min(cuts[at % len(cuts)], len(data) - at)
        frames.room[:size] = data[at : at + size]
        for source, piece in frames.take(size):
            got[source] += bytes(piece)
        frames.recycle()
        at += size
    assert got == {number: b"".join(content for source, content in sent if source == number) for number in (1, 2)}
    assert frames.between
    assert not frames.broken


def test_a_frame_larger_than_the_buffer_passes_through() -> None:
    frames, data = Frames(), frame(1, b"x" * (BUFFER_BYTES * 2))
    got, at = 0, 0
    while at < len(data):
        size = min(len(frames.room), len(data) - at)
        frames.room[:size] = data[at : at + size]
        got += sum(len(piece) for _, piece in frames.take(size))
        frames.recycle()
        at += size
    assert (got, frames.between) == (BUFFER_BYTES * 2, True)
