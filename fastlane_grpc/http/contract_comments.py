"""The comments of the contract, from its descriptors."""

from collections.abc import Iterator, Mapping
from functools import cache
from importlib.resources import files

from google.protobuf.descriptor_pb2 import DescriptorProto, EnumDescriptorProto, FileDescriptorProto, FileDescriptorSet


@cache
def comments() -> Mapping[str, str]:
    """Return the comments of the contract, by the full names of what they are about."""
    contract = FileDescriptorSet.FromString(files("fastlane_grpc.v1").joinpath("fastlane.binpb").read_bytes())
    [file] = [file for file in contract.file if file.package == "fastlane.v1"]
    names = dict(_names(file))
    found: dict[str, str] = {}
    for location in file.source_code_info.location:
        path = tuple(location.path)
        if path == (FileDescriptorProto.SYNTAX_FIELD_NUMBER,):
            found[file.package] = _text(location.leading_comments)
        elif path in names:
            found[names[path]] = _text(location.leading_comments)
    return found


def _text(comment: str) -> str:
    """Return a comment as Markdown: lines of one paragraph joined, lists kept."""
    paragraphs: list[str] = []
    for line in comment.splitlines():
        text = line.strip()
        if not text or not paragraphs or text.startswith("* ") or not paragraphs[-1]:
            paragraphs.append(text)
        else:
            paragraphs[-1] += f" {text}"
    return "\n".join(paragraphs).strip()


def _names(file: FileDescriptorProto) -> Iterator[tuple[tuple[int, ...], str]]:
    """Yield the path of each descriptor within its file, and its full name."""
    for number, message in enumerate(file.message_type):
        yield from _message_names(
            message, (FileDescriptorProto.MESSAGE_TYPE_FIELD_NUMBER, number), f"{file.package}.{message.name}"
        )
    for number, enum in enumerate(file.enum_type):
        yield from _enum_names(enum, (FileDescriptorProto.ENUM_TYPE_FIELD_NUMBER, number), file.package)
    for number, service in enumerate(file.service):
        path, name = (FileDescriptorProto.SERVICE_FIELD_NUMBER, number), f"{file.package}.{service.name}"
        yield path, name
        for place, method in enumerate(service.method):
            yield (*path, 2, place), f"{name}.{method.name}"


def _message_names(message: DescriptorProto, path: tuple[int, ...], name: str) -> Iterator[tuple[tuple[int, ...], str]]:
    yield path, name
    for number, field in enumerate(message.field):
        yield (*path, DescriptorProto.FIELD_FIELD_NUMBER, number), f"{name}.{field.name}"
    for number, enum in enumerate(message.enum_type):
        yield from _enum_names(enum, (*path, DescriptorProto.ENUM_TYPE_FIELD_NUMBER, number), name)
    for number, nested in enumerate(message.nested_type):
        yield from _message_names(
            nested, (*path, DescriptorProto.NESTED_TYPE_FIELD_NUMBER, number), f"{name}.{nested.name}"
        )


def _enum_names(enum: EnumDescriptorProto, path: tuple[int, ...], scope: str) -> Iterator[tuple[tuple[int, ...], str]]:
    yield path, f"{scope}.{enum.name}"
    for number, value in enumerate(enum.value):
        # A value is named in the scope of its enum.
        yield (*path, EnumDescriptorProto.VALUE_FIELD_NUMBER, number), f"{scope}.{enum.name}.{value.name}"
