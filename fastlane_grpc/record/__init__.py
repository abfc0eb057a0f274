"""The file that holds the output of one execution: appended to by one writer, read by any number of readers at any
time, exact or a gap."""

from fastlane_grpc.record.format import Chunk, Gap, Trailer
from fastlane_grpc.record.reader import STRETCH_BYTES, RecordReader, Stretch, unread
from fastlane_grpc.record.scan import Position
from fastlane_grpc.record.seek import Begin
from fastlane_grpc.record.writer import RecordWriter, Sealed

__all__ = [
    "STRETCH_BYTES",
    "Begin",
    "Chunk",
    "Gap",
    "Position",
    "RecordReader",
    "RecordWriter",
    "Sealed",
    "Stretch",
    "Trailer",
    "unread",
]
