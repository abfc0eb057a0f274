"""The OpenAPI 3.1 document of all paths, made of the contract's descriptors with their comments."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from typing import Any

from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor

from fastlane_grpc.http.authentication import COOKIE
from fastlane_grpc.http.contract_comments import comments
from fastlane_grpc.http.media_types import EVENT_STREAM, JSON, JSON_LINES, RAW
from fastlane_grpc.http.routes import ROUTES, CallRoute
from fastlane_grpc.request_json import SHORT_FORMS, SPEC_ALIASES, has_spec
from fastlane_grpc.v1 import fastlane_pb2 as pb

_Schema = dict[str, Any]
_INTEGERS_64 = {
    FieldDescriptor.TYPE_INT64,
    FieldDescriptor.TYPE_UINT64,
    FieldDescriptor.TYPE_SINT64,
    FieldDescriptor.TYPE_FIXED64,
    FieldDescriptor.TYPE_SFIXED64,
}
_PLAIN: Mapping[int, _Schema] = {
    FieldDescriptor.TYPE_STRING: {"type": "string"},
    FieldDescriptor.TYPE_BYTES: {"type": "string", "contentEncoding": "base64"},
    FieldDescriptor.TYPE_BOOL: {"type": "boolean"},
    FieldDescriptor.TYPE_DOUBLE: {"type": "number", "format": "double"},
    FieldDescriptor.TYPE_FLOAT: {"type": "number", "format": "float"},
    FieldDescriptor.TYPE_INT32: {"type": "integer", "format": "int32"},
    FieldDescriptor.TYPE_UINT32: {"type": "integer", "minimum": 0, "maximum": (1 << 32) - 1},
    FieldDescriptor.TYPE_FIXED32: {"type": "integer", "minimum": 0, "maximum": (1 << 32) - 1},
}
# Messages of protobuf with a mapping of their own.
_WELL_KNOWN: Mapping[str, _Schema] = {
    "google.protobuf.Duration": {
        "type": ["string", "number"],
        "description": 'A duration: "90s", "1h30m", or a number of seconds. In responses: "5400s".',
    },
    "google.protobuf.Timestamp": {
        "type": ["string", "number"],
        "description": 'A time: "2026-01-31T08:00:00Z", or a number of seconds since 1970. In responses: text in UTC.',
    },
    "google.protobuf.Struct": {"type": "object", "description": "Any JSON object."},
}
_PROBLEM: _Schema = {
    "type": "object",
    "description": "An error, as RFC 9457 has it.",
    "required": ["type", "title", "status", "detail", "reason"],
    "properties": {
        "type": {"type": "string", "const": "about:blank"},
        "title": {"type": "string", "description": "The reason in words."},
        "status": {"type": "integer", "description": "The status of the response."},
        "detail": {"type": "string", "description": "What is wrong, which one, and what to do."},
        "reason": {
            "type": "string",
            "description": "A name of ErrorReason without its prefix, or one of HTTP itself, as PATH_NOT_FOUND.",
        },
        "metadata": {"type": "object", "additionalProperties": {"type": "string"}},
        "violations": {
            "type": "array",
            "description": "The invalid fields.",
            "items": {
                "type": "object",
                "required": ["field", "description"],
                "properties": {"field": {"type": "string"}, "description": {"type": "string"}},
            },
        },
        "retry_after_seconds": {"type": "number", "description": "When to try again; also in Retry-After."},
    },
}
_LINKS: _Schema = {
    "type": "object",
    "description": "Addresses of the job in the response: task, job, execution and log.",
    "additionalProperties": {"type": "string", "format": "uri"},
}


@dataclass(frozen=True, slots=True)
class Security:
    """The credentials that callers must show: tokens, certificates, or both. `open_paths`: those that need no token."""

    tokens: bool = False
    certificates: bool = False
    open_paths: frozenset[str] = frozenset()

    @property
    def schemes(self) -> _Schema:
        """The schemes that are on, by name."""
        return {
            **({"certificate": _CERTIFICATE} if self.certificates else {}),
            **({"token": _TOKEN, "cookie": _COOKIE} if self.tokens else {}),
        }

    @property
    def ways(self) -> list[_Schema]:
        """Each way to be admitted, with the schemes that it takes; empty: all callers are."""
        with_certificate: _Schema = {"certificate": []} if self.certificates else {}
        if self.tokens:
            by_token = [{**with_certificate, name: []} for name in ("token", "cookie")]
            return [*by_token, with_certificate] if self.certificates else by_token
        return [with_certificate] if self.certificates else []

    def of(self, path: str) -> _Schema:
        """Return what the operations of a path say beside that of the document."""
        if not self.tokens or path not in self.open_paths:
            return {}
        return {"security": [{"certificate": []}] if self.certificates else []}


NO_SECURITY = Security()
_TOKEN: _Schema = {"type": "http", "scheme": "bearer", "description": "A token of `fastlane token create`."}
_COOKIE: _Schema = {
    "type": "apiKey",
    "in": "cookie",
    "name": COOKIE,
    "description": "The same token, kept by the page; requests that change something need an Origin of the page too.",
}
_CERTIFICATE: _Schema = {"type": "mutualTLS", "description": "A certificate that an authority of the server signed."}


@cache
def document(security: Security = NO_SECURITY) -> bytes:
    """Return the document as JSON."""
    return json.dumps(_document(security), ensure_ascii=False).encode() + b"\n"


def _document(security: Security) -> _Schema:
    schemas = _Schemas()
    paths: dict[str, _Schema] = {}
    for route in ROUTES:
        paths.setdefault(route.path, {})[route.verb.lower()] = _operation(route, schemas)
    for path, summary in _EXTRA.items():
        responses = {"200": _json_response(summary, {}), "default": _PROBLEM_RESPONSE}
        if path == "/readyz":
            responses["503"] = _json_response("The server cannot store jobs.", {})
        if path == "/metrics":
            responses["200"] = {"description": summary, "content": dict.fromkeys(_METRICS, _TEXT)}
        paths[path] = {
            "get": {
                "operationId": path.strip("/").split(".")[0],
                "summary": summary,
                "responses": responses,
                **security.of(path),
            }
        }
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "fastlane",
            "version": version("fastlane-grpc"),
            "description": comments()["fastlane.v1"],
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        "tags": [
            {"name": service.name, "description": comments()[service.full_name]}
            for service in pb.DESCRIPTOR.services_by_name.values()
        ],
        "paths": paths,
        "components": {
            "schemas": {**schemas.made(), "Problem": _PROBLEM},
            **({"securitySchemes": security.schemes} if security.ways else {}),
        },
        **({"security": security.ways} if security.ways else {}),
    }


_EXTRA = {
    "/healthz": "Whether the process answers.",
    "/readyz": "Whether the server can store jobs; names its engines too.",
    "/openapi.json": "This document.",
    "/metrics": "All metrics, for Prometheus.",
}
_TEXT: _Schema = {"schema": {"type": "string"}}
_METRICS = ("text/plain", "application/openmetrics-text")
_PROBLEM_RESPONSE: _Schema = {
    "description": "An error.",
    "content": {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}},
}


def _operation(route: CallRoute, schemas: "_Schemas") -> _Schema:
    method = route.descriptor
    comment = comments()[method.full_name]
    operation: _Schema = {
        "operationId": route.operation_id,
        "tags": [method.containing_service.name],
        "summary": comment.partition(". ")[0].rstrip(".") + ".",
        "description": comment,
        "parameters": [*_path_parameters(route), *(_query_parameters(route) if route.verb == "GET" else ())],
    }
    if route.verb != "GET":
        properties = schemas.body_properties(method.input_type, without=route.path_fields)
        operation["requestBody"] = {
            "required": False,
            "content": {JSON: {"schema": {"type": "object", "properties": properties, "additionalProperties": False}}},
        }
        if method.name == "UploadInput":
            operation["requestBody"]["content"][RAW] = {}
    operation["responses"] = {**_responses(route, schemas), "default": _PROBLEM_RESPONSE}
    return operation


def _responses(route: CallRoute, schemas: "_Schemas") -> _Schema:
    method = route.descriptor
    comment = comments()[method.output_type.full_name]
    schema = schemas.reference(method.output_type)
    if method.server_streaming:
        types = (EVENT_STREAM, JSON_LINES, *((RAW,) if route.path.endswith("/logs") else ()))
        return {"200": {"description": f"A stream. {comment}", "content": {each: {} for each in types}}}
    if method.name == "ReadOutputs":
        return {
            "200": {"description": f"The archive from `offset` on. {comment}", "content": {"application/x-tar": {}}},
            "206": {"description": "The bytes of the header Range.", "content": {"application/x-tar": {}}},
        }
    if _has_links(method.output_type):
        schema = {"allOf": [schema, {"type": "object", "properties": {"links": _LINKS}}]}
    answers = {"200": _json_response(comment, schema)}
    if route.creates:
        location = {"Location": {"description": "Address of the job.", "schema": {"type": "string", "format": "uri"}}}
        answers["201"] = {**_json_response("A job was stored.", schema), "headers": location}
    return answers


def _json_response(description: str, schema: _Schema) -> _Schema:
    return {"description": description, "content": {JSON: {"schema": schema}}}


def _has_links(message: Descriptor) -> bool:
    return any(name in message.fields_by_name for name in ("job", "execution"))


def _path_parameters(route: CallRoute) -> Iterator[_Schema]:
    for name in route.path_fields:
        field = route.descriptor.input_type.fields_by_name[name]
        yield {
            "name": name,
            "in": "path",
            "required": True,
            "description": comments()[field.full_name],
            "schema": {"type": "string", "minLength": 1},
        }


def _query_parameters(route: CallRoute) -> Iterator[_Schema]:
    for field in route.descriptor.input_type.fields:
        if field.name in route.path_fields:
            continue
        schema = _Schemas().field(field)
        description = comments()[field.full_name]
        if _is_map(field):
            schema = {"type": "array", "items": {"type": "string", "pattern": "="}}
            description += " Each as NAME=VALUE."
        yield {"name": field.name, "in": "query", "description": description, "schema": schema}
    if route.path.endswith("/logs"):
        description = "Append a line with the exit status to a log of raw bytes."
        yield {"name": "exit_line", "in": "query", "description": description, "schema": {"type": "boolean"}}


class _Schemas:
    """The schemas of all messages and enums that are referred to."""

    def __init__(self) -> None:
        self._wanted: dict[str, Descriptor | EnumDescriptor] = {}

    def reference(self, kind: Descriptor | EnumDescriptor) -> _Schema:
        """Return a reference to the schema of a message or an enum."""
        name = kind.full_name.removeprefix("fastlane.v1.")
        self._wanted[name] = kind
        return {"$ref": f"#/components/schemas/{name}"}

    def made(self) -> dict[str, _Schema]:
        """Return all schemas, with those that they refer to."""
        made: dict[str, _Schema] = {}
        while missing := self._wanted.keys() - made.keys():
            for name in sorted(missing):
                kind = self._wanted[name]
                made[name] = _enum(kind) if isinstance(kind, EnumDescriptor) else self._message(kind)
        return dict(sorted(made.items()))

    def body_properties(self, message: Descriptor, *, without: Sequence[str]) -> _Schema:
        """Return the properties of a body; the fields of a spec may stand in it directly."""
        fields = [field for field in message.fields if field.name not in without]
        if has_spec(message):
            fields += pb.JobSpec.DESCRIPTOR.fields
        properties = {field.name: self._described(field) for field in fields}
        if has_spec(message):
            for alias, name in SPEC_ALIASES.items():
                properties[alias] = {**properties[name], "description": f"The same as {name}.", "deprecated": True}
        return properties

    def field(self, field: FieldDescriptor) -> _Schema:
        """Return the schema of a field."""
        if _is_map(field):
            return {"type": "object", "additionalProperties": {"type": "string"}}
        one = self._one(field)
        return {"type": "array", "items": one} if field.is_repeated else one

    def _message(self, message: Descriptor) -> _Schema:
        properties = {field.name: self._described(field) for field in message.fields}
        return {"type": "object", "description": comments()[message.full_name], "properties": properties}

    def _described(self, field: FieldDescriptor) -> _Schema:
        schema, comment = self.field(field), comments()[field.full_name]
        if "description" in schema:
            comment = f"{comment} {schema['description']}"
        return {**schema, "description": comment}

    def _one(self, field: FieldDescriptor) -> _Schema:
        if field.enum_type is not None:
            return self.reference(field.enum_type)
        kind = field.message_type
        if kind is None:
            if field.type in _INTEGERS_64:
                return {"type": ["integer", "string"], "format": "int64"}
            return dict(_PLAIN[field.type])
        if kind.full_name in _WELL_KNOWN:
            return dict(_WELL_KNOWN[kind.full_name])
        if kind.name in SHORT_FORMS:
            name, _ = SHORT_FORMS[kind.name]
            return {"anyOf": [self.reference(kind), self._one(kind.fields_by_name[name])]}
        return self.reference(kind)


def _enum(kind: EnumDescriptor) -> _Schema:
    values = "\n".join(f"* {value.name}: {comments()[f'{kind.full_name}.{value.name}']}" for value in kind.values)
    return {
        "type": "string",
        "description": f"{comments()[kind.full_name]}\n\n{values}",
        "enum": [value.name for value in kind.values],
    }


def _is_map(field: FieldDescriptor) -> bool:
    return field.message_type is not None and bool(field.message_type.GetOptions().map_entry)
