"""The recorder: the program that is PID 1 of a container and writes its record; built from recorder.c beside this
file."""

from pathlib import Path

# As Docker calls them, and as the kernel does.
ARCHITECTURES = {"amd64": "x86_64", "arm64": "aarch64"}
# The signal that makes the recorder kill everything in the container, store what was printed, and end. A number, as C
# libraries count real-time signals differently.
HARD_STOP = 44


def binary(architecture: str) -> Path | None:
    """The program for an architecture, as Docker calls it; None if there is none, or it was not built."""
    name = ARCHITECTURES.get(architecture)
    path = Path(__file__).with_name("bin") / f"recorder-{name}"
    return path if name and path.exists() else None
