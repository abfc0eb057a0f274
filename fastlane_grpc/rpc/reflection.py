"""Server reflection, v1 and v1alpha, from descriptors with comments: `grpcurl describe` shows what each field means."""

from collections.abc import AsyncIterator, Iterable, Iterator
from importlib.resources import files

import grpc
from google.protobuf.descriptor_pb2 import DescriptorProto, FileDescriptorProto, FileDescriptorSet
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2 as pb

_ALPHA = "grpc.reflection.v1alpha"
_STABLE = "grpc.reflection.v1"
# A request holds a name, which its response repeats.
MAX_REQUEST_BYTES = 4096


def handlers(services: Iterable[str]) -> list[grpc.GenericRpcHandler]:
    """Return handlers that describe these services, health and reflection itself."""
    descriptors = _Descriptors(_files())
    names = sorted(
        {*services, "grpc.health.v1.Health", *(f"{package}.ServerReflection" for package in (_ALPHA, _STABLE))}
    )

    async def info(requests: AsyncIterator[bytes], context: object) -> AsyncIterator[pb.ServerReflectionResponse]:
        async for raw in requests:
            yield _error_of(raw) or _answer(pb.ServerReflectionRequest.FromString(raw), descriptors, names)

    # The messages of both versions are encoded alike; only the name of their package differs.
    method: grpc.RpcMethodHandler[bytes, pb.ServerReflectionResponse] = grpc.stream_stream_rpc_method_handler(
        info,
        # Requests are parsed by `info`: gRPC's own error for a damaged request gives no reason.
        request_deserializer=None,
        response_serializer=pb.ServerReflectionResponse.SerializeToString,
    )
    return [
        grpc.method_handlers_generic_handler(f"{package}.ServerReflection", {"ServerReflectionInfo": method})
        for package in (_ALPHA, _STABLE)
    ]


class _Descriptors:
    """Descriptor files by name and by symbol."""

    def __init__(self, protos: Iterable[FileDescriptorProto]) -> None:
        self._files = {proto.name: proto for proto in protos}
        self._symbols = {symbol: proto.name for proto in self._files.values() for symbol in _symbols(proto)}

    def file(self, name: str) -> list[bytes] | None:
        """Return the file and all files that it imports, serialised; None: the file is unknown."""
        if name not in self._files:
            return None
        found: dict[str, bytes] = {}
        names = [name]
        while names:
            proto = self._files.get(names.pop())
            if proto is not None and proto.name not in found:
                found[proto.name] = proto.SerializeToString()
                names.extend(proto.dependency)
        return list(found.values())

    def file_of(self, symbol: str) -> list[bytes] | None:
        """Return the file that defines the symbol, as `file` does; None: the symbol is unknown."""
        return self.file(self._symbols.get(symbol, ""))


def _error_of(raw: bytes) -> pb.ServerReflectionResponse | None:
    """Return the error for a request that is damaged or too large, else None. Unlike other responses, an error does not
    repeat its request."""
    fault = ""
    if len(raw) > MAX_REQUEST_BYTES:
        fault = f"the ServerReflectionRequest takes {len(raw)} bytes; at most {MAX_REQUEST_BYTES} are allowed"
    else:
        try:
            pb.ServerReflectionRequest.FromString(raw)
        except DecodeError:
            fault = "the ServerReflectionRequest cannot be read: it is damaged, or holds text that is not UTF-8"
    if not fault:
        return None
    return pb.ServerReflectionResponse(
        error_response=pb.ErrorResponse(error_code=grpc.StatusCode.INVALID_ARGUMENT.value[0], error_message=fault)
    )


def _answer(
    request: pb.ServerReflectionRequest, descriptors: _Descriptors, services: Iterable[str]
) -> pb.ServerReflectionResponse:
    answer = pb.ServerReflectionResponse(valid_host=request.host, original_request=request)
    kind = request.WhichOneof("message_request")
    if kind == "list_services":
        for service in services:
            answer.list_services_response.service.add(name=service)
        return answer
    files: list[bytes] | None = None
    if kind == "file_by_filename":
        files = descriptors.file(request.file_by_filename)
    elif kind == "file_containing_symbol":
        files = descriptors.file_of(request.file_containing_symbol)
    elif kind == "all_extension_numbers_of_type" and descriptors.file_of(request.all_extension_numbers_of_type):
        # The contract is proto3, which has no extensions.
        answer.all_extension_numbers_response.base_type_name = request.all_extension_numbers_of_type
        return answer
    if files is None:
        answer.error_response.error_code = grpc.StatusCode.NOT_FOUND.value[0]
        answer.error_response.error_message = "not part of this server's contract"
    else:
        answer.file_descriptor_response.file_descriptor_proto.extend(files)
    return answer


def _files() -> Iterator[FileDescriptorProto]:
    contract = files("fastlane_grpc.v1").joinpath("fastlane.binpb").read_bytes()
    yield from FileDescriptorSet.FromString(contract).file
    # The contract does not import the details of errors. With this file grpcurl shows a reason instead of bytes.
    yield FileDescriptorProto.FromString(error_details_pb2.DESCRIPTOR.serialized_pb)
    yield FileDescriptorProto.FromString(health_pb2.DESCRIPTOR.serialized_pb)
    alpha = FileDescriptorProto.FromString(pb.DESCRIPTOR.serialized_pb)
    yield alpha
    yield FileDescriptorProto.FromString(_renamed(alpha))


def _renamed(alpha: FileDescriptorProto) -> bytes:
    """Return the file of v1: the file of v1alpha with another package."""
    stable = FileDescriptorProto()
    stable.CopyFrom(alpha)
    stable.name, stable.package = alpha.name.replace("v1alpha", "v1"), _STABLE
    for message in stable.message_type:
        for field in message.field:
            field.type_name = field.type_name.replace(_ALPHA, _STABLE)
    for service in stable.service:
        for method in service.method:
            method.input_type = method.input_type.replace(_ALPHA, _STABLE)
            method.output_type = method.output_type.replace(_ALPHA, _STABLE)
    return stable.SerializeToString()


def _symbols(proto: FileDescriptorProto) -> Iterator[str]:
    prefix = f"{proto.package}." if proto.package else ""
    for message in proto.message_type:
        yield from _message_symbols(message, prefix)
    for enum in proto.enum_type:
        yield prefix + enum.name
        yield from (prefix + value.name for value in enum.value)
    for service in proto.service:
        yield prefix + service.name
        yield from (f"{prefix}{service.name}.{method.name}" for method in service.method)


def _message_symbols(message: DescriptorProto, prefix: str) -> Iterator[str]:
    name = prefix + message.name
    yield name
    yield from (f"{name}.{field.name}" for field in message.field)
    for enum in message.enum_type:
        yield f"{name}.{enum.name}"
        yield from (f"{name}.{value.name}" for value in enum.value)
    for nested in message.nested_type:
        yield from _message_symbols(nested, f"{name}.")
