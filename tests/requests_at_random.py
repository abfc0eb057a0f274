"""Messages of the contract at random, made from their descriptors: values at the edges of each field's type."""

from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from hypothesis import strategies as st

_SECONDS = [0, 1, 59, 3600, 86_400, 86_401, 366 * 86_400, 1_790_000_000, 253_402_300_799, 315_576_000_000, 1 << 62]
_NUMBERS = [1, 2, 3, 99, 100, 101, 127, 128, 255, 256, 1000, 1001, 10_000, 10_001, 100_001]
# What people write, and what nobody should.
_TEXTS = [
    *(
        "",
        "a",
        "-",
        "task",
        "k" * 128,
        "k" * 129,
        "x" * 5_000,
        " ",
        "\n",
        "\0",
        "é",
        "\U0001f600",
        "%s",
        "'; --",
        "..",
        "/",
    ),
    *("* * * * *", "@hourly", "30 2 * * *", "0 0 30 2 *", "*/0 * * * *", "60 * * * *", "0 0 L * *", "0 0 * * 7#5"),
    *("1-0 * * * *", "@reboot", "0 0 31 4,6 *", "* * * *", "* * * * * *", "99999999999999999999 * * * *"),
    *("UTC", "Europe/Berlin", "Europe/berlin", "../UTC", "America/New_Yrok", "localtime", "+02:00", "posix/UTC"),
    *("0191d2c8-0000-7000-8000-000000000001", "0191D2C8-0000-7000-8000-000000000001", "0191d2c8"),
]
_BITS = {
    FieldDescriptor.CPPTYPE_INT32: 31,
    FieldDescriptor.CPPTYPE_INT64: 63,
    FieldDescriptor.CPPTYPE_UINT32: 32,
    FieldDescriptor.CPPTYPE_UINT64: 64,
}
_SIGNED = {FieldDescriptor.CPPTYPE_INT32, FieldDescriptor.CPPTYPE_INT64}
_DOUBLES = [0.0, -0.0, 0.5, 1.0, 1.0000001, 2.0, 16.0, 100.0, 100.1, 1e308, -1.0, float("nan"), float("inf"), 5e-324]


def at_random(data: st.DataObject, kind: Descriptor, *, but: frozenset[str] = frozenset()) -> Any:
    """A message of this kind with a few fields set, none of which is called as in `but`."""
    message = GetMessageClass(kind)()
    fields = [field for field in kind.fields if field.name not in but]
    for field in data.draw(st.lists(st.sampled_from(fields), max_size=4, unique_by=lambda field: field.name)):
        change(data, message, field)
    return message


def change(data: st.DataObject, message: Message, field: FieldDescriptor) -> None:
    """Set a field of a message to something else."""
    message.ClearField(field.name)
    if field.message_type and field.message_type.GetOptions().map_entry:
        entries: Any = getattr(message, field.name)
        for _ in range(data.draw(st.sampled_from([1, 2, 9]))):
            name, value = data.draw(_text()), _value(data, field.message_type.fields_by_name["value"])
            entries[name].CopyFrom(value) if isinstance(value, Message) else entries.update({name: value})
    elif field.is_repeated:
        values = [_value(data, field) for _ in range(data.draw(st.sampled_from([1, 2, 20])))]
        # Of messages no more: gRPC takes at most 8 MiB.
        times = 1 if field.message_type else data.draw(st.sampled_from([1, 1, 60]))
        getattr(message, field.name).extend(values * times)
    elif field.message_type:
        getattr(message, field.name).CopyFrom(_value(data, field))
    else:
        setattr(message, field.name, _value(data, field))


def _value(data: st.DataObject, field: FieldDescriptor) -> Any:
    kind = field.message_type
    if kind is not None and kind.full_name in {"google.protobuf.Duration", "google.protobuf.Timestamp"}:
        message: Any = GetMessageClass(kind)()
        sign = data.draw(st.sampled_from([1, 1, 1, -1]))
        message.seconds = sign * data.draw(st.sampled_from(_SECONDS))
        message.nanos = data.draw(st.sampled_from([0, 0, 0, 1, 999_999_999, 1_000_000_000, -1, -(1 << 31)]))
        return message
    if kind is not None:
        return at_random(data, kind)
    if field.cpp_type in _BITS:
        most = 1 << _BITS[field.cpp_type]
        numbers = [0, *_NUMBERS, most - 1] + [-1, -2, -most] * (field.cpp_type in _SIGNED)
        return data.draw(st.sampled_from(numbers))
    if field.enum_type is not None:
        known = [value.number for value in field.enum_type.values]
        return data.draw(st.sampled_from([*known, *known, -1, max(known) + 1, (1 << 31) - 1]))
    if field.cpp_type in {FieldDescriptor.CPPTYPE_DOUBLE, FieldDescriptor.CPPTYPE_FLOAT}:
        return data.draw(st.sampled_from(_DOUBLES) | st.floats())
    if field.cpp_type == FieldDescriptor.CPPTYPE_BOOL:
        return data.draw(st.booleans())
    text = data.draw(_text())
    return text.encode() if field.type == FieldDescriptor.TYPE_BYTES else text


def _text() -> st.SearchStrategy[str]:
    return st.sampled_from(_TEXTS) | st.text(st.characters(codec="utf-8"), max_size=20)
