"""The option --output of `run`: a path in the container, and where it goes on this machine."""

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
