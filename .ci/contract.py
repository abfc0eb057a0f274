"""Writes the contract as a page to read and link to, from descriptors that hold its comments.

python .ci/contract.py fastlane_grpc/v1/fastlane.binpb >docs/contract.md
"""

import sys
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path

from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
    FileDescriptorSet,
)

PACKAGE = ".fastlane.v1."
HEAD = """\
<!-- Made by `make proto` from protos/fastlane/v1/fastlane.proto; never edited. -->

# The contract

The content of [`fastlane.proto`](../protos/fastlane/v1/fastlane.proto) as a page. A server shows the same:
`grpcurl -plaintext HOST:PORT describe fastlane.v1.JobSpec`."""

Place = tuple[int, ...]
# Where descriptor.proto has what, as paths of comments count it.
SYNTAX, MESSAGES, ENUMS, SERVICES = 12, 4, 5, 6
FIELDS, NESTED_MESSAGES, NESTED_ENUMS = 2, 3, 4


class Page:
    """One file of the schema, as Markdown."""

    def __init__(self, file: FileDescriptorProto) -> None:
        self._file = file
        self._comments = {
            tuple(each.path): each.leading_comments for each in file.source_code_info.location if each.leading_comments
        }
        self._messages = {name: (path, message) for name, path, message in self._named_messages()}
        self._enums = {name: (path, enum) for name, path, enum in self._named_enums()}
        calls = [method for service in file.service for method in service.method]
        # The call under whose heading a request or response is.
        self._of_calls = {_name(type_): call.name for call in calls for type_ in (call.input_type, call.output_type)}

    def lines(self) -> Iterator[str]:
        yield from (HEAD, "")
        yield from ("## Rules for every call", "", self._text((SYNTAX,)), "")
        yield from ("## Calls", "", *self._index(), "")
        for number, service in enumerate(self._file.service):
            yield from (f"## {service.name}", "", self._text((SERVICES, number)), "")
            for place, method in enumerate(service.method):
                yield from (f"### {method.name}", "", self._text((SERVICES, number, 2, place)), "")
                for direction, type_ in (
                    ("Request", method.input_type),
                    ("Stream of" if method.server_streaming else "Response", method.output_type),
                ):
                    yield from self._message_lines(f"**{direction}** `{_name(type_)}`", _name(type_))
        yield from ("## Messages", "")
        for name in self._messages:
            if name not in self._of_calls:
                yield from self._message_lines(f"### {name}", name)
        yield from ("## Enums", "")
        for name in self._enums:
            yield from self._enum_lines(name)

    def _index(self) -> Iterator[str]:
        for service in self._file.service:
            calls = " · ".join(f"[{method.name}](#{_anchor(method.name)})" for method in service.method)
            yield f"* [{service.name}](#{_anchor(service.name)}): {calls}"

    def _message_lines(self, title: str, name: str) -> Iterator[str]:
        path, message = self._messages[name]
        yield from (title, "") if title.startswith("#") else ()
        comment = self._text(path)
        yield from (comment if title.startswith("#") else f"{title}: {comment}", "")
        if message.field:
            yield from ("| no. | field | type | |", "|---|---|---|---|")
            for place, field in enumerate(message.field):
                meaning = self._cell((*path, FIELDS, place))
                yield f"| {field.number} | `{field.name}` | {self._type(message, field)} | {meaning} |"
            yield ""

    def _enum_lines(self, name: str) -> Iterator[str]:
        path, enum = self._enums[name]
        yield from (f"### {name}", "", self._text(path), "")
        yield from ("| no. | value | |", "|---|---|---|")
        for place, value in enumerate(enum.value):
            yield f"| {value.number} | `{value.name}` | {self._cell((*path, 2, place))} |"
        yield ""

    def _type(self, message: DescriptorProto, field: FieldDescriptorProto) -> str:
        entry = next(
            (
                each
                for each in message.nested_type
                if each.options.map_entry and field.type_name.endswith(f".{each.name}")
            ),
            None,
        )
        if entry:
            key, value = (self._plain_type(each) for each in entry.field)
            return f"map of {key} to {value}"
        plain = self._plain_type(field)
        if field.label == FieldDescriptorProto.LABEL_REPEATED:
            return f"repeated {plain}"
        if field.proto3_optional:
            return f"optional {plain}"
        if field.HasField("oneof_index"):
            return f"{plain}, one of `{message.oneof_decl[field.oneof_index].name}`"
        return plain

    def _plain_type(self, field: FieldDescriptorProto) -> str:
        if not field.type_name:
            return FieldDescriptorProto.Type.Name(field.type).removeprefix("TYPE_").lower()
        if not field.type_name.startswith(PACKAGE):
            return field.type_name.rpartition(".")[2]
        name = _name(field.type_name)
        return f"[{name}](#{_anchor(self._of_calls.get(name, name))})"

    def _text(self, path: Place) -> str:
        """A comment as paragraphs: its lists and its line breaks are Markdown's too."""
        lines = (line.removeprefix(" ").rstrip() for line in self._comments[path].strip("\n").split("\n"))
        return _escaped("\n".join(lines))

    def _cell(self, path: Place) -> str:
        return " ".join(self._text(path).split()).replace("|", r"\|")

    def _named_messages(self) -> Iterator[tuple[str, Place, DescriptorProto]]:
        return chain.from_iterable(
            _with_nested("", (MESSAGES, number), message) for number, message in enumerate(self._file.message_type)
        )

    def _named_enums(self) -> Iterator[tuple[str, Place, EnumDescriptorProto]]:
        for number, enum in enumerate(self._file.enum_type):
            yield enum.name, (ENUMS, number), enum
        for name, path, message in self._named_messages():
            for number, enum in enumerate(message.enum_type):
                yield f"{name}.{enum.name}", (*path, NESTED_ENUMS, number), enum


def _with_nested(prefix: str, path: Place, message: DescriptorProto) -> Iterator[tuple[str, Place, DescriptorProto]]:
    name = prefix + message.name
    yield name, path, message
    for number, nested in enumerate(message.nested_type):
        if not nested.options.map_entry:
            yield from _with_nested(f"{name}.", (*path, NESTED_MESSAGES, number), nested)


def _name(type_name: str) -> str:
    return type_name.removeprefix(PACKAGE)


def _anchor(name: str) -> str:
    return name.lower().replace(".", "")


def _escaped(text: str) -> str:
    """Outside of code, what would be taken for a tag."""
    parts = text.split("`")
    parts[::2] = [part.replace("<", "&lt;") for part in parts[::2]]
    return "`".join(parts)


def main(arguments: Sequence[str]) -> None:
    [source] = arguments
    [file] = [
        each for each in FileDescriptorSet.FromString(Path(source).read_bytes()).file if f".{each.package}." == PACKAGE
    ]
    print("\n".join(Page(file).lines()).rstrip())


if __name__ == "__main__":
    main(sys.argv[1:])
