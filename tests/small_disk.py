"""A small file system of its own, which a test fills."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def small_disk(directory: Path, size: str = "32m") -> Iterator[Path]:
    """Mount a new file system of this size on a directory. Needs root."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", directory], check=True)
    try:
        yield directory
    finally:
        subprocess.run(["umount", "--lazy", directory], check=True)


def fill(disk: Path) -> None:
    """Take all the room that is left."""
    with suppress(OSError), (disk / "ballast").open("ab", buffering=0) as ballast:
        while True:
            ballast.write(bytes(4096))


def make_room(disk: Path, size: str = "96m") -> None:
    """Make the file system as large as this."""
    subprocess.run(["mount", "-o", f"remount,size={size}", disk], check=True)
