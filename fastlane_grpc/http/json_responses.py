"""Response messages as JSON, by protobuf's mapping with names in snake case."""

import json
import re
from typing import Any

from google.protobuf import json_format
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import Scope

from fastlane_grpc.http.access import scheme_of
from fastlane_grpc.v1 import fastlane_pb2 as pb

_HOST = re.compile(r"[A-Za-z0-9_.-]+(:[0-9]{1,5})?|\[[0-9A-Fa-f:.]+\](:[0-9]{1,5})?")
# As protobuf writes them: 64 bits are a string.
_ZEROS = {
    FieldDescriptor.CPPTYPE_BOOL: False,
    FieldDescriptor.CPPTYPE_INT32: 0,
    FieldDescriptor.CPPTYPE_INT64: "0",
}
HEADERS = {"X-Content-Type-Options": "nosniff", "Cache-Control": "no-store"}


def json_of(message: Message) -> dict[str, Any]:
    """Return the message as JSON. Its own lists, numbers and booleans are there even if they are empty, 0 or false."""
    value: dict[str, Any] = json_format.MessageToDict(message, preserving_proto_field_name=True)
    for field in message.DESCRIPTOR.fields:
        if field.name in value:
            continue
        if field.is_repeated:
            value[field.name] = []
        elif field.cpp_type in _ZEROS and not field.has_presence:
            value[field.name] = _ZEROS[field.cpp_type]
    return value


def answer_of(message: Message, base_url: str) -> bytes:
    """Return the body of a response: the message, with the addresses of its job or execution in `links`."""
    value = json_of(message)
    if links := _links(message, base_url):
        value["links"] = links
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace") + b"\n"


def json_response(body: bytes, status: int = 200, **headers: str) -> Response:
    return Response(body, status, HEADERS | headers, "application/json")


def base_url_of(scope: Scope) -> str:
    """Return the address by which the client reaches this server: as in its Host header, else the server's own."""
    headers = Headers(scope=scope)
    host = headers.get("host", "")
    if not _HOST.fullmatch(host):
        name, port = scope["server"] or ("localhost", None)
        host = f"[{name}]" if ":" in name else name
        host += f":{port}" if port else ""
    return f"{scheme_of(scope['scheme'], headers)}://{host}"


def job_url(base_url: str, job_id: str) -> str:
    """Return the address of a job."""
    return f"{base_url}/jobs/{job_id}"


def _links(message: Message, base_url: str) -> dict[str, str]:
    job = getattr(message, "job", None)
    execution = getattr(message, "execution", None)
    links: dict[str, str] = {}
    if isinstance(job, pb.Job) and job.id:
        links["task"] = f"{base_url}/tasks/{job.task_id}"
        links["job"] = job_url(base_url, job.id)
        execution = job.execution
    if isinstance(execution, pb.Execution) and execution.id:
        links.setdefault("task", f"{base_url}/tasks/{execution.task_id}")
        links.setdefault("job", job_url(base_url, execution.job_id))
        links["execution"] = f"{base_url}/executions/{execution.id}"
        links["log"] = f"{base_url}/executions/{execution.id}/logs"
    return links
