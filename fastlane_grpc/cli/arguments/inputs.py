"""The option --input of `run`, `enqueue` and `replace`: files and directories of this machine for the container."""

import re
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from fastlane_grpc import client as api
from fastlane_grpc.cli.display.tables import size
from fastlane_grpc.cli.errors import WRONG_USE, Failure

# Contents that are sent with the job. Larger ones are uploaded before it.
_SMALL_BYTES, _ALL_SMALL_BYTES = 64 << 10, 512 << 10


@dataclass(frozen=True, slots=True)
class GivenInput:
    """A file or directory, and its path in the container."""

    source: Path
    path: str


@dataclass(frozen=True, slots=True)
class _Opened:
    """An input with its content, which has a size."""

    given: GivenInput
    content: BinaryIO
    size_bytes: int
    mode: int
    unpack: bool


def read_input(text: str) -> GivenInput:
    """Return the input of SOURCE:PATH. ValueError."""
    match = re.fullmatch(r"(.+):(/[^:]*)", text, re.DOTALL)
    if match is None:
        raise ValueError("must be SOURCE:PATH, as src:/src; PATH is absolute, in the container")
    return GivenInput(Path(match[1]), match[2].rstrip("/") or "/")


def stored_inputs(
    given: Sequence[GivenInput], max_bytes: Callable[[], int], upload: Callable[[BinaryIO], str]
) -> Sequence[api.Input]:
    """Return the inputs of a job, with large contents uploaded. Nothing is sent if all take more than the server's
    maximum in sum, which `max_bytes` asks for."""
    if not given:
        return ()
    with ExitStack() as files:
        opened = [files.enter_context(_opened(each)) for each in given]
        total = sum(each.size_bytes for each in opened)
        if total > (most := max_bytes()):
            raise Failure(
                f"the inputs take {size(total)}; the server takes at most {size(most)} for a job (max_input_bytes); "
                "no job was enqueued",
                WRONG_USE,
            )
        small, inputs = 0, []
        for each in opened:
            is_small = each.size_bytes <= _SMALL_BYTES and small + each.size_bytes <= _ALL_SMALL_BYTES
            small += each.size_bytes if is_small else 0
            inputs.append(
                api.Input(
                    each.given.path,
                    content=each.content.read() if is_small else None,
                    sha256="" if is_small else upload(each.content),
                    mode=each.mode,
                    unpack=each.unpack,
                )
            )
        return inputs


@contextmanager
def _opened(given: GivenInput) -> Iterator[_Opened]:
    try:
        with ExitStack() as files:
            status = given.source.stat()
            is_directory = stat.S_ISDIR(status.st_mode)
            if not is_directory and not stat.S_ISREG(status.st_mode):
                raise Failure(f"--input {given.source} is neither a file nor a directory", WRONG_USE)
            content = files.enter_context(api.packed(given.source) if is_directory else given.source.open("rb"))
            size_bytes = content.seek(0, 2)
            content.seek(0)
            opened = _Opened(
                given, content, size_bytes, 0 if is_directory else stat.S_IMODE(status.st_mode), is_directory
            )
            kept = files.pop_all()
    except OSError as error:
        raise Failure(f"cannot read --input {given.source}: {error.strerror}", WRONG_USE) from error
    except api.CannotPack as error:
        raise Failure(f"--input {given.source}: {error}", WRONG_USE) from error
    with kept:
        yield opened
