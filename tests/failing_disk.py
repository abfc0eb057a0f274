"""A disk of its own, with a real file system that a test makes fail. Needs root."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class FailingDisk:
    """An ext4 file system on a loop device. `fail` makes it read-only at once, as the kernel does after an error of a
    disk: also for files that are open. It cannot be made writable again."""

    def __init__(self, directory: Path) -> None:
        self._image = directory / "disk"
        self.path = directory / "mounted"
        self.path.mkdir()
        with self._image.open("wb") as image:
            image.truncate(96 << 20)
        _run("mkfs.ext4", "-q", self._image)
        self._mount()

    def fail(self) -> None:
        """Write what waits to the disk, and report an error of the file system to the kernel, which makes it
        read-only."""
        # Nothing is written between the two.
        _run("fsfreeze", "--freeze", self.path)
        try:
            Path(f"/sys/fs/ext4/{self._device.name}/trigger_fs_error").write_text("1")
        finally:
            _run("fsfreeze", "--unfreeze", self.path)

    def repair(self) -> None:
        """Unmount the file system, copy it to another disk, check it, and mount it. No process may have files of it
        open. The copy is for other namespaces, which may keep the old one mounted for a while."""
        _run("umount", self.path)
        _run("losetup", "--detach", self._device)
        new = self._image.with_name(f"{self._image.name}-repaired")
        _run("cp", "--sparse=always", self._image, new)
        self._image = new
        _run("e2fsck", "-f", "-y", self._image, statuses=(0, 1))
        self._mount()

    def remove(self) -> None:
        if self.path.is_mount():
            _run("umount", "--lazy", self.path)
            _run("losetup", "--detach", self._device)

    def _mount(self) -> None:
        self._device = Path(_run("losetup", "--find", "--show", self._image))
        _run("mount", "-o", "errors=remount-ro", self._device, self.path)


@contextmanager
def failing_disk(directory: Path) -> Iterator[FailingDisk]:
    """A new disk, for as long as it lasts."""
    disk = FailingDisk(directory)
    try:
        yield disk
    finally:
        disk.remove()


def _run(*command: str | Path, statuses: tuple[int, ...] = (0,)) -> str:
    ran = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    assert ran.returncode in statuses, (command, ran.stdout)
    return ran.stdout.strip()
