"""The log of a node read into a record: contiguous, or with a gap, whatever the node and the servers do meanwhile."""

import random
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from fastlane_grpc.capture import node_log, stamped_lines
from fastlane_grpc.capture.node_log import LogNotThere, NodeLogReader, ReadingStopped
from fastlane_grpc.capture.stamped_lines import NotStamped
from fastlane_grpc.model import Cause, Source
from fastlane_grpc.record import Chunk, Gap, Position, RecordReader, RecordWriter

GAP = (Source.STDOUT, None, Cause.ENGINE)


class Node:
    """A node with one log, which it rotates. An answer may break off after so many bytes."""

    def __init__(self) -> None:
        self.time_ns = 0
        self.file: list[tuple[int, bytes]] = []
        self.printed = b""
        self.is_there = True
        self.breaks_after: int | None = None
        self.says = b""

    def print(self, content: bytes, *, same_time: bool = False) -> None:
        """Print what ends with its first newline, or has none."""
        self.time_ns += 0 if same_time and self.file else 1
        self.printed += content
        if self.file and not self.file[-1][1].endswith(b"\n"):
            time_ns, begun = self.file.pop()
            self.file.append((time_ns, begun + content))
        else:
            self.file.append((self.time_ns, content))

    def rotate(self) -> None:
        self.file = []

    def read(self, last_lines: int | None) -> Iterator[bytes]:
        if not self.is_there:
            raise LogNotThere("the container has not begun")
        lines = self.file if last_lines is None else self.file[max(0, len(self.file) - last_lines) :]
        answer = b"".join(b"2026-11-29T15:00:00.%09dZ " % time_ns + content for time_ns, content in lines) + self.says
        limit = len(answer) if self.breaks_after is None else self.breaks_after
        for begin in range(0, min(limit, len(answer)), 50):
            yield answer[begin : min(begin + 50, limit)]
        if limit < len(answer):
            raise OSError("the log broke off")


class Reading:
    """Readers of a node's log over one record, one after another."""

    def __init__(self, directory: Path, node: Node) -> None:
        self.node = node
        self.path = directory / "log"
        self.note = directory / "node-log"
        self.record = RecordWriter.create(self.path, execution_id="x", capture="kubelet")
        self.reader = NodeLogReader(node, self.record, self.note, is_new=True)

    def restart(self) -> None:
        """The next server: all that the one before knows is gone."""
        self.record.close()
        self.record = RecordWriter.resume(self.path)
        self.reader = NodeLogReader(self.node, self.record, self.note, is_new=False)

    def entries(self) -> list[Chunk | Gap]:
        reader = RecordReader(self.path)
        try:
            return list(reader.read(Position.BEGIN, max_bytes=1 << 30).entries)
        finally:
            reader.close()

    def pieces(self) -> list[bytes]:
        """Return the output between gaps."""
        pieces = [b""]
        for entry in self.entries():
            if isinstance(entry, Chunk):
                pieces[-1] += entry.data
            else:
                assert (entry.source, entry.missing_bytes, entry.cause) == GAP
                pieces.append(b"")
        return pieces


@pytest.fixture
def node() -> Node:
    return Node()


@pytest.fixture
def reading(tmp_path: Path, node: Node) -> Reading:
    return Reading(tmp_path, node)


def test_each_answer_goes_on_where_the_last_one_ended(reading: Reading, node: Node) -> None:
    assert reading.reader.read_on() == 0
    for content in (b"one\n", b"two\n", b"thr", b"ee\n", b"\n", b"no newline"):
        node.print(content)
        assert reading.reader.read_on() == len(content)
        assert reading.reader.read_on() == 0
    assert reading.pieces() == [node.printed]
    assert reading.reader.whole


def test_a_log_that_was_rotated_has_a_gap_where_it_was_left(reading: Reading, node: Node) -> None:
    node.print(b"one\n")
    reading.reader.read_on()
    node.print(b"two\n")
    node.rotate()
    assert reading.reader.read_on() == 0
    node.print(b"three\n")
    reading.reader.read_on()
    assert reading.pieces() == [b"one\n", b"three\n"]
    assert not reading.reader.whole


def test_lines_of_one_time_are_told_apart(reading: Reading, node: Node) -> None:
    for number in range(5):
        node.print(b"same\n", same_time=True)
        node.print(b"same\n", same_time=True)
        reading.reader.read_on()
        if number % 2:
            reading.restart()
    assert reading.pieces() == [b"same\n" * 10]


def test_what_was_written_and_not_noted_is_not_written_twice(reading: Reading, node: Node) -> None:
    node.print(b"one\n")
    reading.reader.read_on()
    noted = reading.note.read_text()
    for content in (b"two\n", b"three\n", b"fou"):
        node.print(content)
    reading.reader.read_on()
    reading.note.write_text(noted)
    reading.restart()
    node.print(b"r\n")
    reading.reader.read_on()
    assert reading.pieces() == [node.printed]


@pytest.mark.parametrize("note", ["", "x y z", "99999 1 1", "-"])
def test_without_a_note_nothing_is_written_twice_and_a_gap_is_told(reading: Reading, node: Node, note: str) -> None:
    node.print(b"one\n")
    reading.reader.read_on()
    reading.note.write_text(note)
    if note == "-":
        reading.note.unlink()
    reading.restart()
    node.print(b"two\n")
    reading.reader.read_on()
    node.print(b"three\n")
    reading.reader.read_on()
    assert reading.pieces() == [b"one\n", b"three\n"]


def test_a_first_answer_is_doubted_if_something_may_have_been_before(tmp_path: Path, node: Node) -> None:
    node.print(b"first\n")
    for name, restarts, size, whole in (("a", False, 1, True), ("b", True, 1, False), ("c", False, 1 << 20, False)):
        (tmp_path / name).mkdir()
        reading = Reading(tmp_path / name, node)
        node.print(b"x" * size + b"\n")
        if restarts:
            reading.restart()
        reading.reader.read_on()
        assert reading.pieces() == ([node.printed] if whole else [b"", node.printed])


def test_a_container_that_had_not_begun_is_read_from_its_beginning(reading: Reading, node: Node) -> None:
    node.is_there = False
    reading.restart()
    with pytest.raises(LogNotThere):
        reading.reader.read_on()
    node.is_there = True
    node.print(b"one\n")
    reading.reader.read_on()
    assert reading.pieces() == [b"one\n"]


def test_words_of_the_node_about_a_log_are_no_output(reading: Reading, node: Node) -> None:
    node.print(b"one\n")
    node.says = b"unable to retrieve container logs for x\n"
    with pytest.raises(NotStamped, match="unable to retrieve"):
        reading.reader.read_on()
    node.says = b""
    node.print(b"two\n")
    reading.reader.read_on()
    assert reading.pieces() == [b"one\ntwo\n"]


def test_a_log_that_somebody_shortened_has_a_gap(reading: Reading, node: Node) -> None:
    node.print(b"one\n")
    node.print(b"two two two\n")
    reading.reader.read_on()
    node.file[-1] = (node.time_ns, b"two\n")
    reading.reader.read_on()
    node.print(b"three\n")
    reading.reader.read_on()
    assert reading.pieces() == [b"one\ntwo two two\n", b"three\n"]


def test_a_long_line_takes_no_more_memory_than_a_part(
    reading: Reading, node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stamped_lines, "PART_BYTES", 100)
    monkeypatch.setattr(node_log, "BATCH_BYTES", 1000)
    reading.reader.read_on()
    node.print(b"x" * 990)
    reading.reader.read_on()
    node.print(b"y" * 10_000)
    reading.reader.read_on()
    node.print(b"z\n")
    reading.reader.read_on()
    assert reading.pieces() == [node.printed]


def test_a_full_disk_is_waited_for_until_the_reader_is_stopped(reading: Reading, node: Node) -> None:
    class Stopping(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            failed.set()
            return super().wait(timeout)

    failed = threading.Event()
    reading.reader.stopping = Stopping()
    node.print(b"one\n")
    reading.note.with_suffix(".new").mkdir()
    with ThreadPoolExecutor(1) as threads:
        waits = threads.submit(reading.reader.read_on)
        assert failed.wait(60)
        reading.reader.stop()
        with pytest.raises(ReadingStopped):
            waits.result(60)
    reading.note.with_suffix(".new").rmdir()
    reading.restart()
    reading.reader.read_on()
    assert b"".join(reading.pieces()) == b"one\n"


@pytest.mark.parametrize("seed", range(60))
def test_whatever_happens_pieces_are_contiguous_and_losses_are_gaps(
    tmp_path: Path, node: Node, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(node_log, "FEWEST_LINES", 3)
    monkeypatch.setattr(node_log, "BATCH_BYTES", 150)
    monkeypatch.setattr(stamped_lines, "PART_BYTES", 60)
    chance = random.Random(seed)
    reading = Reading(tmp_path, node)
    node.print(b"begin\n")
    reading.reader.read_on()
    for number in range(120):
        what = chance.random()
        if what < 0.5:
            for each in range(chance.choice((1, 1, 3, 20))):
                end = b"\n" if chance.random() < 0.9 else b""
                text = b"%d.%d " % (number, each) + b"-" * chance.choice((0, 3, 300))
                node.print(text + end, same_time=chance.random() < 0.1)
        elif what < 0.56:
            node.rotate()
        elif what < 0.62:
            reading.restart()
        else:
            node.breaks_after = chance.choice((None, None, chance.randrange(1, 2000)))
            with suppress(OSError):
                reading.reader.read_on()
    node.breaks_after = None
    while reading.reader.read_on():
        pass
    place = 0
    for number, piece in enumerate(reading.pieces()):
        found = node.printed.find(piece, place)
        assert found >= 0, piece
        # Only behind a gap may something be missing.
        assert found == place or number > 0
        place = found + len(piece)
    assert place == len(node.printed) or not node.file or not reading.pieces()[-1]
