"""Inputs of jobs, and their standard inputs: the contents are stored before the job, under their checksums."""

import asyncio
import errno
import hashlib
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from io import BytesIO
from typing import TypeVar

from fastlane_grpc.config import Settings
from fastlane_grpc.errors import DiskFull, InvalidRequest, StoreFailed, Violation
from fastlane_grpc.inputs import ArchiveInvalid, InputFiles, WrongChecksum, check_archive
from fastlane_grpc.machine.data_directory import least_free_bytes, least_free_inodes, missing_room
from fastlane_grpc.model import Input, JobSpec, Stdin

_Content = TypeVar("_Content", Input, Stdin)
_Result = TypeVar("_Result")

# Archives whose entries were checked, by their checksums.
_MOST_CHECKED = 1000
_RETRY_SECONDS = 10.0
_CHECKSUM = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Upload:
    """A part of a content."""

    sha256: str
    size_bytes: int
    offset: int
    data: bytes


class Inputs:
    """Stores contents for the calls. Lives on the loop; the disk is read and written by threads of its own."""

    def __init__(self, files: InputFiles, settings: Settings) -> None:
        self._files = files
        self._max_bytes = settings.max_input_bytes
        self._min_free_bytes = settings.min_free_bytes
        self._threads = ThreadPoolExecutor(2, "inputs")
        self._checked: dict[str, None] = {}

    def close(self) -> None:
        self._threads.shutdown(wait=False)

    async def upload(self, upload: Upload) -> int:
        """Store a part of a content, and return how many bytes of it are stored. InvalidRequest, DiskFull."""
        if violations := list(self._upload_violations(upload)):
            raise InvalidRequest(violations)
        return await self._on_thread(self._add, upload)

    async def stored(self, spec: JobSpec, *, validate_only: bool) -> tuple[JobSpec, list[Violation]]:
        """Store the contents that came with a spec. Return the spec with the sizes of all contents, and the violations:
        what has a content that is not stored, or cannot be taken. DiskFull.

        `validate_only`: nothing is stored.
        """
        return await self._on_thread(self._stored, spec, validate_only)

    async def _on_thread(self, work: Callable[..., _Result], *args: object) -> _Result:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work, *args)

    def _upload_violations(self, upload: Upload) -> Iterator[Violation]:
        if not _CHECKSUM.fullmatch(upload.sha256):
            yield Violation("sha256", "must be the SHA-256 of the whole content, as 64 of 0-9 a-f")
        if not 1 <= upload.size_bytes <= self._max_bytes:
            yield Violation(
                "size_bytes", f"is {upload.size_bytes}; it must be from 1 to {self._max_bytes} (max_input_bytes)"
            )
        elif upload.offset + len(upload.data) > upload.size_bytes:
            yield Violation("data", f"goes beyond size_bytes, {upload.size_bytes}")
        if upload.offset < 0:
            yield Violation("offset", f"is {upload.offset}; it must be 0 or more")

    # ---- on a thread

    def _add(self, upload: Upload) -> int:
        with self._writing():
            if upload.data:
                self._check_room()
            try:
                return self._files.add(upload.sha256, upload.size_bytes, upload.offset, upload.data)
            except WrongChecksum:
                raise InvalidRequest(
                    [Violation("sha256", "is not that of the content that was sent; nothing of it is kept")]
                ) from None

    def _stored(self, spec: JobSpec, validate_only: bool) -> tuple[JobSpec, list[Violation]]:
        inputs, violations = [], []
        with self._writing():
            for number, each in enumerate(spec.inputs):
                found, fault = self._look(each, validate_only=validate_only)
                inputs.append(found)
                if fault:
                    violations.append(Violation(f"spec.inputs[{number}].{fault[0]}", fault[1]))
            stdin = spec.stdin
            if stdin is not None:
                stdin, fault = self._look(stdin, validate_only=validate_only)
                if fault:
                    violations.append(Violation(f"spec.stdin.{fault[0]}", fault[1]))
        total = sum(each.size_bytes for each in inputs) + (stdin.size_bytes if stdin else 0)
        if total > self._max_bytes:
            field, what = ("spec.inputs", "take") if inputs else ("spec.stdin", "takes")
            together = " with stdin" if inputs and stdin else ""
            violations.append(
                Violation(field, f"{what} {total} bytes in sum{together}; at most {self._max_bytes} are allowed")
            )
        return replace(spec, inputs=tuple(inputs), stdin=stdin), violations

    def _look(self, each: _Content, *, validate_only: bool) -> tuple[_Content, tuple[str, str] | None]:
        """Return what has a content with its size, and the name of a field with its fault."""
        if each.content is not None:
            if hashlib.sha256(each.content).hexdigest() != each.sha256:
                return each, ("sha256", "is not that of the content")
            size: int | None = len(each.content)
        else:
            size = self._files.use(each.sha256)
            if size is None:
                return each, ("sha256", f"there is no content {each.sha256}: upload it first")
        assert size is not None, "found, or in the request"
        if each.size_bytes not in {0, size}:
            return each, ("size_bytes", f"is {each.size_bytes}, and the content has {size} bytes")
        found = replace(each, size_bytes=size)
        if isinstance(found, Input) and (fault := self._archive_fault(found)):
            return found, ("content", fault)
        if each.content is not None and not validate_only:
            self._check_room()
            self._files.keep(each.content)
        return replace(found, content=None), None

    def _archive_fault(self, each: Input) -> str:
        if not each.unpack or each.sha256 in self._checked:
            return ""
        try:
            with self._files.open(each.sha256) if each.content is None else BytesIO(each.content) as content:
                check_archive(content)
        except ArchiveInvalid as error:
            return f"cannot be unpacked: {error}"
        if len(self._checked) >= _MOST_CHECKED:
            self._checked.clear()
        self._checked[each.sha256] = None
        return ""

    def _check_room(self) -> None:
        directory = self._files.directory.parent
        least_bytes = least_free_bytes(directory) if self._min_free_bytes is None else self._min_free_bytes
        if least_bytes and (
            missing := missing_room(directory, least_bytes=least_bytes, least_inodes=least_free_inodes(directory))
        ):
            raise DiskFull(missing, retry_seconds=_RETRY_SECONDS)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno in {errno.ENOSPC, errno.EDQUOT}:
                raise DiskFull(f"{self._files.directory} has no room left", retry_seconds=_RETRY_SECONDS) from error
            raise StoreFailed(
                f"{self._files.directory} cannot be read or written: {error.strerror}", retry_seconds=_RETRY_SECONDS
            ) from error
