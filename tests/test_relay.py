"""The relay beside a real recorder, and its receiving end: a copy that is exact, whatever is killed."""

import asyncio
import os
import subprocess
import threading
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from fastlane_grpc.capture.relay_tokens import RelayTokens
from fastlane_grpc.capture.relayed_record import Permission, decide, new_pod, permission
from fastlane_grpc.model import Source
from fastlane_grpc.record.format import BLOCK_BYTES
from fastlane_grpc.rpc.relay import SERVICE, RelayServer
from tests.cluster.kit import RELAY, recorder_program
from tests.cluster.processes import wait_until
from tests.engine import Output, read_output
from tests.recorder_program import EXECUTION_ID, Recorder, Running, needs_namespaces, python, walk
from tests.succession import free_address

# In the stage of the cluster, which builds the relay.
pytestmark = [pytest.mark.cluster, pytest.mark.timeout(120)]

SECONDS = 60
TOKENS = RelayTokens(b"a key of the test")
# Prints so many MB of bytes that do not repeat, and one line to stderr.
FLOOD = """
import os, sys
for number in range(int(sys.argv[1]) * 16):
    os.write(1, (b"%d:" % number) + os.urandom(32) * 2000)
os.write(2, b"over")
"""


class Pair:
    """A record and its box as in a pod, and a server at one address with a data directory of its own."""

    def __init__(self, directory: Path, max_log_bytes: int = 0) -> None:
        self.pod, self.copy = directory / "pod", directory / "copy"
        self.box = self.pod / "box"
        self.box.mkdir(parents=True)
        self.box.chmod(0o777)
        self.max_log_bytes = max_log_bytes
        self.token = TOKENS.token(EXECUTION_ID, new_pod(self.copy))
        self.address = free_address()
        self.recorder = Recorder(recorder_program(), self.pod)
        self._relays: list[subprocess.Popen[bytes]] = []
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, daemon=True).start()
        self.server: RelayServer | None = None

    def serve(self) -> None:
        async def begin() -> None:
            # A server of gRPC belongs to the loop on which it is made.
            self.server = RelayServer(TOKENS, self._directory_of, max_log_bytes=self.max_log_bytes)
            assert await self.server.start(self.address)

        self.wait(begin())

    def leave(self) -> None:
        """The server goes away."""
        assert self.server
        self.wait(self.server.stop())
        self.server = None

    def relay(self, token: str = "", execution_id: str = EXECUTION_ID) -> Any:
        relay = subprocess.Popen(
            [RELAY, "--execution", execution_id, "--server", self.address, self.log, self.box],
            env={**os.environ, "FASTLANE_RELAY_TOKEN": token or self.token},
            stderr=subprocess.PIPE,
        )
        self._relays.append(relay)
        return relay

    def record(self, *command: str) -> Running:
        """Run a command under the recorder, once the start is granted."""
        wait_until((self.box / "log").exists, "the start is granted")
        limit = self.max_log_bytes or None
        return self.recorder.start(*command, limit=limit, hand_off=False)

    @property
    def log(self) -> Path:
        return self.pod / "log"

    def received(self) -> bytes:
        path = self.copy / "log"
        return path.read_bytes() if path.exists() else b""

    def output(self) -> Output:
        return read_output(self.copy / "log")

    def close(self) -> None:
        self.recorder.close()
        for relay in self._relays:
            relay.kill()
            relay.wait()
            assert relay.stderr
            relay.stderr.close()
        if self.server:
            self.leave()
        self._loop.call_soon_threadsafe(self._loop.stop)

    async def _directory_of(self, execution_id: str) -> Path | None:
        return self.copy if execution_id == EXECUTION_ID else None

    def wait(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(SECONDS)


@pytest.fixture
def make_pair(tmp_path: Path) -> Iterator[Callable[..., Pair]]:
    needs_namespaces()
    pairs: list[Pair] = []

    def make(**settings: int) -> Pair:
        pairs.append(Pair(tmp_path, **settings))
        return pairs[-1]

    yield make
    for pair in pairs:
        pair.close()


@pytest.fixture
def pair(make_pair: Callable[..., Pair]) -> Pair:
    return make_pair()


def ends_well(relay: Any) -> None:
    _, words = relay.communicate(timeout=SECONDS)
    assert relay.returncode == 0, words


def test_a_copy_is_the_record_to_the_byte(pair: Pair) -> None:
    pair.serve()
    relay = pair.relay()
    running = pair.record(*python(FLOOD, 20))
    ends_well(relay)
    assert running.end() == (0, "")
    assert pair.received() == pair.log.read_bytes()
    assert pair.output().trailer
    assert pair.output().stderr == b"over"
    assert not pair.box.exists()
    assert permission(pair.copy) is Permission.GRANTED


def test_output_arrives_while_the_command_runs(pair: Pair) -> None:
    pair.serve()
    relay = pair.relay()
    running = pair.record("sh", "-c", "echo first; exec sleep 1000")
    wait_until(lambda: b"first" in pair.received(), "the output is there")
    running.stop_hard()
    ends_well(relay)
    assert pair.received() == pair.log.read_bytes()


def test_no_byte_is_missing_after_a_server_went_away_eight_times(pair: Pair) -> None:
    pair.serve()
    relay = pair.relay()
    pair.record(*python(FLOOD, 40))
    for number in range(8):
        wait_until(lambda number=number: len(pair.received()) >= number * 4 << 20, "the flood is on its way")
        pair.leave()
        pair.serve()
    ends_well(relay)
    assert pair.received() == pair.log.read_bytes()


def test_a_server_that_is_away_at_the_end_gets_everything_later(pair: Pair) -> None:
    pair.serve()
    relay = pair.relay()
    running = pair.record("sh", "-c", "echo first; exec sleep 1000")
    wait_until(lambda: b"first" in pair.received(), "the output is there")
    pair.leave()
    assert not (pair.copy / "relay-end").exists(), "it was broken off"
    running.stop_hard()
    running.end()
    assert relay.poll() is None
    pair.serve()
    ends_well(relay)
    assert pair.received() == pair.log.read_bytes()
    assert pair.output().trailer


def test_a_side_that_is_closed_is_no_end_of_the_record(pair: Pair) -> None:
    async def broken_off() -> grpc.StatusCode:
        metadata = (("fastlane-execution", EXECUTION_ID), ("fastlane-token", pair.token))
        async with grpc.aio.insecure_channel(pair.address) as channel:
            call = channel.stream_stream(f"/{SERVICE}/Copy")(metadata=metadata)
            assert await call.read() == bytes(8)
            await call.write(bytes(8) + b"a piece")
            await call.done_writing()
            return await call.code()

    pair.serve()
    assert pair.wait(broken_off()) is grpc.StatusCode.UNAVAILABLE
    assert pair.received() == b"a piece"
    assert not (pair.copy / "relay-end").exists()


def test_a_relay_that_is_killed_goes_on_where_it_was(pair: Pair) -> None:
    pair.serve()
    relay = pair.relay()
    pair.record(*python(FLOOD, 20))
    for number in range(4):
        wait_until(lambda number=number: len(pair.received()) >= number * 3 << 20, "the flood is on its way")
        relay.kill()
        relay.wait()
        relay = pair.relay()
    ends_well(relay)
    assert pair.received() == pair.log.read_bytes()


def test_a_killed_recorder_leaves_all_that_it_stored(pair: Pair) -> None:
    pair.serve()
    relay = pair.relay()
    running = pair.record("sh", "-c", "echo first; exec sleep 1000")
    wait_until(lambda: b"first" in pair.received(), "the output is there")
    running.send(9)
    ends_well(relay)
    assert pair.output().stdout == b"first\n"
    assert pair.output().trailer is None


def test_a_copy_of_a_limited_record_has_the_same_output_and_size(make_pair: Callable[..., Pair]) -> None:
    pair = make_pair(max_log_bytes=16 * BLOCK_BYTES)
    pair.serve()
    relay = pair.relay()
    wait_until((pair.box / "log").exists, "the start is granted")
    # Away for a while: what is punched out meanwhile, it never sees.
    relay.kill()
    relay.wait()
    running = pair.recorder.start(*python(FLOOD, 8), limit=pair.max_log_bytes)
    running.end()
    ends_well(pair.relay())
    mine, its = walk(pair.copy / "log"), walk(pair.log)
    assert (mine.content, mine.punched, mine.trailer) == (its.content, its.punched, its.trailer)
    assert its.punched[Source.STDOUT]
    assert (pair.copy / "log").stat().st_blocks <= pair.log.stat().st_blocks + 8


def test_no_command_runs_whose_start_was_revoked(pair: Pair) -> None:
    decide(pair.copy, Permission.REVOKED)
    pair.serve()
    relay = pair.relay()
    _, words = relay.communicate(timeout=SECONDS)
    assert relay.returncode == 3
    assert b"the start of this execution was revoked" in words
    running = pair.recorder.start("sh", "-c", f"touch {pair.pod}/ran", hand_off=False)
    code, _ = running.end()
    assert code == 119
    assert not (pair.pod / "ran").exists()


@pytest.mark.parametrize("of", ["another execution", "for another execution", "an earlier pod"])
def test_a_token_opens_the_record_of_its_pod_alone(pair: Pair, of: str) -> None:
    pair.serve()
    if of == "an earlier pod":
        new_pod(pair.copy)
    token = TOKENS.token("another", "1") if of == "another execution" else pair.token
    relay = pair.relay(token, "another" if of == "for another execution" else EXECUTION_ID)
    _, said = relay.communicate(timeout=SECONDS)
    assert relay.returncode == 3
    assert b"not the token of a pod that is expected" in said
    assert permission(pair.copy) is None
    assert not (pair.box / "log").exists()
