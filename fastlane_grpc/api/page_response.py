"""The messages of a page that fit into one response, and the token for the rest."""

import asyncio
from collections.abc import Callable
from typing import TypeVar

from google.protobuf.message import Message

from fastlane_grpc.api.pages import PageResult

T = TypeVar("T")
M = TypeVar("M", bound=Message)

# No response is larger than 3 MiB; 1 KiB of that is kept for the token.
_MAX_BYTES = (3 << 20) - 1024
# The tag and the length of each message within the response.
_OVERHEAD_BYTES = 6
# After so many messages other tasks get the loop.
_BATCH = 32


async def messages_of_page(result: PageResult[T], convert: Callable[[T], M]) -> tuple[list[M], str]:
    """Return the messages of as many items as fit, at least one, and the token of the next page; empty: no page
    follows."""
    messages: list[M] = []
    bytes_left = _MAX_BYTES
    for number, item in enumerate(result.items):
        if number and number % _BATCH == 0:
            await asyncio.sleep(0)
        message = convert(item)
        bytes_left -= message.ByteSize() + _OVERHEAD_BYTES
        if bytes_left < 0 and messages:
            break
        messages.append(message)
    return messages, result.token(len(messages))
