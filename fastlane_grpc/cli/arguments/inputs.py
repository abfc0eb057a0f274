"""Files of this machine for a job: the options --input, --stdin and -i of `run`, `enqueue` and `replace`."""

import os
import re
import stat
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from fastlane_grpc import client as api
from fastlane_grpc.cli.display.tables import size
from fastlane_grpc.cli.errors import WRONG_USE, Failure

# Contents that are sent with the job. Larger ones are uploaded before it.
_SMALL_BYTES, _ALL_SMALL_BYTES = 64 << 10, 512 << 10
_BLOCK_BYTES = 1 << 20
# The standard input of this command, in place of a path.
_OWN = Path("-")


@dataclass(frozen=True, slots=True)
class GivenInput:
    """A file or directory, and its path in the container."""

    source: Path
    path: str


@dataclass(frozen=True, slots=True)
class GivenFiles:
    """The inputs of a job, and the path of its standard input."""

    inputs: Sequence[GivenInput] = ()
    stdin: Path | None = None

    @classmethod
    def of(cls, options: dict[str, Any]) -> "GivenFiles":
        """Take the files out of the options of a job."""
        inputs, stdin, reads_stdin = (options.pop(name) for name in ("inputs", "stdin", "reads_stdin"))
        if stdin and reads_stdin:
            raise Failure("-i cannot be combined with --stdin: a job has one standard input", WRONG_USE)
        return cls(inputs, _OWN if reads_stdin else stdin)


@dataclass(frozen=True, slots=True)
class _Content:
    """A content that was opened."""

    file: BinaryIO
    size_bytes: int


@dataclass(frozen=True, slots=True)
class _Opened(_Content):
    """An input with its content."""

    path: str
    mode: int
    unpack: bool


def read_input(text: str) -> GivenInput:
    """Return the input of SOURCE:PATH. ValueError."""
    match = re.fullmatch(r"(.+):(/[^:]*)", text, re.DOTALL)
    if match is None:
        raise ValueError("must be SOURCE:PATH, as src:/src; PATH is absolute, in the container")
    return GivenInput(Path(match[1]), match[2].rstrip("/") or "/")


def stored_files(given: GivenFiles, max_bytes: Callable[[], int], upload: Callable[[BinaryIO], str]) -> dict[str, Any]:
    """Upload the large ones of these files, and return the options of a job with all of them.

    `max_bytes` asks the server for its maximum. If the files are larger in sum, nothing is uploaded.
    """
    if not given.inputs and given.stdin is None:
        return {}
    most = max_bytes()
    with ExitStack() as files:
        opened = [files.enter_context(_opened(each)) for each in given.inputs]
        stdin = None if given.stdin is None else files.enter_context(_opened_stdin(given.stdin, most))
        _check_size([*opened, *([stdin] if stdin else ())], most)
        storing = _Storing(upload)
        inputs = [api.Input(each.path, **storing.content(each), mode=each.mode, unpack=each.unpack) for each in opened]
        return {"inputs": inputs, "stdin": stdin and api.Stdin(**storing.content(stdin))}


def _check_size(contents: Sequence[_Content], most: int) -> None:
    if (total := sum(each.size_bytes for each in contents)) > most:
        raise Failure(
            f"the inputs take {size(total)}; the server takes at most {size(most)} for a job (max_input_bytes); "
            "no job was enqueued",
            WRONG_USE,
        )


class _Storing:
    """Contents on their way to the server: small ones with the job, as long as there is room, large ones before it."""

    def __init__(self, upload: Callable[[BinaryIO], str]) -> None:
        self._upload = upload
        self._left_bytes = _ALL_SMALL_BYTES

    def content(self, content: _Content) -> dict[str, Any]:
        """Return what names a content in the job."""
        if content.size_bytes > min(_SMALL_BYTES, self._left_bytes):
            return {"sha256": self._upload(content.file)}
        self._left_bytes -= content.size_bytes
        return {"content": content.file.read()}


@contextmanager
def _opened(given: GivenInput) -> Iterator[_Opened]:
    try:
        with ExitStack() as files:
            status = given.source.stat()
            is_directory = stat.S_ISDIR(status.st_mode)
            if not is_directory and not stat.S_ISREG(status.st_mode):
                raise Failure(f"--input {given.source} is neither a file nor a directory", WRONG_USE)
            file = files.enter_context(api.packed(given.source) if is_directory else given.source.open("rb"))
            mode = 0 if is_directory else stat.S_IMODE(status.st_mode)
            opened = _Opened(file, _size_of(file), given.path, mode, is_directory)
            kept = files.pop_all()
    except OSError as error:
        raise Failure(f"cannot read --input {given.source}: {error.strerror}", WRONG_USE) from error
    except api.CannotPack as error:
        raise Failure(f"--input {given.source}: {error}", WRONG_USE) from error
    with kept:
        yield opened


@contextmanager
def _opened_stdin(path: Path, max_bytes: int) -> Iterator[_Content]:
    name = "-i: the standard input" if path == _OWN else f"--stdin {path}"
    try:
        with ExitStack() as files:
            source = files.enter_context(_own_stdin() if path == _OWN else path.open("rb"))
            if source.isatty():
                raise Failure(f"{name} is a terminal: redirect it from a file or a pipe", WRONG_USE)
            # A shell may have read the beginning of the file, which then is not the job's.
            is_whole = stat.S_ISREG(os.fstat(source.fileno()).st_mode) and source.tell() == 0
            file = source if is_whole else files.enter_context(_copied(source, max_bytes))
            opened = _Content(file, _size_of(file))
            kept = files.pop_all()
    except OSError as error:
        raise Failure(f"cannot read {name}: {error.strerror}", WRONG_USE) from error
    with kept:
        yield opened


def _own_stdin() -> BinaryIO:
    if sys.stdin is None:
        raise Failure("-i: the standard input is closed", WRONG_USE)
    return open(0, "rb", closefd=False)


@contextmanager
def _copied(source: BinaryIO, max_bytes: int) -> Iterator[BinaryIO]:
    """Yield a temporary file with what `source` has up to its end, or with more than the maximum."""
    # Imported here: most commands do not need it.
    from tempfile import TemporaryFile

    with TemporaryFile(prefix="fastlane-stdin-") as file:
        while file.tell() <= max_bytes and (block := source.read(_BLOCK_BYTES)):
            file.write(block)
        yield file


def _size_of(file: BinaryIO) -> int:
    size_bytes = file.seek(0, os.SEEK_END)
    file.seek(0)
    return size_bytes
