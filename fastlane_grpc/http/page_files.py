"""The files of the live page, from the package's folder `page`: the shell of every view, and its assets."""

from base64 import urlsafe_b64encode
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from importlib.resources import files
from importlib.resources.abc import Traversable

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from fastlane_grpc.http.problem import HttpError

_MEDIA_TYPES = {
    "css": "text/css; charset=utf-8",
    "html": "text/html; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}
# Whatever gets into the page, it starts no script, loads nothing from elsewhere, sends nothing to elsewhere, and no
# text becomes HTML.
_POLICY = "; ".join(
    [
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    ]
)
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    # Asked for each time, and answered by a few bytes if it is the same: after an upgrade all files fit together.
    "Cache-Control": "no-cache",
}


@dataclass(frozen=True, slots=True)
class PageFile:
    """A file of the page. `tag` changes with its content."""

    content: bytes
    media_type: str
    tag: str


class PageShell:
    """The document of every view: the address says which one it is."""

    def __init__(self, status: int = 200, headers: Mapping[str, str] | None = None) -> None:
        """`status`, `headers`: those of the error in whose place a browser gets the page."""
        self._status = status
        # The same address is JSON for other clients.
        self._headers = {"Vary": "Accept", **(headers or {})}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        file = page_files()["index.html"]
        if self._status == 200:
            response = _response(scope, file, self._headers)
        else:
            response = Response(file.content, self._status, _HEADERS | self._headers, file.media_type)
        await response(scope, receive, send)


class PageAssets:
    """The files that the document loads, at /assets/."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        file = page_files().get(scope["path_params"]["name"])
        if file is None:
            raise HttpError(404, "PATH_NOT_FOUND", f"there is no {scope['path'][:200]!r}")
        await _response(scope, file, {})(scope, receive, send)


@cache
def page_files() -> dict[str, PageFile]:
    """Return all files by their path within the folder. They are read once."""
    return dict(_read(files("fastlane_grpc.http") / "page", ""))


def _read(folder: Traversable, prefix: str) -> list[tuple[str, PageFile]]:
    found = []
    for entry in folder.iterdir():
        if entry.is_dir():
            found += _read(entry, f"{prefix}{entry.name}/")
        elif media_type := _MEDIA_TYPES.get(entry.name.rpartition(".")[2]):
            content = entry.read_bytes()
            tag = urlsafe_b64encode(sha256(content).digest()[:12]).decode()
            found.append((f"{prefix}{entry.name}", PageFile(content, media_type, f'"{tag}"')))
    return found


def _response(scope: Scope, file: PageFile, more: dict[str, str]) -> Response:
    headers = _HEADERS | {"ETag": file.tag} | more
    known = Headers(scope=scope).get("if-none-match", "")
    if file.tag in (each.strip().removeprefix("W/") for each in known.split(",")) or known.strip() == "*":
        return Response(status_code=304, headers=headers)
    return Response(file.content, 200, headers, file.media_type)
