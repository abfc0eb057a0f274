"""Responses without an end known in advance: their start, their interruption, and a client that goes away."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence

from starlette.types import Scope, Send

from fastlane_grpc import api
from fastlane_grpc.call_record import CALL
from fastlane_grpc.http.connection import CONNECTION, Connection
from fastlane_grpc.http.problem import HttpError, problem_of

# Proxies that gather a response before they send it would hold a stream back.
HEADERS = {"X-Content-Type-Options": "nosniff", "Cache-Control": "no-store", "X-Accel-Buffering": "no"}


async def stream_response(
    scope: Scope,
    send: Send,
    headers: Mapping[str, str],
    produce: Callable[[api.Send], Awaitable[None]],
    *,
    status: int = 200,
    interruption: Callable[[Mapping[str, object]], bytes] | None = None,
    trailers: Callable[[], Sequence[tuple[bytes, bytes]]] | None = None,
) -> None:
    """Send what `produce` passes to its argument, and complete the response when it returns.

    An error before the first byte is raised, so that it has a status of its own. After that, `interruption` makes the
    last bytes from the problem, and the response is left incomplete: a client sees that it has to resume. `trailers`
    returns the fields after a complete response. With a Content-Length among the headers the response is not chunked.
    A client that goes away ends the stream."""
    if scope["http_version"] == "1.0":
        raise HttpError(505, "HTTP_VERSION_NOT_SUPPORTED", "a stream needs HTTP/1.1; in nginx: proxy_http_version 1.1")
    connection: Connection = scope[CONNECTION]
    task = asyncio.current_task()
    assert task is not None, "a handler runs in a task"
    connection.on_lost = task.cancel
    started = False
    record = CALL.get()

    async def start() -> None:
        nonlocal started
        started = True
        fields = [(name.lower().encode(), value.encode("latin-1")) for name, value in {**HEADERS, **headers}.items()]
        await send({"type": "http.response.start", "status": status, "headers": fields})

    async def write(data: bytes) -> None:
        if not started:
            await start()
        if "Content-Length" in headers:
            await send({"type": "http.response.body", "body": data, "more_body": True})
        else:
            await connection.send_chunk(data)
        if record is not None:
            record.bytes_sent += len(data)

    async def write_head(data: bytes) -> None:
        raise _HeadComplete

    try:
        await produce(write_head if scope["method"] == "HEAD" else write)
    except _HeadComplete:
        # A first byte would follow: the request has no error, and the stream is not opened for HEAD.
        await start()
        await send({"type": "http.response.body"})
        return
    except Exception as error:
        if not started:
            raise
        _, problem, _ = problem_of(error)
        if interruption is not None:
            await write(interruption(problem))
        connection.abort()
        return
    if not started:
        await start()
    if trailers is not None:
        connection.end_with_trailers(trailers())
    else:
        await send({"type": "http.response.body"})


class _HeadComplete(Exception):
    """Ends a stream before its first byte."""
