"""The messages of a page that fit into one response, and the token for the rest."""

import asyncio
from collections.abc import Callable
from typing import TypeVar

from google.protobuf.internal.containers import RepeatedCompositeFieldContainer
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


async def write_page(
    messages: "RepeatedCompositeFieldContainer[M]", result: PageResult[T], write: Callable[[M, T], object]
) -> str:
    """Add as many items as fit to the messages of a response, at least one. Return the token of the next page; empty:
    no page follows.

    Each message is written in place, as a message of its own would be copied."""
    bytes_left = _MAX_BYTES
    for number, item in enumerate(result.items):
        if number and number % _BATCH == 0:
            await asyncio.sleep(0)
        message = messages.add()
        write(message, item)
        bytes_left -= message.ByteSize() + _OVERHEAD_BYTES
        if bytes_left < 0 and number:
            del messages[-1]
            break
    return result.token(len(messages))
