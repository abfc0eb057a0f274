"""Rows cut into parts for one statement each, of few different sizes: SQLite keeps the statements prepared."""

from collections.abc import Iterator, Sequence
from typing import TypeVar

T = TypeVar("T")

# Rows of one statement, at most: there is one statement for each number of rows up to the first, and one for each power
# of two up to the second.
_ANY_NUMBER_OF_ROWS = 16
_MOST_ROWS = 64


def parts(works: Sequence[T]) -> Iterator[Sequence[T]]:
    """Cut the works into parts for one statement each, of few different sizes."""
    begin = 0
    while left := len(works) - begin:
        size = left if left <= _ANY_NUMBER_OF_ROWS else min(1 << left.bit_length() - 1, _MOST_ROWS)
        yield works[begin : begin + size]
        begin += size
