"""The file that holds the output of one execution: appended to by one writer, read by any number of readers at any
time, exact or a gap."""

from fastlane_grpc.record.format import Chunk, Gap, Trailer
from fastlane_grpc.record.line_numbers import NumberedLines
from fastlane_grpc.record.open_file import NotARecord, open_record
from fastlane_grpc.record.reader import STRETCH_BYTES, RecordReader, Stretch, unread
from fastlane_grpc.record.scan import Position
from fastlane_grpc.record.seek import ReadStart
from fastlane_grpc.record.writer import RecordSealed, RecordWriter

__all__ = [
    "STRETCH_BYTES",
    "Chunk",
    "Gap",
    "NotARecord",
    "NumberedLines",
    "Position",
    "ReadStart",
    "RecordReader",
    "RecordSealed",
    "RecordWriter",
    "Stretch",
    "Trailer",
    "open_record",
    "unread",
]
