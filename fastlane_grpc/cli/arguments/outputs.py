"""The options --output of `run`, with a path in the container and where it goes here, and --keep of `enqueue`."""

import posixpath
import re
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class WantedOutput:
    """A path in the container, and the path that it gets here."""

    path: str
    target: Path


def read_output(text: str) -> WantedOutput:
    """Return the output of PATH[:TARGET]. ValueError."""
    match = re.fullmatch(r"(/[^:]*)(?::(.+))?", text, re.DOTALL)
    if match is None:
        raise ValueError("must be PATH or PATH:TARGET, as /src/dist:dist; PATH is absolute, in the container")
    path = match[1].rstrip("/") or "/"
    return WantedOutput(path, Path(match[2] or posixpath.basename(path)))


def read_kept(text: str) -> WantedOutput:
    """Return an output that stays on the server. ValueError."""
    if ":" in text or not text.startswith("/"):
        raise ValueError("must be a path, as /src/dist; it is absolute, in the container")
    return read_output(text)
