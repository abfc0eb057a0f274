"""`fastlane enqueue --file`: many jobs, one on a line. A bad line is reported with its number, and the others are
stored."""

import json
import os
import select
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fastlane_grpc import client as api
from fastlane_grpc.cli.connection import once_there_is_room
from fastlane_grpc.cli.display.terminal import LiveLine, obeys, say, write
from fastlane_grpc.cli.errors import FAILED, WRONG_USE, Failure, cause
from fastlane_grpc.v1 import fastlane_pb2 as pb

# Of a longer line only the beginning is kept, which is told to be too long.
_LONGEST_BYTES = 4 << 20
_READ_BYTES = 1 << 16
# A writer that is silent for so long has written all that it has for now.
_IDLE_SECONDS = 0.1
# Jobs of one call.
_MANY = 1_000
_REDRAW_SECONDS = 0.2
_BAR = 24
# How long a queue that takes nothing is waited for.
_ROOM_SECONDS = 30.0
_PAUSE_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class _Line:
    """A line of the file: its request, or what is wrong with it."""

    number: int
    request: pb.EnqueueJobRequest | None
    error: str = ""


class FileEnqueue:
    """Enqueues the jobs of a file, and counts what became of them."""

    def __init__(
        self,
        client: api.Client,
        environ: Mapping[str, str],
        *,
        form: str,
        task_id: str,
        request_id: str,
        dry_run: bool,
    ) -> None:
        self._client = client
        self._form = form
        self._task_id = task_id
        self._request_id = request_id
        self._dry_run = dry_run
        self._live = LiveLine() if obeys(2, environ) else None
        self._next_draw = 0.0
        self._read_bytes = self._size_bytes = 0
        self._stored = self._existing = self._rejected = 0
        # The last line of which it is known what became of it.
        self._done = 0

    def run(self, path: Path) -> int:
        """Return the exit status: 0 if every line was stored."""
        fd = _opened(path)
        self._size_bytes = os.fstat(fd).st_size
        try:
            for lines in self._chunks(fd):
                self._enqueue(lines)
        except api.Error as error:
            self._clear()
            say(self._interrupted())
            raise error
        except OSError as error:
            self._clear()
            raise Failure(
                f"cannot read --file {path}: {error.strerror}" + (f"; {self._counts()}" * bool(self._done))
            ) from error
        finally:
            self._clear()
        if self._rejected or self._existing or self._live:
            say(f"{self._counts()}")
        return FAILED if self._rejected else 0

    def _chunks(self, fd: int) -> Iterator[Sequence[_Line]]:
        chunk: list[_Line] = []
        number = 0
        for line in read_lines(fd):
            if line is not None:
                number += 1
                self._read_bytes += len(line) + 1
                if read := self._read(number, line):
                    chunk.append(read)
            if chunk and (line is None or len(chunk) == _MANY):
                yield chunk
                chunk = []
        if chunk:
            yield chunk

    def _read(self, number: int, line: bytes) -> _Line | None:
        try:
            request = api.request_from_json(line)
        except ValueError as error:
            return _Line(number, None, str(error))
        if request is None:
            return None
        if request.validate_only:
            return _Line(number, None, "validate_only: is not for a line; use --dry-run")
        request.task_id = request.task_id or self._task_id or task_of(request.spec.image)
        if self._request_id and not request.request_id:
            request.request_id = f"{self._request_id}:{number}"
        request.validate_only = self._dry_run
        return _Line(number, request)

    def _enqueue(self, lines: Sequence[_Line]) -> None:
        # Made here where the file has none: a call that is cut can be repeated.
        for line in lines:
            if line.request is not None:
                line.request.request_id = line.request.request_id or os.urandom(16).hex()
        results = iter(self._results([line.request for line in lines if line.request is not None]))
        for line in lines:
            result = next(results) if line.request is not None else None
            if result is None:
                self._reject(line.number, line.error, "INVALID_FIELD")
            elif result.job is not None:
                self._accept(line.number, result.job, existing=result.existing)
            elif isinstance(result.error, api.Exhausted):
                raise Failure(f"stopped at line {line.number}: {result.error}; {self._interrupted()}")
            else:
                assert result.error is not None
                self._reject(line.number, str(result.error), result.error.reason)
            self._done = line.number
        self._draw()

    def _results(self, requests: Sequence[pb.EnqueueJobRequest]) -> Sequence[api.EnqueueResult]:
        """Enqueue the jobs. Where the queue is full, wait as long as it takes some from time to time."""
        results: list[api.EnqueueResult] = []
        deadline = time.monotonic() + _ROOM_SECONDS
        while True:
            left = requests[len(results) :]
            found = once_there_is_room(lambda left=left: list(self._client.enqueue_many(left)))  # type: ignore[misc]
            full = [isinstance(result.error, api.Exhausted) for result in found]
            if True not in full:
                return [*results, *found]
            stored = full.index(True)
            results += found[:stored]
            if stored:
                deadline = time.monotonic() + _ROOM_SECONDS
            elif time.monotonic() > deadline:
                return [*results, *found]
            error = found[stored].error
            self._draw(f"waiting: {cause(error)}" if error else "")
            time.sleep(_PAUSE_SECONDS)

    def _accept(self, number: int, job: pb.Job, *, existing: bool) -> None:
        self._stored += not existing
        self._existing += existing
        if self._form == "json":
            self._print({"line": number, "job_id": job.id, "execution_id": job.execution.id, "existing": existing})
        elif not self._dry_run:
            self._clear()
            write(1, f"{job.id}\n".encode())

    def _reject(self, number: int, error: str, reason: str) -> None:
        self._rejected += 1
        self._clear()
        say(f"line {number}: {error}")
        if self._form == "json":
            self._print({"line": number, "error": error, "reason": reason})

    def _print(self, result: Mapping[str, object]) -> None:
        self._clear()
        write(1, json.dumps(result).encode() + b"\n")

    def _counts(self) -> str:
        verb = "would store" if self._dry_run else "stored"
        parts = [f"{verb} {self._stored} job{'' if self._stored == 1 else 's'}"]
        if self._existing:
            parts.append(f"{self._existing} existed already")
        if self._rejected:
            parts.append(f"{self._rejected} line{'' if self._rejected == 1 else 's'} rejected")
        return ", ".join(parts)

    def _interrupted(self) -> str:
        again = (
            "repeat the command: what is stored is not stored again"
            if self._request_id
            else "later lines may have been stored; with --request-id the command is safe to repeat"
        )
        done = f"{self._counts()}, up to line {self._done}" if self._done else "no line is known to be stored"
        return f"{done}; {again}"

    # ---- progress

    def _draw(self, note: str = "") -> None:
        now = time.monotonic()
        if self._live is None or (now < self._next_draw and self._live.shown and not note):
            return
        self._next_draw = now + _REDRAW_SECONDS
        bar = ""
        if self._size_bytes:
            share = min(self._read_bytes / self._size_bytes, 1.0)
            bar = f"[{'#' * round(share * _BAR):-<{_BAR}}] {share:4.0%}  "
        self._live.show(f"fastlane: {bar}{self._counts()}{f'; {note}' if note else ''}")

    def _clear(self) -> None:
        if self._live:
            self._live.clear()


def read_lines(fd: int) -> Iterator[bytes | None]:
    """Yield each line without its end; of one that is too long, the beginning. None: the writer has paused."""
    rest = b""
    while True:
        if not select.select([fd], [], [], _IDLE_SECONDS)[0]:
            yield None
            select.select([fd], [], [])
        data = os.read(fd, _READ_BYTES)
        if not data:
            break
        *lines, rest = (rest + data).split(b"\n")
        yield from lines
        # What is cut off belongs to a line that is too long already.
        rest = rest[: _LONGEST_BYTES + 1]
    if rest:
        yield rest


def task_of(image: str) -> str:
    """Return the image's last name, without registry, tag and digest: "mail" of "registry:5000/team/mail:1.4"."""
    return image.partition("@")[0].rpartition("/")[2].partition(":")[0] or "run"


def _opened(path: Path) -> int:
    if str(path) == "-":
        return 0
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise Failure(f"cannot read --file {path}: {error.strerror}", WRONG_USE) from error
