"""The logs of all executions: where they are, fastlane's own lines in them, and any number of readers that wait for
more."""

from fastlane_grpc.logs.cursor import Cursor
from fastlane_grpc.logs.files import Logs
from fastlane_grpc.logs.message import Encoding, Message, TextChunk
from fastlane_grpc.logs.start_point import StartPoint
from fastlane_grpc.logs.tail import Tail, Tails, Watch

__all__ = ["Cursor", "Encoding", "Logs", "Message", "StartPoint", "Tail", "Tails", "TextChunk", "Watch"]
