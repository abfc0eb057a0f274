"""A reserve of room in the data directory for writes that must succeed on a full disk: an end, a stop, a deletion.

The reserve is a number of files. On a full disk the server deletes one file and writes at once, before other programs
take the room. The server makes the files again when the disk has room.
"""

import os
import time
from contextlib import suppress
from pathlib import Path

from fastlane_grpc.machine.data_directory import free_bytes, is_full

PIECES = 4
PIECE_BYTES = 1 << 20
# With less free room no piece is made.
LEAST_FREE_BYTES = 16 << 20
# The least time between two tries to make the missing pieces.
MAKE_SECONDS = 1.0


class Reserve:
    """The pieces in one data directory. Lives on one thread at a time."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._pieces = [directory / f"reserve-{number + 1}" for number in range(PIECES)]
        self._whole = False
        self._make_at = 0.0

    def make(self) -> None:
        """Make the missing pieces, as far as the disk has room."""
        now = time.monotonic()
        if self._whole or now < self._make_at:
            return
        self._make_at = now + MAKE_SECONDS
        # A piece that cannot be made now is made later.
        with suppress(OSError):
            self._whole = all(_is_whole(piece) or self._made(piece) for piece in self._pieces)

    def free(self) -> bool:
        """Delete one piece if the disk is full. Return whether a piece was deleted."""
        if not is_full(self._directory):
            return False
        self._whole = False
        for piece in self._pieces:
            with suppress(OSError):
                piece.unlink()
                return True
        return False

    def _made(self, piece: Path) -> bool:
        if free_bytes(self._directory) < LEAST_FREE_BYTES:
            return False
        # A crash may have left a part of the piece.
        piece.unlink(missing_ok=True)
        file = os.open(piece, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(file, 0, PIECE_BYTES)
        except OSError:
            piece.unlink(missing_ok=True)
            raise
        finally:
            os.close(file)
        return True


def _is_whole(piece: Path) -> bool:
    return piece.exists() and piece.stat().st_size == PIECE_BYTES
