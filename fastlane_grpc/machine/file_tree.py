"""Deletion and measurement of directory trees that a container wrote.

Both work without recursion and in bounded memory; a deletion works in steps of bounded work.

Every name is resolved against the descriptor of an open directory and no symbolic link is followed. Only directories
are opened, so that no named pipe or device holds up the caller."""

import os
import secrets
import time
from collections.abc import Generator, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

# Open directories only, and follow no symbolic link.
_DIRECTORY = os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_OWNER_MAY_DO_ALL = 0o700
# Names of moved directories that are kept in memory. The next pass finds the others.
_NAMES = 1_000
# The depth to which a directory is measured. Each level takes a descriptor.
_LEVELS = 32


class Deletion:
    """The deletion of one directory and of everything in it.

    A subdirectory that is not empty hands its own subdirectories to the top directory before it is deleted. So the
    deletion works on two levels only, however deep the tree is, and has four descriptors open at most."""

    def __init__(self, path: Path) -> None:
        self.path = path
        # The first error of the latest pass; None: every entry was deleted.
        self.error: OSError | None = None
        self._work: Generator[None, None, None] | None = None

    def step(self, *, entries: int, seconds: float) -> bool:
        """Delete at most so many entries, for at most so many seconds. Return whether the directory is gone.

        Raises OSError if a pass over all entries deleted none. The next step starts a new pass."""
        if self._work is None:
            self._work = self._passes()
        until = time.monotonic() + seconds
        try:
            for _ in range(entries):
                next(self._work)
                if time.monotonic() >= until:
                    return False
        except StopIteration:
            self._work = None
            return True
        except OSError:
            self._work = None
            raise
        return False

    def close(self) -> None:
        """Close the descriptors. A later step starts again."""
        if self._work is not None:
            self._work.close()
        self._work = None

    def _passes(self) -> Generator[None, None, None]:
        try:
            with _opened(self.path) as top:
                while True:
                    deleted, self.error = False, None
                    for done in self._pass(top):
                        deleted = deleted or done
                        yield
                    if self._is_removed() or not deleted:
                        break
        except FileNotFoundError:
            return
        if not self._is_removed():
            raise self.error or OSError(f"{self.path} is filled as fast as it is emptied")

    def _is_removed(self) -> bool:
        try:
            self.path.rmdir()
        except FileNotFoundError:
            return True
        except OSError as error:
            self.error = self.error or error
            return False
        return True

    def _pass(self, top: int) -> Iterator[bool]:
        """Delete the entries of the top directory; yield after each entry whether it was deleted."""
        with os.scandir(top) as entries:
            for entry in entries:
                names = [entry.name]
                while names:
                    yield from self._delete(top, names.pop(), names)

    def _delete(self, top: int, name: str, names: list[str]) -> Iterator[bool]:
        """Delete an entry of the top directory. The subdirectories that it hands to the top directory are added to
        `names`."""
        gone = self._unlink(top, name)
        yield gone is True
        if gone is not None:
            return
        try:
            with _opened(name, top) as inner, os.scandir(inner) as entries:
                for entry in entries:
                    gone = self._unlink(inner, entry.name)
                    if gone is None and (moved := self._move(inner, entry.name, top)):
                        gone = True
                        if len(names) < _NAMES:
                            names.append(moved)
                    yield gone is True
            os.rmdir(name, dir_fd=top)
        except FileNotFoundError:
            return
        except OSError as error:
            self.error = self.error or error
        else:
            yield True

    def _unlink(self, directory: int, name: str) -> bool | None:
        """Return whether the entry was deleted; None: the entry is a directory that is not empty."""
        try:
            os.unlink(name, dir_fd=directory)
        except IsADirectoryError:
            pass
        except FileNotFoundError:
            return False
        except OSError as error:
            self.error = self.error or error
            return False
        else:
            return True
        try:
            os.rmdir(name, dir_fd=directory)
        except OSError:
            return None
        return True

    def _move(self, inner: int, name: str, top: int) -> str:
        """Move a directory to the top directory, under a new name. Return the name; empty: the move failed."""
        moved = f"{secrets.token_hex(8)}.deleted"
        try:
            try:
                os.rename(name, moved, src_dir_fd=inner, dst_dir_fd=top)
            except PermissionError:
                # A move writes into the moved directory, and its mode may forbid that even to its owner.
                with _opened(name, inner):
                    os.rename(name, moved, src_dir_fd=inner, dst_dir_fd=top)
        except FileNotFoundError:
            return ""
        except OSError as error:
            self.error = self.error or error
            return ""
        return moved


@contextmanager
def _opened(name: str | Path, parent: int | None = None) -> Iterator[int]:
    """Open a directory, and give its owner all permissions on it."""
    try:
        directory = os.open(name, os.O_RDONLY | _DIRECTORY, dir_fd=parent)
    except PermissionError:
        # The owner may still change the mode, through a path descriptor. By name, chmod could follow a link.
        only_path = os.open(name, os.O_PATH | _DIRECTORY, dir_fd=parent)
        try:
            Path(f"/proc/self/fd/{only_path}").chmod(_OWNER_MAY_DO_ALL)
        finally:
            os.close(only_path)
        directory = os.open(name, os.O_RDONLY | _DIRECTORY, dir_fd=parent)
    try:
        if os.fstat(directory).st_mode & _OWNER_MAY_DO_ALL != _OWNER_MAY_DO_ALL:
            with suppress(PermissionError):
                os.fchmod(directory, _OWNER_MAY_DO_ALL)
        yield directory
    finally:
        os.close(directory)


def disk_bytes(path: Path, *, entries: int = 100_000) -> int:
    """Return the bytes on the disk that a directory and at most so many of its entries take.

    Entries below a few dozen levels and entries that cannot be read count as 0. Raises OSError if the directory itself
    cannot be read."""
    total = path.lstat().st_blocks * 512
    with ExitStack() as stack:
        levels = [_Level(path, None, stack)]
        while levels and entries:
            entry = levels[-1].next()
            if entry is None:
                levels.pop().close()
                continue
            entries -= 1
            with suppress(OSError):
                total += entry.stat(follow_symlinks=False).st_blocks * 512
                if len(levels) < _LEVELS and entry.is_dir(follow_symlinks=False):
                    levels.append(_Level(entry.name, levels[-1].directory, stack))
    return total


class _Level:
    """A directory that is being read; `stack` closes it at the latest."""

    def __init__(self, name: str | Path, parent: int | None, stack: ExitStack) -> None:
        self.directory = os.open(name, os.O_RDONLY | _DIRECTORY, dir_fd=parent)
        self._open = ExitStack()
        stack.push(self._open)
        self._open.callback(os.close, self.directory)
        self._entries = self._open.enter_context(os.scandir(self.directory))

    def next(self) -> "os.DirEntry[str] | None":
        return next(self._entries, None)

    def close(self) -> None:
        self._open.close()
