"""The choice of a response's media type by the Accept header."""

from collections.abc import Sequence

from starlette.datastructures import Headers

EVENT_STREAM = "text/event-stream"
JSON_LINES = "application/x-ndjson"
JSON = "application/json"
RAW = "application/octet-stream"
HTML = "text/html"


def preferred(headers: Headers, offered: Sequence[str]) -> str:
    """Return the media type that the client prefers; without a preference, the first one."""
    accepted = _accepted(headers.get("accept", ""))
    return max(offered, key=lambda each: (_quality(each, accepted), -offered.index(each)))


def prefers_html(headers: Headers) -> bool:
    """Return whether a client, such as a browser, asks for HTML by name and for JSON less."""
    accepted = _accepted(headers.get("accept", ""))
    return accepted.get(HTML, 0.0) > accepted.get(JSON, 0.0)


def _accepted(accept: str) -> dict[str, float]:
    accepted: dict[str, float] = {}
    for each in accept.split(",")[:50]:
        name, *parameters = (part.strip().lower() for part in each.split(";"))
        quality = next((part[2:] for part in parameters if part.startswith("q=")), "1")
        try:
            accepted[name] = min(max(float(quality), 0.0), 1.0)
        except ValueError:
            accepted[name] = 1.0
    return accepted


def _quality(media_type: str, accepted: dict[str, float]) -> float:
    kind = media_type.partition("/")[0]
    for name in (media_type, f"{kind}/*", "*/*"):
        if name in accepted:
            return accepted[name]
    return 0.0
