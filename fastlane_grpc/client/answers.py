"""Answers in other forms: as JSON, as a sum."""

from typing import Any

from google.protobuf import json_format
from google.protobuf.message import Message

from fastlane_grpc.v1 import fastlane_pb2


def as_json(message: Message) -> dict[str, Any]:
    """A message of the contract as what JSON can say: field names as in the contract, what is empty left out, times in RFC 3339."""
    return json_format.MessageToDict(message, preserving_proto_field_name=True)


def add_pruned(total: fastlane_pb2.PruneResponse, answer: fastlane_pb2.PruneResponse) -> None:
    total.jobs += answer.jobs
    total.logs += answer.logs
    total.bytes += answer.bytes
    total.more = answer.more
