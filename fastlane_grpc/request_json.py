"""Requests of the contract as JSON for people: that of protobuf, with names in snake case or camel case, and friendlier
values.

The fields of a spec may stand beside `task_id`. Durations may be "1h30m" or a number of seconds, sizes "512m", times a
number of seconds since 1970, enum values "queue-one"; a cron, a retry and a unique may be their one required value. All
else is refused by the name of its field: nothing is dropped in silence."""

import json
import math
import re
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from difflib import get_close_matches
from functools import cache
from types import MappingProxyType
from typing import Any, cast

from google.protobuf import json_format
from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor
from google.protobuf.message import Message

from fastlane_grpc.text.time_span import span_of
from fastlane_grpc.v1 import fastlane_pb2 as pb

# Messages that a single value may stand for, and the field that it is.
SHORT_FORMS = {
    "Cron": ("expression", str),
    "Retry": ("max_retries", int),
    "Unique": ("key", str),
    "Webhook": ("url", str),
    "Tmpfs": ("path", str),
}
# Names that the payload of the first fastlane had for fields of a spec.
SPEC_ALIASES = {"retries": "retry", "expiration": "expire_time"}
_SIZES = {"memory_bytes", "max_bytes", "shm_bytes", "memory_reservation_bytes", "size_bytes"}
_SIZE = re.compile(r"([0-9]{1,12})([kmgKMG]?)")
_SECONDS = re.compile(r"-?[0-9]+(\.[0-9]{1,9})?s")
# No number of more digits fits into a field; Python refuses to read one of very many.
_MOST_DIGITS = 300
_LONGEST_NAME = 100
_DIGITS = re.compile(r"-?[0-9]{1,20}")
_INTEGERS = {
    FieldDescriptor.CPPTYPE_INT32: (-(1 << 31), (1 << 31) - 1),
    FieldDescriptor.CPPTYPE_INT64: (-(1 << 63), (1 << 63) - 1),
    FieldDescriptor.CPPTYPE_UINT32: (0, (1 << 32) - 1),
    FieldDescriptor.CPPTYPE_UINT64: (0, (1 << 64) - 1),
}
_FLOATS = {FieldDescriptor.CPPTYPE_DOUBLE, FieldDescriptor.CPPTYPE_FLOAT}
_HALF_CHARACTER = "has half a character: an escape of \\ud800 to \\udfff that is not one of a pair"
# What protobuf says, for people.
_PARSE_FAULTS = {
    "Unpaired surrogate": _HALF_CHARACTER,
    "'utf-8' codec can't encode": _HALF_CHARACTER,
    "Message too deep": "is nested too deeply",
    "Couldn't parse duration": "is not a duration of at most 10000 years",
}


class JsonFault(ValueError):
    """A fault of one field; an empty name stands for the whole request."""

    def __init__(self, field: str, description: str, *, unknown: bool = False) -> None:
        super().__init__(f"{field}: {description}" if field else description)
        self.field = field
        self.description = description
        self.unknown = unknown


def parse_json(text: str) -> Any:
    """Return the value of a JSON text. JsonFault, also for a repeated name and for numbers that JSON does not have."""
    try:
        return json.loads(
            text,
            object_pairs_hook=_without_repetition,
            parse_constant=_no_constant,
            parse_float=_finite,
            parse_int=_integer,
        )
    except json.JSONDecodeError as error:
        line = f" of line {error.lineno}" if error.lineno > 1 else ""
        raise JsonFault("", f"is not JSON: {error.msg} at column {error.colno}{line}") from None
    except RecursionError:
        raise JsonFault("", "is nested too deeply") from None


def read_message(value: Any, message: Message, *, zoned: bool = False) -> None:
    """Set the fields of `message` from the JSON value of a request. JsonFault.

    `zoned`: a time has to name its time zone. Else one without a time zone is a time of this machine's zone."""
    if not isinstance(value, dict):
        raise JsonFault("", "is not a JSON object")
    try:
        json_format.ParseDict(_Reader(zoned=zoned).message(cast("Descriptor", message.DESCRIPTOR), value, ""), message)
    except json_format.ParseError as error:
        raise _parse_fault(str(error), message.DESCRIPTOR.name) from None
    except UnicodeError:
        raise JsonFault("", _HALF_CHARACTER) from None


def field_named(message: Descriptor, name: str) -> FieldDescriptor | None:
    """Return the field of this name, in snake case or camel case."""
    return _fields(message).get(name)


@cache
def _fields(message: Descriptor) -> Mapping[str, FieldDescriptor]:
    """Return the fields of a message by all their names."""
    fields = {name: field for field in message.fields for name in (field.name, field.json_name)}
    if message.full_name == pb.JobSpec.DESCRIPTOR.full_name:
        fields |= {alias: fields[name] for alias, name in SPEC_ALIASES.items()}
    return fields


def unknown_field(
    path: str, name: str, known: Iterable[str], nested: Mapping[str, str] = MappingProxyType({})
) -> JsonFault:
    """Return the fault of a field that does not exist, with the nearest one that does.

    `nested`: by their names, the paths of fields that are in others."""
    # Nothing is near to a long name, and the search would take long.
    word = name if len(name) <= _LONGEST_NAME else ""
    near = get_close_matches(word, list(known), 1, 0.65)
    inner = get_close_matches(word, list(nested), 1, 0.65)
    meant = near[0] if near else nested[inner[0]] if inner else ""
    return JsonFault(f"{path}{name}", f"no such field{f'; did you mean {meant}?' if meant else ''}", unknown=True)


class _Reader:
    """Makes the JSON that protobuf takes of one that may have friendlier values."""

    def __init__(self, *, zoned: bool) -> None:
        self._zoned = zoned

    def message(self, message: Descriptor, value: Mapping[str, Any], path: str) -> dict[str, Any]:
        made: dict[str, Any] = {}
        for name, each in _with_spec(message, value, path).items():
            field = field_named(message, name)
            if field is None:
                raise unknown_field(path, name, _known_names(message), _nested_names(message))
            if field.name in made:
                raise JsonFault(f"{path}{field.name}", "is given twice")
            made[field.name] = None if each is None else self._field(field, each, f"{path}{field.name}")
        return made

    def _field(self, field: FieldDescriptor, value: Any, path: str) -> Any:
        kind = field.message_type
        if kind is not None and kind.GetOptions().map_entry:
            return _strings(value, path)
        if not field.is_repeated:
            return self._one(field, value, path)
        if not isinstance(value, list):
            raise JsonFault(path, f"must be a list, as [{_shown(value)}]")
        return [self._one(field, each, f"{path}[{number}]") for number, each in enumerate(value)]

    def _one(self, field: FieldDescriptor, value: Any, path: str) -> Any:
        kind = field.message_type
        if field.enum_type is not None:
            return _enum_value(field.enum_type, value, path)
        if kind is None:
            return _plain_value(field, value, path)
        if kind.full_name == "google.protobuf.Duration":
            return _duration(value, path)
        if kind.full_name == "google.protobuf.Timestamp":
            return self._time(value, path)
        if kind.full_name == "google.protobuf.Struct":
            if not isinstance(value, dict):
                raise JsonFault(path, "must be a JSON object")
            return value
        alone = ""
        if kind.name in SHORT_FORMS:
            name, of_type = SHORT_FORMS[kind.name]
            alone = f", or its {name} alone, which is a {'string' if of_type is str else 'whole number'}"
            if isinstance(value, of_type) and not isinstance(value, bool):
                value = {name: value}
        if not isinstance(value, dict):
            raise JsonFault(path, f"must be a JSON object{alone}")
        return self.message(kind, value, f"{path}.")

    def _time(self, value: Any, path: str) -> str:
        try:
            if isinstance(value, int | float) and not isinstance(value, bool):
                time = datetime.fromtimestamp(value, UTC)
            else:
                time = datetime.fromisoformat(value)
            if self._zoned and time.tzinfo is None:
                raise JsonFault(path, f'{value!r} has no time zone; write "{value}Z" for UTC')
            return time.astimezone(UTC).isoformat().replace("+00:00", "Z")
        except JsonFault:
            raise
        except (TypeError, ValueError, OverflowError, OSError):
            zone = "" if self._zoned else ", or without Z in this machine's time zone"
            raise JsonFault(path, f'must be a time, as "2026-01-31T08:00:00Z"{zone}') from None


def _with_spec(message: Descriptor, value: Mapping[str, Any], path: str) -> Mapping[str, Any]:
    """Return the value with those fields in `spec` that may stand beside it."""
    if not has_spec(message):
        return value
    names = {name for name in value if not field_named(message, name) and field_named(pb.JobSpec.DESCRIPTOR, name)}
    if not names:
        return value
    if "spec" in value:
        raise JsonFault(f"{path}{min(names)}", "stands beside spec; move it into spec, or leave out spec")
    rest = {name: each for name, each in value.items() if name not in names}
    return rest | {"spec": {name: each for name, each in value.items() if name in names}}


def has_spec(message: Descriptor) -> bool:
    """Return whether the fields of a JobSpec may stand beside the fields of this message."""
    spec = message.fields_by_name.get("spec")
    return spec is not None and spec.message_type is not None and spec.message_type.name == "JobSpec"


def _known_names(message: Descriptor) -> list[str]:
    fields = [*message.fields, *(pb.JobSpec.DESCRIPTOR.fields if has_spec(message) else [])]
    return [field.name for field in fields]


def _nested_names(message: Descriptor) -> Mapping[str, str]:
    """Return the paths of the fields in those of the spec that are messages of the contract."""
    if not has_spec(message) and message.full_name != pb.JobSpec.DESCRIPTOR.full_name:
        return {}
    return {
        inner.name: f"{outer.name}.{inner.name}"
        for outer in reversed(pb.JobSpec.DESCRIPTOR.fields)
        if outer.message_type is not None and outer.message_type.file is pb.DESCRIPTOR
        for inner in outer.message_type.fields
    }


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made: dict[str, Any] = {}
    for name, value in pairs:
        if name in made:
            raise JsonFault("", f"has {json.dumps(name)} twice")
        made[name] = value
    return made


def _no_constant(name: str) -> Any:
    raise JsonFault("", f"is not JSON: {name} is no number")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise JsonFault("", f"has a number that is too large: {text[:40]}")
    return number


def _integer(text: str) -> int:
    if len(text) > _MOST_DIGITS:
        raise JsonFault("", f"has a number of {len(text)} digits, which is too large")
    return int(text)


def _plain_value(field: FieldDescriptor, value: Any, path: str) -> Any:
    if field.cpp_type == FieldDescriptor.CPPTYPE_STRING:
        if not isinstance(value, str):
            raise JsonFault(path, _no_string(field, value))
    elif field.name in _SIZES and isinstance(value, str):
        match = _SIZE.fullmatch(value)
        if match is None:
            raise JsonFault(path, f'{value!r} is not a number of bytes, as 1048576, "512m" or "1g"')
        value = int(match[1]) << {"": 0, "k": 10, "m": 20, "g": 30}[match[2].lower()]
    if field.cpp_type in _INTEGERS:
        return _whole_number(value, _INTEGERS[field.cpp_type], path)
    if field.cpp_type == FieldDescriptor.CPPTYPE_BOOL and not isinstance(value, bool):
        raise JsonFault(path, "must be true or false")
    if field.cpp_type in _FLOATS and (isinstance(value, bool) or not isinstance(value, int | float)):
        raise JsonFault(path, "must be a number")
    return value


def _no_string(field: FieldDescriptor, value: Any) -> str:
    if field.name == "command" and isinstance(value, list):
        return "must be a string; put a list of words into args"
    return f"must be a string{_as_string(value)}"


def _as_string(value: Any) -> str:
    """Return how to write a number as a string. Other values may be secret."""
    return f", as {json.dumps(json.dumps(value))}" if isinstance(value, int | float) else ""


def _whole_number(value: Any, bits: tuple[int, int], path: str) -> int:
    """Return the number, which may be a string: JSON of many languages has no 64 bits."""
    least, most = bits
    if (isinstance(value, str) and _DIGITS.fullmatch(value)) or (isinstance(value, float) and value.is_integer()):
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise JsonFault(path, f"must be a whole number from {least} to {most}")
    return value


def _strings(value: Any, path: str) -> Any:
    if not isinstance(value, dict):
        raise JsonFault(path, 'must be a JSON object of strings, as {"NAME": "value"}')
    for name, each in value.items():
        if not isinstance(each, str):
            raise JsonFault(f"{path}[{json.dumps(name)}]", f"must be a string{_as_string(each)}")
    return value


def _duration(value: Any, path: str) -> str:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return f"{value:.9f}s"
    if not isinstance(value, str):
        raise JsonFault(path, 'must be a duration, as "90s" or "1h30m"')
    if _SECONDS.fullmatch(value):
        return value
    try:
        span = span_of(value)
    except ValueError as error:
        raise JsonFault(path, str(error)) from None
    return f"{span.days * 86_400 + span.seconds}.{span.microseconds:06}s"


def _enum_value(kind: EnumDescriptor, value: Any, path: str) -> Any:
    """A value may be without the prefix of its kind, in small letters, with dashes: "queue-one"."""
    if not isinstance(value, str):
        raise JsonFault(path, f"must be one of {_choices(kind)}")
    prefix = kind.values[0].name.removesuffix("UNSPECIFIED")
    name = value.upper().replace("-", "_")
    for candidate in (name, prefix + name):
        # protobuf cannot look for half a character.
        if candidate.isascii() and candidate in kind.values_by_name:
            return candidate
    raise JsonFault(path, f"{value!r} is not one of {_choices(kind)}")


def _choices(kind: EnumDescriptor) -> str:
    prefix = kind.values[0].name.removesuffix("UNSPECIFIED")
    return ", ".join(
        json.dumps(each.name.removeprefix(prefix).replace("_", "-").lower()) for each in kind.values if each.number
    )


def _shown(value: Any) -> str:
    """Return a value as an example; it may be secret where it is a string."""
    return json.dumps(value) if isinstance(value, int | float) else '"..."'


def _parse_fault(text: str, message: str) -> JsonFault:
    """Return the fault that protobuf's error tells, with its field."""
    fields = re.findall(r"Failed to parse (\S+) field: ", text)
    what, _, place = re.sub(r"Failed to parse \S+ field: ", "", text).rstrip(".").partition(f" at {message}.")
    told = next((ours for theirs, ours in _PARSE_FAULTS.items() if what.startswith(theirs)), what[:300])
    return JsonFault(place or ".".join(fields), told)
