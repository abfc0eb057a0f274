"""Scripts that print in different ways, and the check that a reader has all of their output."""

import zlib
from dataclasses import dataclass

from fastlane_grpc.v1 import fastlane_pb2 as pb
from tests.reading import Reader


@dataclass(frozen=True)
class Load:
    """A script, and what it prints; it exits with `code`."""

    script: str
    stdout: bytes
    stderr: bytes
    code: int


def numbers(count: int, before: str = "") -> bytes:
    return "".join([f"{before}{number}\n" for number in range(1, count + 1)]).encode()


# More than all buffers on the way hold, of both sources at once.
FLOOD = Load("seq 1 150000 & seq 1 100000 >&2; wait; exit 7", numbers(150_000), numbers(100_000), 7)
# Longer than a server lives that is killed at random.
SLOW = Load(
    "i=0; while [ $i -lt 60 ]; do i=$((i+1)); echo $i; echo e$i >&2; sleep 0.05; done; exit 8",
    numbers(60),
    numbers(60, "e"),
    8,
)
# Over while no server is there, as often as not.
SHORT = Load("sleep 0.$((RANDOM % 10)); printf last; exit 9", b"last", b"", 9)


def assert_whole(load: Load, reader: Reader) -> None:
    """Wait for the end of a job, and check its state, its output of both sources, and the totals of its log."""
    end = reader.end()
    what = f"{reader.execution_id} of {load.script!r}: {end.outcome} {reader.system}"
    assert end.sealed, what
    assert (end.state, end.exit_status) == (pb.STATE_FAILED, load.code), what
    assert reader.gaps == [], what
    assert (reader.stdout, reader.stderr) == (load.stdout, load.stderr), what
    for source, content in ((pb.SOURCE_STDOUT, load.stdout), (pb.SOURCE_STDERR, load.stderr)):
        totals = reader.totals(source)
        assert (totals.bytes, totals.missing_bytes) == (len(content), 0), what
        assert totals.crc32 == zlib.crc32(content), what
