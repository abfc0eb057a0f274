"""The file that holds the output of one execution: appended to by one writer, read by any number of readers at any
time, exact or a gap."""

from fastlane_grpc.record.format import Chunk, Gap, Trailer
from fastlane_grpc.record.line_numbers import NumberedLines
from fastlane_grpc.record.open_file import NotARecord, open_record
from fastlane_grpc.record.reader import SEGMENT_BYTES, RecordReader, Segment, unread
from fastlane_grpc.record.scan import Position
from fastlane_grpc.record.seek import ReadStart
from fastlane_grpc.record.writer import RecordSealed, RecordWriter

__all__ = [
    "SEGMENT_BYTES",
    "Chunk",
    "Gap",
    "NotARecord",
    "NumberedLines",
    "Position",
    "ReadStart",
    "RecordReader",
    "RecordSealed",
    "RecordWriter",
    "Segment",
    "Trailer",
    "open_record",
    "unread",
]
