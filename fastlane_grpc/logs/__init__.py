"""The logs of all executions: where they are, fastlane's own lines in them, and any number of readers that wait for more."""

from fastlane_grpc.logs.begin import BeginAt
from fastlane_grpc.logs.cursor import Cursor
from fastlane_grpc.logs.files import Logs
from fastlane_grpc.logs.message import Encoding, Message, TextChunk
from fastlane_grpc.logs.tail import Tail, Tails, Watch

__all__ = ["BeginAt", "Cursor", "Encoding", "Logs", "Message", "Tail", "Tails", "TextChunk", "Watch"]
