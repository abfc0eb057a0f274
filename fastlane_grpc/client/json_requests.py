"""Requests as JSON for people: that of protobuf, with names in snake case or camel case, and friendlier values.

A field of a spec may stand beside `task_id`. Durations may be "1h30m" or a number of seconds, sizes "512m", enum values
"queue-one"; a cron, a retry and a unique may be their one required value. All else is refused by the name of its
field: nothing is dropped in silence."""

import json
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from difflib import get_close_matches
from typing import Any

from google.protobuf import json_format
from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor

from fastlane_grpc.client.policies import span_of
from fastlane_grpc.v1 import fastlane_pb2 as pb

# No server takes a larger request by default.
_LONGEST_BYTES = 4 << 20

# Messages that a single value may stand for, and the field that it is.
_SHORT = {"Cron": ("expression", str), "Retry": ("max_retries", int), "Unique": ("key", str)}
_SIZES = {"memory_bytes", "max_bytes"}
_SIZE = re.compile(r"([0-9]{1,12})([kmgKMG]?)")
_SECONDS = re.compile(r"-?[0-9]+(\.[0-9]{1,9})?s")


def request_from_json(line: bytes) -> pb.EnqueueJobRequest | None:
    """Return the request of one JSON object; None: the line is blank. ValueError, which names the field."""
    if len(line) > _LONGEST_BYTES:
        raise ValueError(f"is longer than {_LONGEST_BYTES} bytes")
    try:
        text = line.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"is not UTF-8 at byte {error.start + 1}") from None
    if not text.strip():
        return None
    value = _parsed(text)
    if not isinstance(value, dict):
        raise ValueError("is not a JSON object")
    _move_spec_fields(value)
    request = pb.EnqueueJobRequest()
    try:
        json_format.ParseDict(_converted(request.DESCRIPTOR, value, ""), request)
    except json_format.ParseError as error:
        raise ValueError(_parse_error_text(str(error))) from None
    except UnicodeError:
        raise ValueError("has half a character: an escape of \\ud800 to \\udfff that is not one of a pair") from None
    return request


def _parsed(text: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_without_repetition, parse_constant=_no_constant)
    except json.JSONDecodeError as error:
        raise ValueError(f"is not JSON: {error.msg} at column {error.colno}") from None
    except RecursionError:
        raise ValueError("is nested too deeply") from None


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made: dict[str, Any] = {}
    for name, value in pairs:
        if name in made:
            raise ValueError(f"has {json.dumps(name)} twice")
        made[name] = value
    return made


def _no_constant(name: str) -> Any:
    raise ValueError(f"is not JSON: {name} is no number")


def _move_spec_fields(value: dict[str, Any]) -> None:
    """Move the fields of a JobSpec that stand beside `task_id` into `spec`."""
    names = {name for name in value if _field(pb.JobSpec.DESCRIPTOR, name)}
    if not names:
        return
    if "spec" in value:
        raise ValueError(f"{min(names)}: stands beside spec; move it into spec, or leave out spec")
    value["spec"] = {name: value.pop(name) for name in sorted(names)}


def _field(message: Descriptor, name: str) -> FieldDescriptor | None:
    for field in message.fields:
        if name in {field.name, field.json_name}:
            return field
    return None


def _converted(message: Descriptor, value: Mapping[str, Any], path: str) -> dict[str, Any]:
    """Return the JSON that protobuf takes for one that may have friendlier values."""
    made: dict[str, Any] = {}
    for name, each in value.items():
        field = _field(message, name)
        if field is None:
            known = [*message.fields, *([] if path else pb.JobSpec.DESCRIPTOR.fields)]
            near = get_close_matches(name, [each.name for each in known], 1, 0.65)
            raise ValueError(f"{path}{name}: no such field{f'; did you mean {near[0]}?' if near else ''}")
        if field.name in made:
            raise ValueError(f"{path}{field.name}: is given twice")
        made[field.name] = None if each is None else _field_value(field, each, f"{path}{field.name}")
    return made


def _field_value(field: FieldDescriptor, value: Any, path: str) -> Any:
    kind = field.message_type
    if kind is not None and kind.GetOptions().map_entry:
        return _strings(value, path)
    if not field.is_repeated:
        return _one_value(field, value, path)
    if not isinstance(value, list):
        raise ValueError(f"{path}: must be a list, as [{_shown(value)}]")
    return [_one_value(field, each, f"{path}[{number}]") for number, each in enumerate(value)]


def _one_value(field: FieldDescriptor, value: Any, path: str) -> Any:
    kind = field.message_type
    if field.enum_type is not None:
        return _enum_value(field.enum_type, value, path)
    if kind is None:
        return _plain_value(field, value, path)
    if kind.full_name == "google.protobuf.Duration":
        return _duration(value, path)
    if kind.full_name == "google.protobuf.Timestamp":
        return _time(value, path)
    if kind.full_name == "google.protobuf.Struct":
        if not isinstance(value, dict):
            raise ValueError(f"{path}: must be a JSON object")
        return value
    if kind.name in _SHORT:
        name, of_type = _SHORT[kind.name]
        if isinstance(value, of_type) and not isinstance(value, bool):
            value = {name: value}
    if not isinstance(value, dict):
        raise ValueError(f"{path}: must be a JSON object")
    return _converted(kind, value, f"{path}.")


def _plain_value(field: FieldDescriptor, value: Any, path: str) -> Any:
    if field.cpp_type == FieldDescriptor.CPPTYPE_STRING:
        if not isinstance(value, str):
            raise ValueError(f"{path}: must be a string, as {json.dumps(_shown(value))}")
    elif field.name in _SIZES and isinstance(value, str):
        match = _SIZE.fullmatch(value)
        if match is None:
            raise ValueError(f'{path}: {value!r} is not a number of bytes, as 1048576, "512m" or "1g"')
        return int(match[1]) << {"": 0, "k": 10, "m": 20, "g": 30}[match[2].lower()]
    return value


def _strings(value: Any, path: str) -> Any:
    if not isinstance(value, dict):
        raise ValueError(f'{path}: must be a JSON object of strings, as {{"NAME": "value"}}')
    for name, each in value.items():
        if not isinstance(each, str):
            raise ValueError(f"{path}[{json.dumps(name)}]: must be a string")
    return value


def _duration(value: Any, path: str) -> str:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return f"{value:.9f}s"
    if not isinstance(value, str):
        raise ValueError(f'{path}: must be a duration, as "90s" or "1h30m"')
    if _SECONDS.fullmatch(value):
        return value
    span = span_of(value, path)
    return f"{span.days * 86_400 + span.seconds}.{span.microseconds:06}s"


def _time(value: Any, path: str) -> str:
    try:
        return datetime.fromisoformat(value).astimezone(UTC).isoformat().replace("+00:00", "Z")
    except (TypeError, ValueError, OverflowError):
        raise ValueError(
            f'{path}: must be a time, as "2026-01-31T08:00:00Z", or without Z in this machine\'s time zone'
        ) from None


def _enum_value(kind: EnumDescriptor, value: Any, path: str) -> Any:
    """A value may be without the prefix of its kind, in small letters, with dashes: "queue-one"."""
    if not isinstance(value, str):
        raise ValueError(f"{path}: must be one of {_choices(kind)}")
    prefix = kind.values[0].name.removesuffix("UNSPECIFIED")
    name = value.upper().replace("-", "_")
    for candidate in (name, prefix + name):
        if candidate in kind.values_by_name:
            return candidate
    raise ValueError(f"{path}: {value!r} is not one of {_choices(kind)}")


def _choices(kind: EnumDescriptor) -> str:
    prefix = kind.values[0].name.removesuffix("UNSPECIFIED")
    return ", ".join(
        json.dumps(each.name.removeprefix(prefix).replace("_", "-").lower()) for each in kind.values if each.number
    )


def _shown(value: Any) -> str:
    """Return a value as an example; it may be secret where it is a string."""
    return json.dumps(value) if isinstance(value, int | float) else '"..."'


def _parse_error_text(text: str) -> str:
    """Return what protobuf says of a value, after its field."""
    fields = re.findall(r"Failed to parse (\S+) field: ", text)
    what, _, place = re.sub(r"Failed to parse \S+ field: ", "", text).rstrip(".").partition(" at EnqueueJobRequest.")
    return f"{place or '.'.join(fields)}: {what}"
