"""The parser of the engine's attached stream, which multiplexes stdout and stderr: incremental, without a copy."""

from collections.abc import Sequence
from struct import Struct
from typing import TypeAlias

from fastlane_grpc.model import Source

BUFFER_BYTES = 1 << 20
MAX_ERROR_BYTES = 4096

# A frame's header: its source, and how many bytes follow.
_HEADER = Struct(">B3xI")
_SOURCES = {1: Source.STDOUT, 2: Source.STDERR}
_ENGINE_ERROR = 3

Pieces: TypeAlias = Sequence[tuple[Source, memoryview]]


class Frames:
    """The parser of one stream. Repeat: read into `room`, `take` the bytes, write the pieces, `recycle`."""

    def __init__(self) -> None:
        # A frame of an unknown kind, or an error of the engine, came: the stream may not be whole.
        self.broken = False
        self._buffer = memoryview(bytearray(BUFFER_BYTES))
        self._held = 0  # bytes of an incomplete header, at the start of the buffer
        self._used = 0
        self._end = 0
        self._source = 0
        self._left = 0  # bytes of the frame that are still to come
        self._error = b""

    @property
    def room(self) -> memoryview:
        return self._buffer[self._held :]

    @property
    def between(self) -> bool:
        """Whether a frame ended with the last byte that was taken."""
        return not self._held and not self._left

    def take(self, size: int) -> Pieces:
        """Return the container's output in the `size` bytes that were read into the room.

        The pieces lie in the buffer, and are valid until `recycle`.
        """
        pieces: list[tuple[Source, memoryview]] = []
        buffer, at, end, left = self._buffer, 0, self._held + size, self._left
        while at < end:
            if not left:
                if end - at < _HEADER.size:
                    break
                self._source, left = _HEADER.unpack_from(buffer, at)
                at += _HEADER.size
            piece = buffer[at : min(at + left, end)]
            at += len(piece)
            left -= len(piece)
            source = _SOURCES.get(self._source)
            if source is None:
                self._set_aside(piece)
            elif piece:
                pieces.append((source, piece))
        self._left, self._used, self._end = left, at, end
        return pieces

    def recycle(self) -> None:
        """Make room again; an incomplete header is kept."""
        self._held = self._end - self._used
        self._buffer[: self._held] = self._buffer[self._used : self._end]

    def errors(self) -> Sequence[str]:
        """Return the lines of an error of the engine, once the error is complete."""
        if self._left or not self._error:
            return ()
        text, self._error = self._error.decode("utf-8", "replace").strip(), b""
        return text.splitlines()

    def _set_aside(self, piece: memoryview) -> None:
        self.broken = True
        if self._source == _ENGINE_ERROR and len(self._error) < MAX_ERROR_BYTES:
            self._error += piece[:MAX_ERROR_BYTES]
