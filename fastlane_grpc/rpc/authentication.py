"""The check in front of every gRPC call: contract, health and reflection."""

import inspect
from collections.abc import AsyncIterator
from typing import Any

import grpc

from fastlane_grpc.api.error_table import status_of
from fastlane_grpc.counts import Counts
from fastlane_grpc.errors import Refusal
from fastlane_grpc.rpc.handlers import CODES, abort_with, certificate_name
from fastlane_grpc.rpc.wrapping import Wrapping
from fastlane_grpc.trust import HEALTH, PRINCIPAL, REFLECTION, Access, Credentials, Principal

_CONTRACT = "/fastlane.v1."
_OTHERS = {"/grpc.health.": HEALTH, "/grpc.reflection.": REFLECTION}

Context = Any


class Authentication(Wrapping):
    """Admits calls by their token or certificate. Streams end with their token."""

    def __init__(self, access: Access, counts: Counts) -> None:
        super().__init__()
        self._access = access
        self._counts = counts

    def wrapped(self, method: str, handler: Any) -> Any:
        what = _what(method)
        if handler.request_streaming:
            # Reflection alone: it shows the contract, and no stream of it waits for anything.
            async def converse(requests: AsyncIterator[Any], context: Context) -> AsyncIterator[Any]:
                await self._admit(what, context)
                async for response in handler.stream_stream(requests, context):
                    yield response

            return grpc.stream_stream_rpc_method_handler(
                converse, handler.request_deserializer, handler.response_serializer
            )
        if handler.response_streaming:
            assert not inspect.isasyncgenfunction(handler.unary_stream), "streams write their messages themselves"

            async def stream(request: Any, context: Context) -> None:
                principal = await self._admit(what, context)
                try:
                    async with self._access.stream(principal):
                        await handler.unary_stream(request, context)
                except Refusal as error:
                    await abort_with(context, status_of(error))

            return grpc.unary_stream_rpc_method_handler(
                stream, handler.request_deserializer, handler.response_serializer
            )

        async def call(request: Any, context: Context) -> Any:
            await self._admit(what, context)
            return await handler.unary_unary(request, context)

        return grpc.unary_unary_rpc_method_handler(call, handler.request_deserializer, handler.response_serializer)

    async def _admit(self, what: str, context: Context) -> Principal:
        try:
            principal = self._access.admit(what, lambda: _credentials(context))
        except Refusal as error:
            status = status_of(error)
            if what not in _OTHERS.values():
                counts = self._counts.of_grpc(what)
                counts.end(counts.start(), CODES[status.code].name)
            await abort_with(context, status)
        PRINCIPAL.set(principal)
        return principal


def _what(method: str) -> str:
    """Return the name of a method of the contract, or what `permissions.OTHERS` calls it."""
    if method.startswith(_CONTRACT):
        return method.rpartition("/")[2]
    return next((name for prefix, name in _OTHERS.items() if method.startswith(prefix)), method)


def _credentials(context: Context) -> Credentials:
    return Credentials(
        _address_of(context.peer()),
        authorization=next(
            (str(value) for key, value in context.invocation_metadata() if key == "authorization"), None
        ),
        certificate=certificate_name(context),
    )


def _address_of(peer: str) -> str:
    """Return the address in gRPC's name of a peer, as `ipv4:10.0.0.7:51234` and `ipv6:%5B::1%5D:51234`."""
    return peer.partition(":")[2].rpartition(":")[0].replace("%5B", "").replace("%5D", "").strip("[]")
