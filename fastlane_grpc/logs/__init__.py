"""The logs of all executions: their files, fastlane's own lines in them, and any number of readers."""

from fastlane_grpc.logs.cursor import Cursor
from fastlane_grpc.logs.files import Logs
from fastlane_grpc.logs.message import Encoding, Message, TextChunk
from fastlane_grpc.logs.start_point import StartPoint
from fastlane_grpc.logs.tail import LogTail, LogWatch, Tails

__all__ = ["Cursor", "Encoding", "LogTail", "LogWatch", "Logs", "Message", "StartPoint", "Tails", "TextChunk"]
