"""Readers of one log, whenever they come and however they are cut off: each gets every byte once, and none waits on
another."""

import json
import os
import random
import re
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import docker
import grpc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastlane_grpc.client import Backoff, Client
from fastlane_grpc.logs import Logs
from fastlane_grpc.model import Source
from fastlane_grpc.record import RecordWriter
from fastlane_grpc.v1 import fastlane_pb2 as pb
from fastlane_grpc.v1 import fastlane_pb2_grpc
from tests.cutting_relay import CuttingRelay
from tests.reading import Reader, run
from tests.serving import Server, serving_on, within
from tests.tally import tally

pytestmark = pytest.mark.engine

QUICK = Backoff(first_seconds=0.01, longest_seconds=0.05)
# A server that keeps little in memory, so that what a reader makes it keep is seen.
CACHE_BYTES = 8 << 20
# Logs that are read while their connections are cut. Each is cut up to eight times.
CUT_LOGS = int(os.environ.get("CHAOS_CUT_LOGS", "25"))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, sdk: docker.DockerClient) -> Iterator[Server]:
    """With one place: a second job is queued for as long as the first one runs."""
    data_dir = tmp_path_factory.mktemp("readers") / "data"
    with serving_on(sdk, data_dir, max_running=1, cache_bytes=CACHE_BYTES) as server:
        yield server


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[Client]:
    with Client(server.address) as client:
        yield client


def numbers(until: int) -> bytes:
    return b"".join(b"%d\n" % number for number in range(1, until + 1))


def sh(client: Client, image: str, script: str) -> pb.Job:
    return client.enqueue("readers", image, args=["sh", "-c", script])


@contextmanager
def place_taken(client: Client, image: str) -> Iterator[None]:
    """What is put in meanwhile is queued."""
    job = sh(client, image, "sleep 60")
    try:
        # A server serves before its engine has answered it for the first time.
        Reader(client, job.execution.id).wait_for_state(pb.STATE_PREPARING)
        yield
    finally:
        client.stop(job.id, grace=0)


# -- whenever they come


def test_who_follows_before_the_start_is_told_of_every_state_and_gets_every_byte(client: Client, image: str) -> None:
    with place_taken(client, image):
        job = sh(client, image, "echo begin; sleep 0.3; echo end")
        log = Reader(client, job.execution.id)
        log.wait_for_state(pb.STATE_QUEUED)
        waiting = log.changes[0].waiting
        assert waiting is not None
        assert (waiting.reason, waiting.detail) == (pb.WAIT_REASON_NO_FREE_SLOT, "1 of 1 slots in use")
    assert (log.end().exit_status, log.stdout) == (0, b"begin\nend\n")
    assert log.states == [pb.STATE_QUEUED, pb.STATE_PREPARING, pb.STATE_RUNNING, pb.STATE_SUCCEEDED]


def test_a_log_has_one_line_about_the_wait_whether_somebody_looked_or_not(client: Client, image: str) -> None:
    with place_taken(client, image):
        nobody_looks, job = sh(client, image, "true"), sh(client, image, "exit 4")
        log = Reader(client, job.execution.id)
        log.wait_for_state(pb.STATE_QUEUED)
        waiting = log.changes[0].waiting
        assert waiting is not None
        assert (waiting.reason, waiting.detail, waiting.ahead) == (
            pb.WAIT_REASON_NO_FREE_SLOT,
            "1 of 1 slots in use",
            1,
        )
        # A wait shorter than a second is not worth a line.
        time.sleep(1)
    assert log.end().exit_status == 4
    other = Reader(client, nobody_looks.execution.id)
    other.end()
    for lines in (log.system.splitlines(), other.system.splitlines()):
        assert re.fullmatch(r"got a slot after \d+\.\d s", lines[0])
        assert lines[1].startswith("started on host local, output captured by ")
        assert len(lines) == 3


def test_who_joins_late_gets_what_was_before_and_what_comes(
    client: Client, sdk: docker.DockerClient, image: str
) -> None:
    job = sh(client, image, "seq 1 50000; echo half; until [ -e /tmp/go ]; do sleep 0.05; done; seq 1 50000")
    early = Reader(client, job.execution.id)
    early.wait_for_output(b"half\n")
    late = Reader(client, job.execution.id)
    late.wait_for_output(b"half\n")
    sdk.containers.get(late.execution().container_id).exec_run("touch /tmp/go")
    expected = numbers(50000) + b"half\n" + numbers(50000)
    after = Reader(client, job.execution.id)
    for log in (early, late, after):
        assert log.end().exit_status == 0
        assert log.stdout == expected
        assert log.system == early.system


# -- however they are cut off


@pytest.fixture(scope="module")
def sealed(client: Client, image: str) -> Reader:
    """A log that is at its end, of both sources."""
    log = run(client, image, "sh", "-c", "seq 1 100000 & seq 1 120000 >&2; wait")
    assert (log.stdout, log.stderr) == (numbers(100000), numbers(120000))
    return log


@settings(max_examples=CUT_LOGS)
@given(cuts=st.lists(st.one_of(st.integers(0, 2000), st.integers(0, 1_400_000)), max_size=8))
@pytest.mark.slow
@pytest.mark.timeout(120 + CUT_LOGS)
def test_a_log_that_is_cut_at_random_points_is_read_whole(server: Server, sealed: Reader, cuts: list[int]) -> None:
    with closing(CuttingRelay(server.address, cuts)) as relay, Client(relay.address, backoff=QUICK) as client:
        log = Reader(client, sealed.execution_id)
        assert log.end() == sealed.end()
        assert log.data == sealed.data
        tally(log.cuts)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_followers_that_are_cut_at_random_points_get_the_same(
    server: Server, client: Client, image: str, seed: int
) -> None:
    chance = random.Random(seed)
    job = sh(client, image, "for i in 1 2 3 4 5; do seq 1 20000; seq 1 10000 >&2; sleep 0.1; done")
    relays = [CuttingRelay(server.address, [chance.randrange(200_000) for _ in range(6)]) for _ in range(6)]
    clients = [Client(relay.address, backoff=QUICK) for relay in relays]
    logs = [Reader(each, job.execution.id) for each in clients]
    for log in logs:
        assert log.end().exit_status == 0
        assert log.stdout == 5 * numbers(20000)
        assert log.stderr == 5 * numbers(10000)
        assert log.gaps == []
    assert sum(log.cuts for log in logs) >= 6
    for client, relay in zip(clients, relays, strict=True):
        client.close()
        relay.close()


# -- a crowd


def test_three_hundred_who_follow_one_execution_all_get_every_byte(server: Server, client: Client, image: str) -> None:
    with place_taken(client, image):
        job = sh(client, image, "seq 1 200000")
        command = [sys.executable, "-m", "tests.crowd", server.address, job.execution.id, "300"]
        crowd = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert crowd.stdout
        assert crowd.stdout.readline() == "ready\n"
    got = json.loads(crowd.communicate(timeout=60)[0])
    expected = numbers(200000)
    assert got == {json.dumps([len(expected), zlib.crc32(expected), True, 0]): 300}


# -- a reader that does not read


def test_who_does_not_read_holds_up_nobody_and_costs_no_memory(server: Server, client: Client, image: str) -> None:
    options = [
        ("grpc.http2.lookahead_bytes", 65_536),
        ("grpc.http2.bdp_probe", 0),
        ("grpc.use_local_subchannel_pool", 1),
    ]
    with grpc.insecure_channel(server.address, options=options) as channel:
        job = sh(client, image, "yes 'what nobody reads' | head -c 100000000")
        stub = fastlane_pb2_grpc.ExecutionServiceStub(channel)
        stalled = [
            stub.StreamExecutionLogs(pb.StreamExecutionLogsRequest(execution_id=job.execution.id)) for _ in range(5)
        ]
        for call in stalled:
            assert next(call).WhichOneof("event") == "state"
        before = server.memory_bytes()
        # It ends, and one who reads gets all of it, though five have read next to nothing.
        log = Reader(client, job.execution.id)
        assert (log.end().exit_status, log.totals().bytes) == (0, 100_000_000)
        grown = server.memory_bytes() - before
        assert grown < 40 << 20, "five logs of 100 MB are not kept in memory for those who do not read"
        # Whenever they read on, they get all of it too.
        assert checksum(stalled[0]) == checksum(stalled[1]) == (100_000_000, log.totals().crc32, 0)


def checksum(call: Iterator[pb.StreamExecutionLogsResponse]) -> tuple[int, int, int | None]:
    """Bytes and CRC-32 of stdout, and exit status, of the rest of a stream."""
    size = crc32 = 0
    for message in call:
        for chunk in message.chunks:
            if chunk.source == pb.SOURCE_STDOUT:
                size += len(chunk.data)
                crc32 = zlib.crc32(chunk.data, crc32)
        if message.WhichOneof("event") == "end":
            return size, crc32, message.end.exit_status
    return size, crc32, None


# -- many small chunks


@pytest.mark.slow
def test_two_hundred_thousand_small_chunks_reach_a_late_reader(
    tmp_path: Path, sdk: docker.DockerClient, image: str
) -> None:
    data_dir = tmp_path / "data"
    # By attach: a recorder would not know that somebody else writes its record.
    first = Server(data_dir, capture="attach")
    with Client(first.address) as client:
        log = Reader(client, sh(client, image, "echo begin; until [ -e /tmp/go ]; do sleep 0.05; done").execution.id)
        log.wait_for_output(b"begin\n")
        container_id = log.execution().container_id
        first.kill()
    # An engine hands over more at once than a container wrote at once. So they are written here, as if its output had
    # come like this.
    pieces = [(Source.STDERR if number % 2 else Source.STDOUT, b"%d\n" % number) for number in range(200_000)]
    with closing(RecordWriter.resume(Logs(data_dir / "logs").output_path(log.execution_id))) as writer:
        writer.write(pieces, time.time_ns())
    with serving_on(sdk, data_dir) as server, Client(server.address) as client:
        sdk.containers.get(container_id).exec_run("touch /tmp/go")
        assert Reader(client, log.execution_id).end().exit_status == 0
        with within(10):
            late = Reader(client, log.execution_id)
            assert late.end().sealed
    assert late.chunks > 200_000
    assert late.stdout == b"begin\n" + b"".join(data for source, data in pieces if source is Source.STDOUT)
    assert late.stderr == b"".join(data for source, data in pieces if source is Source.STDERR)
