"""Answers: in pages, as JSON, as a sum."""

from typing import Any, Protocol

from google.protobuf import json_format
from google.protobuf.message import Message

from fastlane_grpc.v1 import fastlane_pb2


class AsksForPages(Protocol):
    """A request for a page of a list."""

    page_token: str


class Page(Protocol):
    """A page of a list: there are more while it has a token, even if it is empty."""

    next_page_token: str


def as_json(message: Message) -> dict[str, Any]:
    """A message of the contract as what JSON can say: field names as in the contract, what is empty left out, times in RFC 3339."""
    return json_format.MessageToDict(message, preserving_proto_field_name=True)


def add_pruned(total: fastlane_pb2.PruneResponse, answer: fastlane_pb2.PruneResponse) -> None:
    total.jobs += answer.jobs
    total.logs += answer.logs
    total.bytes += answer.bytes
    total.more = answer.more
