"""The recorder without an engine: as PID 1 of a namespace of its own, from a box like a server's; and a strict walk
over what it wrote."""

import json
import os
import shutil
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO

import pytest
from inotify_simple import INotify, flags

from fastlane_grpc.capture.handoff_watcher import handoff_watcher
from fastlane_grpc.model import Cause, Source
from fastlane_grpc.record.format import (
    BLOCK_BYTES,
    BLOCK_HEADER_BYTES,
    FRAME_HEADER,
    FRAME_HEADER_BYTES,
    GAP,
    NO_FRAME,
    START,
    TRAILER,
    RecordState,
    pack_block_header,
    pack_frame_header,
    unpack_block_header,
    unpack_gap,
    unpack_trailer,
)
from fastlane_grpc.recorder import HARD_STOP

EXECUTION_ID = "0190-e"
PATIENCE_SECONDS = 30
_AS_PID_1 = (shutil.which("unshare") or "unshare", "--pid", "--fork", "--kill-child", "--mount-proc")


def needs_namespaces() -> None:
    try:
        tried = subprocess.run([*_AS_PID_1, "true"], capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("unshare is not here")
    else:
        if tried.returncode:
            pytest.skip(f"a PID namespace cannot be had here: {tried.stderr.strip()}")


def python(code: str, *arguments: object) -> list[str]:
    """A command."""
    return [sys.executable, "-I", "-S", "-c", code, *map(str, arguments)]


def eventually(condition: Callable[[], object]) -> None:
    """Waits for what nobody tells of."""
    end = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.002)


def changed_until(path: Path, condition: Callable[[], object]) -> None:
    """Waits for changes of a file until the condition holds."""
    with INotify() as news:
        news.add_watch(path, flags.MODIFY)
        while not condition():
            assert news.read(timeout=PATIENCE_SECONDS * 1_000), "waited in vain"


# ---------------------------------------------------------------------------------------------------------- the program


@dataclass
class Running:
    """A recorder that was started. Its own words are what the engine would log, were it not for the record."""

    process: "subprocess.Popen[bytes]"
    log: Path

    @property
    def pid(self) -> int:
        """As it is seen from here."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        eventually(children.read_text)
        return int(children.read_text())

    def send(self, number: int) -> None:
        os.kill(self.pid, number)

    def stop_hard(self) -> None:
        """As a server does: the record is marked, then the signal sent."""
        self.log.chmod(0o600)
        self.send(HARD_STOP)

    def wrote(self, text: bytes) -> None:
        """Waits until the text is in the record."""
        changed_until(self.log, lambda: text in self.log.read_bytes())

    def end(self) -> tuple[int, str]:
        """Its exit status, and its own words."""
        words, _ = self.process.communicate(timeout=PATIENCE_SECONDS)
        return self.process.returncode, words.decode()


@dataclass(frozen=True)
class Recorder:
    """A recorder's program, and a directory where a record and its box are made for it. What a sanitizer says fails the
    test."""

    program: Path
    directory: Path
    started: "list[subprocess.Popen[bytes]]" = field(default_factory=list)

    @property
    def log(self) -> Path:
        return self.directory / "log"

    @property
    def box(self) -> Path:
        return self.directory / "box"

    def offer(self) -> None:
        """A new record, as a server makes it."""
        handoff_watcher.discard(self.box)
        self.log.unlink(missing_ok=True)
        self.log.touch()
        self.log.chmod(0o666)
        while True:
            self.box.mkdir(exist_ok=True)
            # The one of the recorder before, which has the same name, may be removed just now.
            with suppress(FileNotFoundError):
                self.box.chmod(0o777)
                (self.box / "log").unlink(missing_ok=True)
                (self.box / "log").hardlink_to(self.log)
                return

    def start(
        self,
        *command: str,
        limit: int | None = None,
        options: Sequence[str] | None = None,
        before: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
        stdin: int | IO[bytes] = subprocess.DEVNULL,
        pass_fds: Sequence[int] = (),
        pid_1: bool = True,
        hand_off: bool = True,
        secrets: Mapping[str, bytes] | None = None,
    ) -> Running:
        """`options`: all of them, box and command included. `before`: what executes it, the way `env` executes a
        command. `secrets`: put into the box, as a server does.

        `hand_off`: the box is removed when the record was claimed, as a server does.
        """
        limited = () if limit is None else ("--limit", str(limit))
        if secrets:
            content = b"".join(name.encode() + b"=" + value + b"\0" for name, value in secrets.items())
            (self.box / "secrets").write_bytes(content)
            limited = (*limited, "--secrets", str(len(secrets)))
        if options is None:
            options = ("--execution", EXECUTION_ID, *limited, str(self.box), "--", *command)
        sanitizers = f"detect_leaks=0:log_path={self.directory}/sanitizer"
        process = subprocess.Popen(
            [*(_AS_PID_1 if pid_1 else ()), *before, self.program, *options],
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, **(env or {}), "ASAN_OPTIONS": sanitizers, "UBSAN_OPTIONS": sanitizers},
            pass_fds=pass_fds,
            # What python ignores, and the recorder must not hand on: SIGPIPE, SIGXFSZ.
            restore_signals=False,
        )
        self.started.append(process)
        if hand_off:
            handoff_watcher.add(self.box, self.log)
        return Running(process, self.log)

    def run(self, *command: str, **how: object) -> "Walk":
        """Offers a record and runs a command to its end. The recorder ends with the command's exit code, and has
        nothing to say itself."""
        self.offer()
        running = self.start(*command, **how)  # type: ignore[arg-type]
        code, words = running.end()
        walked = walk(self.log)
        exit_code = walked.trailer["exit_code"]
        assert (code, words) == ({127: 127, 126: 126}[code] if exit_code is None else exit_code, "")
        return walked

    def close(self) -> None:
        """Ends what a test that failed left behind."""
        for process in self.started:
            process.kill()
            process.wait()
        handoff_watcher.discard(self.box)
        assert [path.read_text() for path in self.directory.glob("sanitizer*")] == []


@contextmanager
def disk(kind: str, options: str) -> Iterator[tuple[Path, int]]:
    """A new file system, in no directory but only open: it goes with this process, whatever happens. Its path, and the
    descriptor in it."""
    with TemporaryDirectory() as directory:
        if subprocess.run(["mount", "-t", kind, "-o", options, kind, directory], capture_output=True).returncode:
            pytest.skip(f"a {kind} cannot be mounted here")
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        subprocess.run(["umount", "--lazy", directory], check=True)
    try:
        yield Path(f"/proc/self/fd/{fd}"), fd
    finally:
        os.close(fd)


# ----------------------------------------------------------------------------------------------------------- the record


@dataclass
class Walk:
    """What is in a record. `gaps` are those that were written; of blocks that were punched out `punched` has how many
    bytes they held."""

    start: bytes = b""
    content: dict[Source, bytearray] = field(default_factory=lambda: {source: bytearray() for source in Source})
    gaps: list[tuple[Source, int | None, Cause]] = field(default_factory=list)
    punched: dict[Source, int] = field(default_factory=dict)
    frames: int = 0
    state: RecordState = RecordState()  # noqa: RUF009
    trailer_payload: bytes = b""
    head: dict[Source, int] = field(default_factory=dict)

    @property
    def trailer(self) -> dict[str, object]:
        return dict(json.loads(self.trailer_payload))

    @property
    def facts(self) -> dict[str, object]:
        facts = self.trailer["facts"]
        assert isinstance(facts, dict)
        return facts

    @property
    def stdout(self) -> bytes:
        return bytes(self.content[Source.STDOUT])

    @property
    def stderr(self) -> bytes:
        return bytes(self.content[Source.STDERR])


def walk(log: Path) -> Walk:
    """Reads a whole record and asserts all that the format says, and that it ends with a whole frame: shares no code
    with the readers."""
    raw = log.read_bytes()
    walked = Walk()
    blocks = [raw[place : place + BLOCK_BYTES] for place in range(0, len(raw), BLOCK_BYTES)]
    beyond_hole = False
    for number, block in enumerate(blocks):
        if number and not any(block):
            walked.head = walked.head or {source: len(walked.content[source]) for source in Source}
            beyond_hole = True
            continue
        state = unpack_block_header(block, number)
        assert state is not None
        if number == 0:
            walked.state = RecordState(punched_from=state.punched_from)
        if beyond_hole:
            for source, its, ours in zip(Source, state.sources, walked.state.sources, strict=False):
                walked.punched[source] = its.offset - ours.offset
            walked.state, beyond_hole = state, False
        assert block[:BLOCK_HEADER_BYTES] == pack_block_header(number, walked.state)
        at = BLOCK_HEADER_BYTES
        while len(block) - at >= FRAME_HEADER_BYTES and block[at : at + FRAME_HEADER_BYTES] != NO_FRAME:
            at = _frame(walked, block, at)
        assert not any(block[at:])
        assert number < len(blocks) - 1 or at == len(block)
    return walked


def _frame(walked: Walk, block: bytes, at: int) -> int:
    time_ns, length, kind, _, _ = FRAME_HEADER.unpack_from(block, at)
    payload_at = at + FRAME_HEADER_BYTES
    payload, end = block[payload_at : payload_at + length], payload_at + length
    assert end <= len(block)
    assert walked.trailer_payload == b""
    state, crc32 = walked.state, zlib.crc32(payload)
    if kind == START:
        assert (walked.frames, walked.start, at) == (0, b"", BLOCK_HEADER_BYTES)
        walked.start = payload
    else:
        assert walked.start
        assert time_ns >= state.time_ns
    if kind == TRAILER:
        assert unpack_trailer(payload, time_ns) is not None
        walked.trailer_payload = payload
    elif kind == GAP:
        gap = unpack_gap(payload)
        assert gap is not None
        walked.gaps.append(gap)
        source, missing, _ = gap
        its = state.sources[source - 1]
        gap_sequence = 0 if missing else state.sequence + 1
        missing = missing or 0
        its = its._replace(
            offset=its.offset + missing,
            missing_bytes=its.missing_bytes + missing,
            gap_sequence=gap_sequence,
            lossy=True,
        )
        _entry(walked, source, time_ns, its)
    elif kind != START:
        source = Source(kind)
        its = state.sources[source - 1]
        crc32 = zlib.crc32(payload, its.crc32)
        assert payload
        its = its._replace(
            offset=its.offset + length, newlines=its.newlines + payload.count(b"\n"), gap_sequence=0, crc32=crc32
        )
        _entry(walked, source, time_ns, its)
        walked.state = walked.state._replace(first_byte_time_ns=state.first_byte_time_ns or time_ns)
        walked.content[source] += payload
    walked.frames += 1
    assert block[at:payload_at] == pack_frame_header(kind, length, time_ns, crc32)
    return end


def _entry(walked: Walk, source: Source, time_ns: int, its: object) -> None:
    sources = list(walked.state.sources)
    sources[source - 1] = its  # type: ignore[call-overload]
    stdout, stderr, system = sources
    walked.state = walked.state._replace(
        sequence=walked.state.sequence + 1, time_ns=time_ns, sources=(stdout, stderr, system)
    )
