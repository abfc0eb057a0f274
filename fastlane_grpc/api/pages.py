"""Pages of lists, and the tokens by which a caller goes on: a place in a list, and a digest that ties it to its
query."""

import hashlib
import json
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Generic, TypeVar

from fastlane_grpc.errors import PageTokenInvalid
from fastlane_grpc.store import ExecutionQuery, JobQuery, Page, Position

T = TypeVar("T")

DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE = 50, 1000

_DIGEST_BYTES = 12
# The largest that the store can look for; a number beyond it is of no token of ours.
_MAX_INTEGER = (1 << 63) - 1


@dataclass(frozen=True, slots=True)
class TaskQuery:
    """All of them."""


Query = JobQuery | ExecutionQuery | TaskQuery
Q = TypeVar("Q", JobQuery, ExecutionQuery, TaskQuery)


@dataclass(frozen=True, slots=True)
class PageRequest(Generic[Q]):
    """What is looked for; at most `size` of it, 0: as many as is usual; from where `token` says."""

    query: Q
    size: int = 0
    token: str = ""

    @property
    def wanted(self) -> int:
        return min(self.size or DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE)


@dataclass(frozen=True, slots=True)
class PageResult(Generic[T]):
    """A page as a caller gets it, who may take less of it."""

    query: Query
    page: Page[T]

    @property
    def items(self) -> Sequence[T]:
        return self.page.items

    def token(self, taken: int) -> str:
        """For the page that begins behind the first `taken` items; empty: nothing is there."""
        rest = self.page.rest if taken == len(self.page.items) else self.page.positions[taken - 1]
        return "" if rest is None else token_of(rest, self.query)


def token_of(position: Position, query: Query) -> str:
    place = json.dumps(position, separators=(",", ":")).encode()
    return urlsafe_b64encode(_digest(place, query) + place).decode().rstrip("=")


def position_of(token: str, query: Query) -> Any:
    """The place that the token holds, as `token_of` was given it; None: it is empty. PageTokenInvalid."""
    if not token:
        return None
    try:
        # Damage that leaves the bytes as they are, such as a character that is skipped, is damage, too.
        held = urlsafe_b64decode(token.encode("ascii") + b"=" * (-len(token) % 4))
        digest, place = held[:_DIGEST_BYTES], held[_DIGEST_BYTES:]
        if urlsafe_b64encode(held).decode().rstrip("=") == token and digest == _digest(place, query):
            position = tuple(json.loads(place))
            if _fits(position, query):
                return position
    except (ValueError, TypeError, RecursionError):
        pass
    raise PageTokenInvalid(
        "this is no page token of this query: take `next_page_token` as it came, "
        "and leave the rest of the request as it was"
    )


def _digest(place: bytes, query: Query) -> bytes:
    # What is empty is left out, so that a field of a later release ends no walk through a list.
    given = {name: value for name, value in asdict(query).items() if value}
    text = json.dumps([type(query).__name__, given], sort_keys=True, default=str)
    return hashlib.blake2b(place, digest_size=_DIGEST_BYTES, key=hashlib.sha256(text.encode()).digest()).digest()


def _fits(position: Position, query: Query) -> bool:
    """Whoever makes a token of their own gets no further than to another place in their list."""
    if isinstance(query, TaskQuery):
        return len(position) == 1 and isinstance(position[0], str) and position[0].isascii()
    numbers = [number for number in position if type(number) is int and abs(number) <= _MAX_INTEGER]
    return len(numbers) == len(position) == (2 if isinstance(query, JobQuery) else 1)
