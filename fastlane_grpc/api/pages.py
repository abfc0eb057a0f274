"""Pages of lists and their tokens. A token holds a position in a list and a digest that ties it to its query."""

import hashlib
import json
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Generic, TypeVar

from fastlane_grpc.errors import PageTokenInvalid
from fastlane_grpc.store import AuditQuery, DeliveryQuery, ExecutionQuery, JobQuery, ListPage, Position

T = TypeVar("T")

DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE = 50, 1000
# Executions of a page whose hosts are asked about each.
MAX_SAMPLED = 100

_DIGEST_BYTES = 12
# The largest integer of the store. No token of this server holds a larger one.
_MAX_INTEGER = (1 << 63) - 1


@dataclass(frozen=True, slots=True)
class TaskQuery:
    """A query for all tasks."""


@dataclass(frozen=True, slots=True)
class OutputsQuery:
    """A query for the entries of the outputs of an execution."""

    execution_id: str


Query = JobQuery | ExecutionQuery | TaskQuery | DeliveryQuery | AuditQuery | OutputsQuery
Q = TypeVar("Q", JobQuery, ExecutionQuery, TaskQuery, DeliveryQuery, AuditQuery, OutputsQuery)


@dataclass(frozen=True, slots=True)
class PageRequest(Generic[Q]):
    """A request for at most `size` items from `token` on. A size of 0 means the default."""

    query: Q
    size: int = 0
    token: str = ""

    @property
    def max_items(self) -> int:
        """The size of the page, between the default and the limit."""
        return min(self.size or DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE)


@dataclass(frozen=True, slots=True)
class PageResult(Generic[T]):
    """A page for a caller, whose response may hold fewer items."""

    query: Query
    page: ListPage[T]

    @property
    def items(self) -> Sequence[T]:
        return self.page.items

    def with_items(self, items: Sequence[T]) -> "PageResult[T]":
        """Return the page with other values of the same items."""
        return replace(self, page=replace(self.page, items=items))

    def token(self, taken: int) -> str:
        """Return the token of the page after the first `taken` items; empty: there is none."""
        rest = self.page.rest if taken == len(self.page.items) else self.page.positions[taken - 1]
        return "" if rest is None else token_of(rest, self.query)


def token_of(position: Position, query: Query) -> str:
    """Return the token of a position in the list of the query."""
    data = json.dumps(position, separators=(",", ":")).encode()
    return urlsafe_b64encode(_digest(data, query) + data).decode().rstrip("=")


def position_of(token: str, query: Query) -> Any:
    """Return the position that `token_of` was given; None: the token is empty. Raises PageTokenInvalid."""
    if not token:
        return None
    try:
        # Encoded again and compared: the decoder skips characters that do not belong into a token.
        held = urlsafe_b64decode(token.encode("ascii") + b"=" * (-len(token) % 4))
        digest, data = held[:_DIGEST_BYTES], held[_DIGEST_BYTES:]
        if urlsafe_b64encode(held).decode().rstrip("=") == token and digest == _digest(data, query):
            position = tuple(json.loads(data))
            if _is_position_of(position, query):
                return position
    except (ValueError, TypeError, RecursionError):
        pass
    raise PageTokenInvalid(
        "this is no page token of this query: take `next_page_token` as it came, "
        "and leave the rest of the request as it was"
    )


def _digest(data: bytes, query: Query) -> bytes:
    # Without empty fields, so that tokens stay valid when a later release adds a field.
    given = {name: value for name, value in asdict(query).items() if value}
    text = json.dumps([type(query).__name__, given], sort_keys=True, default=str)
    return hashlib.blake2b(data, digest_size=_DIGEST_BYTES, key=hashlib.sha256(text.encode()).digest()).digest()


def _is_position_of(position: Position, query: Query) -> bool:
    """Return whether the position has the form of the query's list. A forged token leads only to such a position."""
    if isinstance(query, TaskQuery):
        return len(position) == 1 and isinstance(position[0], str) and position[0].isascii()
    numbers = [number for number in position if type(number) is int and abs(number) <= _MAX_INTEGER]
    return len(numbers) == len(position) == (2 if isinstance(query, JobQuery) else 1)
