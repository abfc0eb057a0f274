"""The size limit of a record: its first blocks and its newest ones stay. The blocks between them are punched out as the
file grows."""

import ctypes
import errno
import os
from collections.abc import Callable

from fastlane_grpc.record.format import BLOCK_BYTES, RecordState
from fastlane_grpc.record.scan import next_block, punched_bytes

LEAST_BLOCKS = 4

# Bytes of each source, in the order of their numbers.
Sizes = tuple[int, int, int]


class Limit:
    """The size limit of one record that is being written. The layout is that of recorder.c: `head` blocks, a hole, and
    the newest `tail` blocks."""

    def __init__(self, fd: int, max_bytes: int, punched_from: int) -> None:
        """`punched_from` is the field of the record; 0: the record has had no limit so far, or is new."""
        blocks = max(max_bytes // BLOCK_BYTES, LEAST_BLOCKS)
        self.head = punched_from or blocks // 2
        self.tail = max(blocks - self.head, 1)
        self.punched: Sizes = punched_bytes(fd, punched_from)
        self._fd = fd
        oldest = next_block(fd, self.head)
        self._oldest = oldest[0] if oldest else self.head
        # What was kept of each source before the hole; known once there is a block behind it.
        self._kept_before: Sizes | None = _less(_kept(oldest[1]), self.punched) if oldest else None

    @property
    def end(self) -> int:
        """The size of the record at which nothing more can be punched out."""
        return (self._oldest + self.tail) * BLOCK_BYTES

    def evict_blocks(self, number: int) -> bool:
        """Punch out the blocks that are too old once block `number` is there, as far as what comes after
        it has begun.

        False: the limit is reached, and this file system cannot punch. OSError: it can, and failed.
        """
        while number >= self._oldest + self.tail:
            if self._kept_before is None:
                # A copy lacks the block if it was punched out before it was copied.
                first = next_block(self._fd, self._oldest)
                if first is None:
                    return True
                self._oldest, self._kept_before = first[0], _kept(first[1])
                continue
            following = next_block(self._fd, self._oldest + 1)
            if following is None:
                return True
            if not _punch(self._fd, self._oldest * BLOCK_BYTES, (following[0] - self._oldest) * BLOCK_BYTES):
                return False
            self._oldest = following[0]
            self.punched = _less(_kept(following[1]), self._kept_before)
        return True


def _kept(state: RecordState) -> Sizes:
    """Return the bytes of each source in the record before that state: missing bytes were never there to be punched
    out."""
    stdout, stderr, system = (its.offset - its.missing_bytes for its in state.sources)
    return stdout, stderr, system


def _less(sizes: Sizes, others: Sizes) -> Sizes:
    stdout, stderr, system = (size - other for size, other in zip(sizes, others, strict=True))
    return stdout, stderr, system


# Python knows fallocate only without its modes.
_libc = ctypes.CDLL(None, use_errno=True)
_fallocate: Callable[..., int] = getattr(_libc, "fallocate64", None) or _libc.fallocate
_KEEP_SIZE, _PUNCH_HOLE = 1, 2
_CANNOT = {errno.EOPNOTSUPP, errno.ENOSYS, errno.ENODEV, errno.EPERM}


def _punch(fd: int, place: int, size: int) -> bool:
    """False: the file system has no holes. Raises OSError."""
    while _fallocate(fd, _KEEP_SIZE | _PUNCH_HOLE, ctypes.c_int64(place), ctypes.c_int64(size)) != 0:
        number = ctypes.get_errno()
        if number in _CANNOT:
            return False
        if number != errno.EINTR:
            raise OSError(number, os.strerror(number))
    return True
