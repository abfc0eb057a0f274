"""A record in a pod and its copy: the relay and a real recorder on one machine, and the server for relays."""

import asyncio
import os
import struct
import subprocess
import threading
from collections.abc import Callable, Coroutine, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from fastlane_grpc.capture.relay_calls import relay_calls
from fastlane_grpc.capture.relay_tokens import RelayTokens
from fastlane_grpc.capture.relayed_record import new_pod
from fastlane_grpc.record.format import BLOCK_BYTES
from fastlane_grpc.rpc.relay import RelayServer
from tests.cluster.kit import RELAY, recorder_program
from tests.cluster.processes import wait_until
from tests.engine import Output, read_output
from tests.recorder_program import EXECUTION_ID, Recorder, Running, needs_namespaces, python, walk
from tests.succession import free_address

SECONDS = 60
TOKENS = RelayTokens(b"a key of the test")
# Prints so many MB of bytes that do not repeat, and one line to stderr.
FLOOD = """
import os, sys
for number in range(int(sys.argv[1]) * 16):
    os.write(1, (b"%d:" % number) + os.urandom(32) * 2000)
os.write(2, b"over")
"""
# Prints numbered lines to both sources, and notes after each call how many bytes the kernel has accepted of each.
COUNTED = """
import mmap, os, struct, sys
with open(sys.argv[1], "r+b") as file:
    counts = mmap.mmap(file.fileno(), 16)
accepted = [0, 0]
number = 0
while True:
    lines = b"".join(b"%015d\\n" % (number + each) for each in range(int(sys.argv[2])))
    for source in (0, 1):
        written = 0
        while written < len(lines):
            written += os.write(source + 1, lines[written:])
            struct.pack_into("q", counts, 8 * source, accepted[source] + written)
        accepted[source] += len(lines)
    number += int(sys.argv[2])
"""


class Pair:
    """A record and its box as in a pod, and a server at one address with a data directory of its own."""

    def __init__(self, directory: Path, max_log_bytes: int = 0, copy: Path | None = None) -> None:
        self.pod, self.copy = directory / "pod", copy or directory / "copy"
        self.box = self.pod / "box"
        self.box.mkdir(parents=True)
        self.box.chmod(0o777)
        self.max_log_bytes = max_log_bytes
        # The new records, and whether each was there when it was told of.
        self.told: list[tuple[str, bool]] = []
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
            self.server = RelayServer(
                TOKENS,
                self._directory_of,
                max_log_bytes=self.max_log_bytes,
                on_new_record=lambda execution_id: self.told.append((execution_id, (self.copy / "log").exists())),
            )
            assert await self.server.start(self.address)

        self.wait(begin())

    def leave(self) -> None:
        """The server goes away."""
        assert self.server
        self.wait(self.server.stop())
        self.server = None

    def relay(
        self,
        token: str = "",
        execution_id: str = EXECUTION_ID,
        *,
        wants: Sequence[str | Path] = (),
        punches: bool = True,
        program: Path = RELAY,
    ) -> Any:
        """Start a relay. `punches`: it punches out what is on the server's disk."""
        salvage = ["--recorder", str(recorder_program()), "--limit", str(self.max_log_bytes)]
        relay = subprocess.Popen(
            [str(program), "--execution", execution_id, "--server", self.address, *salvage, *wants, self.log, self.box],
            env={
                **os.environ,
                "FASTLANE_RELAY_TOKEN": token or self.token,
                **({"FASTLANE_RELAY_PUNCHES": "1"} if punches else {}),
            },
            stderr=subprocess.PIPE,
        )
        self._relays.append(relay)
        return relay

    def record(self, *command: str, options: Sequence[str | Path] = ()) -> Running:
        """Run a command under the recorder, once the start is granted."""
        wait_until((self.box / "log").exists, "the start is granted")
        limit = ("--limit", str(self.max_log_bytes)) if self.max_log_bytes else ()
        words = ("--execution", EXECUTION_ID, *limit, *map(str, options), str(self.box), "--", *command)
        return self.recorder.start(options=words, hand_off=False)

    @property
    def log(self) -> Path:
        return self.pod / "log"

    @property
    def stdin(self) -> Path:
        return self.pod / "stdin"

    @property
    def wants(self) -> Sequence[str | Path]:
        """The options of a relay whose job gets secrets and a standard input."""
        return ["--secrets", "--stdin", self.stdin]

    def received(self) -> bytes:
        path = self.copy / "log"
        return path.read_bytes() if path.exists() else b""

    def is_copied(self) -> bool:
        """Whether the copy is the record to the byte, where nothing was punched out of that. Asserts all that the
        format says of the copy."""
        walk(self.copy / "log")
        mine, its = self.received(), self.log.read_bytes()
        places = range(0, len(its), BLOCK_BYTES)
        return len(mine) == len(its) and all(
            its[place : place + BLOCK_BYTES] in (mine[place : place + BLOCK_BYTES], bytes(BLOCK_BYTES))
            for place in places
        )

    @property
    def received_bytes(self) -> int:
        path = self.copy / "log"
        return path.stat().st_size if path.exists() else 0

    @property
    def node_bytes(self) -> int:
        """The room that the record takes on its node."""
        return self.log.stat().st_blocks * 512

    def output(self) -> Output:
        return read_output(self.copy / "log")

    def close(self) -> None:
        relay_calls.withdraw(self.copy)
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

    def make(name: str = "", **settings: Any) -> Pair:
        pairs.append(Pair(tmp_path / name, **settings))
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


def counted(pair: Pair, lines: int, options: Sequence[str | Path] = ()) -> Running:
    """Run COUNTED, with so many lines to a call."""
    (pair.pod / "counts").write_bytes(bytes(16))
    return pair.record(*python(COUNTED, pair.pod / "counts", lines), options=options)


def has_every_byte(pair: Pair) -> None:
    """Assert that the copy has every byte of COUNTED that the kernel accepted."""
    output = pair.output()
    accepted = struct.unpack("2q", (pair.pod / "counts").read_bytes())
    assert output.gaps == []
    for printed, at_least in zip((output.stdout, output.stderr), accepted, strict=True):
        assert (len(printed), printed == numbered(len(printed))) == (max(len(printed), at_least), True)


def numbered(size: int) -> bytes:
    return b"".join(b"%015d\n" % number for number in range(-(-size // 16)))[:size]
