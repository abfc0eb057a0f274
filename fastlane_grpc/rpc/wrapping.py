"""An interceptor that wraps the handler of each method once."""

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from typing import Any

import grpc


class Wrapping(grpc.aio.ServerInterceptor, ABC):
    """Puts a wrapper around the handler of every method, and keeps the wrappers."""

    def __init__(self) -> None:
        self._wrappers: dict[str, Any] = {}

    async def intercept_service(
        self, continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]], details: grpc.HandlerCallDetails
    ) -> Any:
        """Return the wrapped handler of the method; None for an unknown method."""
        handler = await continuation(details)
        if handler is None:
            return None
        method = str(details.method)
        if method not in self._wrappers:
            self._wrappers[method] = self.wrapped(method, handler)
        return self._wrappers[method]

    @abstractmethod
    def wrapped(self, method: str, handler: Any) -> Any:
        """Return the handler with the wrapper around it."""
