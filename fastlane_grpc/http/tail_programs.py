"""The programs of fastlane-tail, at /cli/: for a step of a CI system, which has curl and no more."""

from pathlib import Path

from starlette.concurrency import run_in_threadpool
from starlette.responses import FileResponse, PlainTextResponse
from starlette.types import Receive, Scope, Send

from fastlane_grpc.http.problem import HttpError

_CHECKSUM = ".sha256"
_HEADERS = {"X-Content-Type-Options": "nosniff", "Cache-Control": "no-cache"}


class TailPrograms:
    """`/cli/SYSTEM-ARCHITECTURE`, as linux-amd64, and its checksum for `sha256sum --check` at `….sha256`.

    `.ci/tail` makes the directory: programs, and SHA256SUMS of them.
    """

    def __init__(self, directory: Path | None) -> None:
        self._directory = directory

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        name: str = scope["path_params"]["name"]
        system = name.removesuffix(_CHECKSUM)
        sums = await run_in_threadpool(_sums, self._directory)
        if (checksum := sums.get(f"fastlane-tail-{system}")) is None or self._directory is None:
            there = ", ".join(sorted(each.removeprefix("fastlane-tail-") for each in sums)) or "none"
            raise HttpError(
                404, "PATH_NOT_FOUND", f"there is no fastlane-tail for {system[:60]!r} here; there is: {there}"
            )
        if name.endswith(_CHECKSUM):
            response = PlainTextResponse(f"{checksum}  fastlane-tail\n", headers=_HEADERS)
            await response(scope, receive, send)
            return
        file = FileResponse(
            self._directory / f"fastlane-tail-{system}",
            headers=_HEADERS,
            media_type="application/octet-stream",
            filename="fastlane-tail.exe" if system.startswith("windows") else "fastlane-tail",
        )
        await file(scope, receive, send)


def _sums(directory: Path | None) -> dict[str, str]:
    """Return the checksums by the names of files; nothing else in the directory is served."""
    try:
        text = (directory / "SHA256SUMS").read_text("ascii") if directory else ""
    except (OSError, ValueError):
        return {}
    return {name: checksum for checksum, _, name in (line.partition("  ") for line in text.splitlines()) if name}
