"""What of a page fits into one answer, and the token of what does not."""

import asyncio
from collections.abc import Callable
from typing import TypeVar

from google.protobuf.message import Message

from fastlane_grpc.service import Listed

T = TypeVar("T")
M = TypeVar("M", bound=Message)

# No answer is larger than 3 MiB; what is left is for the token.
_MOST_BYTES = (3 << 20) - 1024
# The tag and the length of each message within the answer.
_EXTRA_BYTES = 6
# So many are written at a time; then others have the loop.
_AT_A_TIME = 32


async def fitting(listed: Listed[T], write: Callable[[T], M]) -> tuple[list[M], str]:
    """As many items as fit, as messages, at least one; and the token of the next page, empty if there is none."""
    messages: list[M] = []
    left = _MOST_BYTES
    for number, item in enumerate(listed.items):
        if number and number % _AT_A_TIME == 0:
            await asyncio.sleep(0)
        message = write(item)
        left -= message.ByteSize() + _EXTRA_BYTES
        if left < 0 and messages:
            break
        messages.append(message)
    return messages, listed.token(len(messages))
