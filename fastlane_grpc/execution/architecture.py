"""Detection of commands that could not be executed because their image is for another architecture."""

import errno
import os
import re
from contextlib import suppress
from pathlib import Path

from fastlane_grpc.backend import Backend, BackendDown, BackendRefuses, Container
from fastlane_grpc.execution.final_state import FinalState, failed
from fastlane_grpc.model import Reason, Source
from fastlane_grpc.record import Chunk, Position, RecordReader, Trailer

# Exit codes of runc, and its text in the container's output, when the kernel does not execute the command.
_RUNTIME_CODES = frozenset({1, 255})
_RUNTIME_ERROR = re.compile(
    rb'(?:standard_init_linux\.go:\d+: )?(exec (?:user process caused|[^\n]{1,4096}): "?exec format error"?)\n'
)

# Other names of the same architecture; and pairs of an image's and a host's architecture that work together.
_SAME = {"x86_64": "amd64", "x86-64": "amd64", "aarch64": "arm64", "i386": "386", "i686": "386"}
_COMPATIBLE = {("386", "amd64"), ("arm", "arm64")}


def format_error(trailer: Trailer | None, container: Container | None, exit_code: int | None, record: Path) -> str:
    """Return the error text for a command in a format that the kernel does not know; empty if there was no such error.

    The recorder notes the error in its trailer. Without a recorder, the runtime prints the error into the output.
    """
    if trailer is not None:
        program = container.program if container else "the command"
        return f"{program}: {os.strerror(errno.ENOEXEC)}" if trailer.facts.get("exec_error") == errno.ENOEXEC else ""
    return _runtime_error(record) if exit_code in _RUNTIME_CODES else ""


def architectures(backend: Backend, image_digest: str) -> tuple[str, str]:
    """Return the architectures of an image and of the host, as Docker names them; empty if unknown."""
    with suppress(BackendDown, BackendRefuses):
        return backend.architecture(image_digest), backend.info().architecture
    return "", ""


def foreign_image(final_state: FinalState, error: str, architectures: tuple[str, str]) -> FinalState:
    """Return the final state with reason IMAGE_UNUSABLE if the image is for another architecture, else unchanged."""
    image, host = (_SAME.get(each, each) for each in architectures)
    if not image or not host or image == host or (image, host) in _COMPATIBLE:
        return final_state
    return failed(
        Reason.IMAGE_UNUSABLE,
        f"the image is for {image} and the host is {host}, whose kernel did not execute the command: {error}; "
        f"build or pull the image for {host}, or install an emulator on the host (binfmt_misc)",
    )


def _runtime_error(record: Path) -> str:
    """The one line on stderr that is all the output of a container whose runtime could not execute the command."""
    try:
        reader = RecordReader(record)
    except FileNotFoundError:
        return ""
    try:
        entries = reader.read(Position.BEGIN).entries
    finally:
        reader.close()
    chunks = [entry for entry in entries if isinstance(entry, Chunk)]
    if any(chunk.source is not Source.STDERR for chunk in chunks):
        return ""
    match = _RUNTIME_ERROR.fullmatch(b"".join(chunk.data for chunk in chunks))
    return match[1].decode("utf-8", "replace") if match else ""
