"""Request messages from the parts of an HTTP request: its path, its query and its JSON."""

from collections.abc import Mapping, Sequence
from typing import Any, cast

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from fastlane_grpc.errors import InvalidRequest, UnknownField, Violation
from fastlane_grpc.http.routes import CallRoute
from fastlane_grpc.request_json import JsonFault, field_named, parse_json, read_message, unknown_field


def request_of(route: CallRoute, path: Mapping[str, str], query: Sequence[tuple[str, str]], body: bytes) -> Message:
    """Return the request of a call. InvalidRequest; UnknownField for a name that the request does not have."""
    request: Message = GetMessageClass(route.descriptor.input_type)()
    try:
        if route.verb == "GET":
            value = query_value(cast("Descriptor", request.DESCRIPTOR), query)
        else:
            value = body_value(body)
            if query:
                raise JsonFault(query[0][0][:100], "is in the query; send it in the body")
        read_message(_with_path(value, path), request, zoned=True)
    except JsonFault as fault:
        raise _refusal_of(fault) from None
    return request


def query_value(message: Descriptor, query: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """Return the fields in a query as JSON. Lists are repeated or have commas; a label is `labels=NAME=VALUE`."""
    value: dict[str, Any] = {}
    for name, text in query:
        field = field_named(message, name)
        if field is None:
            raise unknown_field("", name[:100], [each.name for each in message.fields])
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            key, equals, each = text.partition("=")
            if not equals:
                raise JsonFault(field.name, f"must be {field.name}=NAME=VALUE")
            _add(value.setdefault(field.name, {}), key, each, field.name)
        elif field.is_repeated:
            value.setdefault(field.name, []).extend(each for each in text.split(",") if each)
        else:
            _add(value, field.name, _plain(field, text), field.name)
    return value


def _refusal_of(fault: JsonFault) -> InvalidRequest | UnknownField:
    """Return the error that tells of a fault in a request."""
    if not fault.field:
        return InvalidRequest([Violation("", f"the body {fault.description}")])
    violation = Violation(fault.field, fault.description)
    return UnknownField(str(fault), [violation]) if fault.unknown else InvalidRequest([violation])


def body_value(body: bytes) -> dict[str, Any]:
    """Return the JSON object in a body. JsonFault."""
    try:
        text = body.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise JsonFault("", f"is not UTF-8 at byte {error.start + 1}") from None
    value = parse_json(text) if text.strip() else {}
    if not isinstance(value, dict):
        raise JsonFault("", "is not a JSON object")
    return value


def _with_path(value: dict[str, Any], path: Mapping[str, str]) -> dict[str, Any]:
    for name, text in path.items():
        for given in {name, _camel(name)} & value.keys():
            if value.pop(given) != text:
                raise JsonFault(given, f"differs from the path, which has {text[:100]!r}; leave it out")
    return {**value, **path}


def _camel(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(part.capitalize() for part in rest)


def _add(value: dict[str, Any], name: str, each: Any, field: str) -> None:
    if name in value:
        raise JsonFault(field, "is given twice")
    value[name] = each


def _plain(field: FieldDescriptor, text: str) -> Any:
    if field.type == FieldDescriptor.TYPE_BOOL:
        if text.lower() not in {"true", "false", "1", "0"}:
            raise JsonFault(field.name, "must be true or false")
        return text.lower() in {"true", "1"}
    return text
