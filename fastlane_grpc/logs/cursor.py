"""Cursors: the position after a message of a log, exact to the byte of each source. A reader resumes from it."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from fastlane_grpc.errors import CursorInvalid, CursorOfAnotherExecution
from fastlane_grpc.model import Source

# Version, execution, byte offset of stdout, stderr and system, sequence. 18 digits are more than a file can hold, and
# fit in 64 bits.
_FORM = re.compile(r"1\.([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})" + r"\.(0|[1-9][0-9]{0,17})" * 4)


@dataclass(frozen=True, slots=True)
class Cursor:
    """The bytes of each source that were passed. `sequence` only says whether a gap of unknown size, which takes no
    bytes, was passed too."""

    execution_id: str
    stdout: int = 0
    stderr: int = 0
    system: int = 0
    sequence: int = 0

    @property
    def offsets(self) -> Mapping[Source, int]:
        return {Source.STDOUT: self.stdout, Source.STDERR: self.stderr, Source.SYSTEM: self.system}

    def __str__(self) -> str:
        return f"1.{self.execution_id}.{self.stdout}.{self.stderr}.{self.system}.{self.sequence}"

    @classmethod
    def at(cls, execution_id: str, offsets: Mapping[Source, int], sequence: int) -> "Cursor":
        return cls(execution_id, offsets[Source.STDOUT], offsets[Source.STDERR], offsets[Source.SYSTEM], sequence)

    @staticmethod
    def execution_of(text: str) -> str:
        """Return the id of the execution that a cursor names. CursorInvalid."""
        match = _FORM.fullmatch(text)
        if match is None:
            raise _invalid(text)
        return match[1]

    @classmethod
    def parse(cls, text: str, execution_id: str) -> "Cursor":
        """Parse a cursor of this execution; the empty text is the start of the log."""
        if not text:
            return cls(execution_id)
        match = _FORM.fullmatch(text)
        if match is None:
            raise _invalid(text)
        if match[1] != execution_id:
            raise CursorOfAnotherExecution(
                f"the cursor is of execution {match[1]}, not of {execution_id}", execution_id=match[1]
            )
        return cls(execution_id, *(int(match[part]) for part in range(2, 6)))


def _invalid(text: str) -> CursorInvalid:
    return CursorInvalid(f"cursor {text[:128]!r} is not one of this server's; begin again without a cursor")
