"""A disk that promises more room than it has, as a thin volume does: what it has no room for, a sync finds out."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.small_disk import make_room, small_disk


class SparseDisk:
    """A file system of 256 MiB at `path`, on a disk with room for 24 MiB. Needs root."""

    def __init__(self, directory: Path, room: Path) -> None:
        self.path = directory / "mounted"
        self.path.mkdir()
        self._room = room
        image = room / "image"
        with image.open("wb") as file:
            file.truncate(256 << 20)
        # With a journal, the kernel would make the file system read-only when that has no room.
        _run("mkfs.ext4", "-q", "-O", "^has_journal", "-E", "lazy_itable_init=0", image)
        self._device = Path(_run("losetup", "--find", "--show", image))
        # The loop device takes a write that was cut short for a whole one. A write of a page is never cut short.
        Path(f"/sys/block/{self._device.name}/queue/max_sectors_kb").write_text("4")
        _run("mount", self._device, self.path)

    def make_room(self) -> None:
        """From now on the disk has the room that it promises."""
        make_room(self._room, "300m")

    def remove(self) -> None:
        _run("umount", "--lazy", self.path)
        _run("losetup", "--detach", self._device)


@contextmanager
def sparse_disk(directory: Path) -> Iterator[SparseDisk]:
    """A new disk, for as long as it lasts."""
    room = directory / "room"
    room.mkdir()
    with small_disk(room, "24m"):
        disk = SparseDisk(directory, room)
        try:
            yield disk
        finally:
            disk.remove()


def _run(*command: str | Path) -> str:
    ran = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    assert ran.returncode == 0, (command, ran.stdout)
    return ran.stdout.strip()
