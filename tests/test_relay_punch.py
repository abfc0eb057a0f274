"""What a record keeps on its node: what is not on the server's disk, and little else. Its log stays exact."""

import asyncio
import os
import random
import shutil
import signal
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from structlog.testing import capture_logs

from fastlane_grpc.model import Cause, Source
from fastlane_grpc.record import RecordReader
from fastlane_grpc.record.format import BLOCK_BYTES, Chunk, Gap
from fastlane_grpc.record.scan import Position
from fastlane_grpc.rpc.relay import FEW_BYTES, SERVICE
from tests.cluster.processes import wait_until
from tests.recorder_program import EXECUTION_ID, python, walk
from tests.relay_pair import FLOOD, SECONDS, Pair, counted, ends_well, numbered
from tests.sparse_disk import sparse_disk
from tests.tally import tally

ROUNDS = int(os.environ.get("CHAOS_ROUNDS", "2"))
SEED = int(os.environ.get("CHAOS_SEED", "1"))

# In the stage of the cluster, which builds the relay.
pytestmark = [pytest.mark.cluster, pytest.mark.timeout(120 + 30 * ROUNDS)]

MIB = 1 << 20
# What stays on a node where everything is copied: what no sync is worth, and the newest blocks.
MOST_IDLE_BYTES = FEW_BYTES + 4 * BLOCK_BYTES
# For each byte in a pipe, prints so many bytes of numbered lines to stdout, and an eighth of that to stderr.
STEPS = """
import os, sys
numbers = [0, 0]
with open(sys.argv[1], "rb", buffering=0) as pipe:
    while pipe.read(1):
        for source in (0, 1):
            first, count = numbers[source], int(sys.argv[2]) // (16, 128)[source]
            os.write(source + 1, b"".join(b"%015d\\n" % each for each in range(first, first + count)))
            numbers[source] += count
"""


class Steps:
    """A job that prints the next bytes when it is told to."""

    def __init__(self, pair: Pair, step_bytes: int = 8 * MIB) -> None:
        path = pair.pod / "steps"
        os.mkfifo(path)
        self._pair, self._step_bytes = pair, step_bytes
        self.printed = 0
        self.running = pair.record(*python(STEPS, path, step_bytes))
        self._pipe = path.open("wb", buffering=0)

    def go(self) -> None:
        """Print the next bytes, and return when the server has them."""
        self._pipe.write(b".")
        self.printed += self._step_bytes
        wait_until(lambda: self._pair.received_bytes > self.printed * 9 // 8, "the bytes arrive")

    def end(self) -> None:
        self._pipe.close()


class Reader:
    """A reader that follows the copy."""

    def __init__(self, pair: Pair) -> None:
        self._reader, self._position = RecordReader(pair.copy / "log"), Position.BEGIN
        self.stdout, self.gaps = bytearray(), list[Gap]()
        self.read_on()

    def read_on(self) -> None:
        """Read to the end of what is there."""
        while entries := (segment := self._reader.read(self._position)).entries:
            self._position = segment.next
            self.gaps += [each for each in entries if isinstance(each, Gap)]
            for each in entries:
                if isinstance(each, Chunk) and each.source is Source.STDOUT:
                    self.stdout += each.data


def becomes_small(pair: Pair) -> None:
    wait_until(lambda: pair.node_bytes <= MOST_IDLE_BYTES, "what is copied is punched out")


def has_numbered_lines(pair: Pair) -> None:
    """Assert that the copy has numbered lines, but for what its limit took, and that its trailer says how much."""
    copy = walk(pair.copy / "log")
    assert copy.gaps == []
    for source in (Source.STDOUT, Source.STDERR):
        printed = numbered(copy.state.sources[source - 1].offset)
        head = copy.head.get(source, 0)
        beyond = head + copy.punched.get(source, 0)
        assert bytes(copy.content[source]) == printed[:head] + printed[beyond:], source
    totals: Any = copy.trailer["totals"] if copy.trailer_payload else []
    assert all(each["missing_bytes"] == copy.punched.get(Source(each["source"]), 0) for each in totals)


def test_a_node_keeps_little_of_a_flood_while_it_runs(pair: Pair) -> None:
    pair.serve()
    relay = pair.relay()
    steps = Steps(pair, 16 * MIB)
    for _ in range(13):
        steps.go()
        becomes_small(pair)
    assert pair.log.stat().st_size > 13 * 18 * MIB
    assert steps.running.process.poll() is None
    steps.end()
    ends_well(relay)
    output = pair.output()
    assert output.trailer
    assert (output.gaps, len(output.stdout), len(output.stderr)) == ([], 13 * 16 * MIB, 13 * 2 * MIB)
    has_numbered_lines(pair)


def test_a_limited_log_is_exact_though_its_node_keeps_none_of_it(make_pair: Callable[..., Pair]) -> None:
    pair = make_pair(max_log_bytes=64 * BLOCK_BYTES)
    pair.serve()
    relay = pair.relay()
    steps = Steps(pair, 3 * MIB)
    for _ in range(8):
        steps.go()
        # So the recorder cannot read the blocks that leave the record.
        becomes_small(pair)
    steps.end()
    ends_well(relay)
    has_numbered_lines(pair)
    assert walk(pair.copy / "log").punched[Source.STDOUT] > 16 * MIB
    assert (pair.copy / "log").stat().st_blocks * 512 <= 66 * BLOCK_BYTES


class KillableServer:
    """The server of a pair as a process."""

    def __init__(self, pair: Pair) -> None:
        words = ["tests.relay_server", pair.address, str(pair.copy), str(pair.max_log_bytes)]
        self._process = subprocess.Popen([sys.executable, "-m", *words], stdout=subprocess.PIPE)
        assert self._process.stdout
        assert self._process.stdout.readline() == b"serving\n"

    def kill(self) -> None:
        self._process.kill()
        self._process.communicate()


def test_no_byte_is_missing_whatever_is_killed_while_blocks_are_punched_out(make_pair: Callable[..., Pair]) -> None:
    chance = random.Random(SEED)
    for number in range(ROUNDS):
        pair = make_pair(str(number), max_log_bytes=chance.choice((0, 0, 64 * BLOCK_BYTES)))
        server, relay = KillableServer(pair), pair.relay()
        running = counted(pair, chance.choice((7, 100, 1000, 4000)))
        for what in (*chance.choices(("server", "relay", "both"), k=chance.randrange(1, 5)), ""):
            size = pair.received_bytes + chance.randrange(1, 12 * MIB)
            wait_until(lambda pair=pair, size=size: pair.received_bytes > size, "the flood is on its way")
            if what in {"server", "both"}:
                server.kill()
            if what in {"relay", "both"}:
                relay.kill()
                relay.wait()
                relay = pair.relay()
            if what in {"server", "both"}:
                server = KillableServer(pair)
            if what:
                tally()
        wait_until(lambda pair=pair: pair.node_bytes < pair.received_bytes, "blocks are punched out")
        if chance.randrange(2):
            running.send(signal.SIGKILL)
            tally()
        else:
            running.stop_hard()
        ends_well(relay)
        server.kill()
        has_numbered_lines(pair)
        accepted = struct.unpack("2q", (pair.pod / "counts").read_bytes())
        sources = walk(pair.copy / "log").state.sources[:2]
        assert all(its.offset >= at_least for its, at_least in zip(sources, accepted, strict=True)), (SEED, number)


@pytest.mark.parametrize("steps_before", [0, 2])
def test_a_server_with_older_data_tells_a_gap_where_the_node_keeps_nothing(
    pair: Pair, tmp_path: Path, steps_before: int
) -> None:
    pair.serve()
    relay = pair.relay()
    wait_until(pair.log.exists, "the start is granted")
    backup = tmp_path / "backup"
    if steps_before == 0:
        shutil.copytree(pair.copy, backup)
    steps = Steps(pair)
    for number in range(1, 5):
        steps.go()
        becomes_small(pair)
        if number == steps_before:
            pair.leave()
            shutil.copytree(pair.copy, backup)
            pair.serve()
    pair.leave()
    shutil.rmtree(pair.copy)
    shutil.copytree(backup, pair.copy)
    pair.serve()
    steps.go()
    steps.end()
    ends_well(relay)
    output = pair.output()
    assert output.trailer
    assert [(gap.source, gap.cause) for gap in output.gaps] == [
        (Source.STDOUT, Cause.STORE),
        (Source.STDERR, Cause.STORE),
    ]
    for gap, content in zip(output.gaps, (output.stdout, output.stderr), strict=True):
        missing = gap.missing_bytes or 0
        printed = numbered(len(content) + missing)
        assert content == printed[: gap.offset] + printed[gap.offset + missing :]
        assert missing > len(printed) // 8


def test_nothing_is_punched_out_that_a_disk_did_not_take(make_pair: Callable[..., Pair], tmp_path: Path) -> None:
    with sparse_disk(tmp_path) as disk, capture_logs() as logged:
        pair = make_pair("pair", copy=disk.path / "copy")
        pair.serve()
        relay = pair.relay()
        steps = Steps(pair, 4 * MIB)
        steps.go()
        becomes_small(pair)
        # The next server does not know what its node has no more.
        pair.leave()
        pair.serve()
        while not logged:
            steps.go()
            wait_until(lambda: bool(logged) or pair.node_bytes <= MOST_IDLE_BYTES, "the copy is on disk, or cannot be")
        node_bytes, reader = pair.node_bytes, Reader(pair)
        for _ in range(3):
            steps.go()
        assert pair.node_bytes >= node_bytes + 3 * 4 * MIB
        (failure,) = logged
        assert failure["event"] == "the disk did not take a part of a record; its relay has to send that again"
        # Also what is taken back from the copy after this.
        reader.read_on()
        disk.make_room()
        steps.end()
        ends_well(relay)
        # As after a power cut: only what is on the disk.
        with (pair.copy / "log").open("rb") as log:
            os.posix_fadvise(log.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        reader.read_on()
        assert (pair.output().gaps, reader.gaps) == ([], [])
        assert pair.output().stdout == bytes(reader.stdout) == numbered(steps.printed)
        pair.leave()


def test_the_next_server_knows_what_a_disk_did_not_take(make_pair: Callable[..., Pair], tmp_path: Path) -> None:
    with sparse_disk(tmp_path) as disk:
        pair = make_pair("pair", copy=disk.path / "copy")
        server, relay = KillableServer(pair), pair.relay()
        steps, failure = Steps(pair, 4 * MIB), pair.copy / "relay-unsynced"
        while not failure.exists():
            steps.go()
            wait_until(lambda: failure.exists() or pair.node_bytes <= MOST_IDLE_BYTES, "the copy is on disk, or not")
        server.kill()
        disk.make_room()
        server = KillableServer(pair)
        steps.go()
        becomes_small(pair)
        steps.end()
        ends_well(relay)
        server.kill()
        # As after a power cut: only what is on the disk.
        with (pair.copy / "log").open("rb") as log:
            os.posix_fadvise(log.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        assert pair.output().gaps == []
        assert pair.output().stdout == numbered(steps.printed)


def test_a_node_without_holes_keeps_the_record(make_pair: Callable[..., Pair], tmp_path: Path) -> None:
    directory = tmp_path / "pod"
    directory.mkdir()
    subprocess.run(["mount", "-t", "ramfs", "ramfs", directory], check=True)
    try:
        pair = make_pair(copy=tmp_path / "other")
        pair.serve()
        relay = pair.relay()
        pair.record(*python(FLOOD, 20))
        _, words = relay.communicate(timeout=SECONDS)
        assert (relay.returncode, words) == (0, b"")
        assert pair.received() == pair.log.read_bytes()
    finally:
        subprocess.run(["umount", "--lazy", directory], check=True)


def test_a_recorder_that_reads_its_blocks_again_finds_them(make_pair: Callable[..., Pair]) -> None:
    pair = make_pair(max_log_bytes=64 * BLOCK_BYTES)
    pair.serve()
    relay = pair.relay(punches=False)
    pair.record(*python(FLOOD, 20))
    ends_well(relay)
    assert walk(pair.log).content == walk(pair.copy / "log").content


@pytest.mark.parametrize("punches", ["true", "false"])
def test_a_relay_is_told_what_is_on_disk_if_it_wants_to_know(pair: Pair, punches: str) -> None:
    async def copied() -> list[bytes]:
        metadata = (
            ("fastlane-execution", EXECUTION_ID),
            ("fastlane-token", pair.token),
            ("fastlane-punches", punches),
        )
        async with grpc.aio.insecure_channel(pair.address) as channel:
            call = channel.stream_stream(f"/{SERVICE}/Copy")(metadata=metadata)
            answers = [bytes(await call.read())]
            for place in range(0, 9 * MIB, MIB // 2):
                await call.write(place.to_bytes(8, "little") + bytes(MIB // 2))
            while punches == "true" and answers[-1] != b"D" + (9 * MIB).to_bytes(8, "little"):
                answers.append(bytes(await asyncio.wait_for(call.read(), SECONDS)))
            await call.write((9 * MIB).to_bytes(8, "little"))
            answers.append(bytes(await call.read()))
            return answers

    pair.serve()
    first, *others, last = pair.wait(copied())
    size = (9 * MIB).to_bytes(8, "little")
    assert (first, last) == (b"G" + bytes(8), b"E" + size)
    assert bool(others) == (punches == "true")
    places = [int.from_bytes(each[1:], "little") for each in others]
    assert places == sorted(places)
