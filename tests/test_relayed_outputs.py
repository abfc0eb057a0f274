"""The copy of what a job in a pod keeps: complete and checked, or not there; and nothing of it is trusted."""

import errno
import hashlib
import io
import json
import os
import tarfile
from pathlib import Path
from typing import Any

import pytest

from fastlane_grpc.backend import BackendRefuses
from fastlane_grpc.capture.container_files import OutputsTooLarge
from fastlane_grpc.capture.relayed_outputs import (
    SPARE_BYTES,
    OutputsDamaged,
    RelayedOutputs,
    discard,
    expect,
    expected,
    kept,
)
from fastlane_grpc.capture.relayed_record import Permission, PieceInvalid, StartRevoked, close, decide, new_pod
from tests.sparse_disk import sparse_disk

MOST = 1 << 20
ARCHIVE = os.urandom(300_000)
INDEX = {"paths": [{"begin": 0, "size": len(ARCHIVE)}, None]}


def packed(index: Any = INDEX, archive: bytes = ARCHIVE) -> bytes:
    """Return the file of a pod."""
    words = index if isinstance(index, bytes) else json.dumps(index).encode()
    content = archive + words + len(words).to_bytes(4, "little")
    return content + hashlib.sha256(content).digest() + b"fastlane"


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    new_pod(tmp_path)
    decide(tmp_path, Permission.GRANTED)
    expect(tmp_path, MOST)
    return tmp_path


def opened(directory: Path) -> RelayedOutputs:
    outputs = RelayedOutputs(directory)
    outputs.open()
    return outputs


def copy(directory: Path, content: bytes) -> RelayedOutputs:
    outputs = opened(directory)
    for begin in range(outputs.position, len(content), 100_000):
        outputs.store(begin, content[begin : begin + 100_000])
    outputs.finish()
    return outputs


def test_what_was_copied_is_there_by_path(directory: Path) -> None:
    copy(directory, packed())
    content = kept(directory, ["/a", "/b"], "/a")
    assert content is not None
    with content:
        assert content.read() == ARCHIVE
        assert content.read() == b""
    assert kept(directory, ["/a", "/b"], "/b") is None
    assert opened(directory).position == len(packed())
    discard(directory)
    with pytest.raises(BackendRefuses, match="did not come from its node"):
        kept(directory, ["/a", "/b"], "/a")


def test_a_copy_goes_on_after_a_break_where_it_was(directory: Path) -> None:
    content = packed()
    opened(directory).store(0, content[:1000])
    outputs = opened(directory)
    assert outputs.position == 1000
    copy(directory, content)
    assert kept(directory, ["/a", "/b"], "/a")


def test_a_copy_that_was_damaged_in_a_break_is_sent_again(directory: Path) -> None:
    content = packed()
    opened(directory).store(0, bytes(1000))
    with pytest.raises(OutputsDamaged):
        copy(directory, content)
    copy(directory, content)
    assert kept(directory, ["/a", "/b"], "/a")


@pytest.mark.parametrize("content", [packed()[:-1], packed()[:-1] + b"?", b"fastlane", bytes(500)])
def test_a_file_that_is_not_whole_is_not_kept_and_holds_up_nobody(directory: Path, content: bytes) -> None:
    copy(directory, content)
    with pytest.raises(BackendRefuses, match="did not come from its node"):
        kept(directory, ["/a", "/b"], "/a")


@pytest.mark.parametrize(
    "index",
    [
        b"[]",
        b"{",
        b"\xff",
        b"[" * 100_000,
        {"paths": []},
        {"paths": [1, 2]},
        {"paths": [{"begin": 0}, None]},
        {"paths": [{"begin": -1, "size": 5}, None]},
        {"paths": [{"begin": 5, "size": -1}, None]},
        {"paths": [{"begin": 1, "size": len(ARCHIVE)}, None]},
        {"paths": [{"begin": 0.5, "size": 1}, None]},
        {"paths": {"a": 1, "b": 2}},
    ],
)
def test_a_hostile_index_is_a_failure_of_the_outputs_alone(directory: Path, index: Any) -> None:
    copy(directory, packed(index))
    with pytest.raises(BackendRefuses, match="their index is damaged"):
        kept(directory, ["/a", "/b"], "/a")


def test_an_index_that_claims_any_length_is_refused(directory: Path) -> None:
    content = (1 << 31).to_bytes(4, "little")
    copy(directory, content + hashlib.sha256(content).digest() + b"fastlane")
    with pytest.raises(BackendRefuses, match="damaged"):
        kept(directory, ["/a"], "/a")


def test_the_pod_says_why_it_kept_nothing(directory: Path) -> None:
    def failure(index: Any) -> Exception:
        discard(directory)
        copy(directory, packed(index, b""))
        with pytest.raises((OutputsTooLarge, OSError, BackendRefuses)) as raised:
            kept(directory, ["/a"], "/a")
        return raised.value

    assert isinstance(failure({"fault": "too_large"}), OutputsTooLarge)
    no_room = failure({"fault": "no_room", "detail": "of disk"})
    assert isinstance(no_room, OSError)
    assert no_room.errno == errno.ENOSPC
    assert str(failure({"fault": "unavailable", "detail": "/a\n\x1b[31m: denied"})) == "/a  [31m: denied"


def test_nothing_is_stored_that_was_not_asked_for(directory: Path) -> None:
    outputs = opened(directory)
    with pytest.raises(PieceInvalid, match="5 bytes of outputs at 7, after 0"):
        outputs.store(7, b"piece")
    with pytest.raises(PieceInvalid):
        outputs.store(0, bytes(MOST + 2 * SPARE_BYTES + 1))
    close(directory)
    with pytest.raises(StartRevoked):
        outputs.store(0, b"piece")
    assert not (directory / "relay-outputs.part").exists()


def test_a_job_that_keeps_nothing_has_nothing_stored(tmp_path: Path) -> None:
    new_pod(tmp_path)
    decide(tmp_path, Permission.GRANTED)
    assert expected(tmp_path) is None
    with pytest.raises(PieceInvalid):
        opened(tmp_path).store(0, b"piece")


def test_a_disk_without_room_drops_the_outputs_and_not_the_log(directory: Path) -> None:
    """The limit of this process takes the place of a full disk."""
    import resource
    import signal

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (150_000, before[1]))
    try:
        copy(directory, packed())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    assert not (directory / "relay-outputs.part").exists()
    with pytest.raises(OSError, match="No space left"):
        kept(directory, ["/a", "/b"], "/a")


def test_an_archive_of_a_pod_is_read_as_that_of_an_engine(directory: Path) -> None:
    from fastlane_grpc.inputs import rewritten

    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for name in ("dist", "dist/a"):
            entry = tarfile.TarInfo(name)
            entry.type = tarfile.DIRTYPE if name == "dist" else tarfile.REGTYPE
            tar.addfile(entry)
    archive = file.getvalue()[:2048]
    copy(directory, packed({"paths": [{"begin": 0, "size": len(archive)}]}, archive))
    content = kept(directory, ["/src/dist"], "/src/dist")
    assert content
    with content:
        assert sum(begins for _, begins in rewritten(content, "/src/dist")) == 2


def test_what_a_disk_did_not_take_is_sent_again_from_its_begin(tmp_path: Path) -> None:
    content = packed(archive=ARCHIVE * 100)
    with sparse_disk(tmp_path) as disk:
        directory = disk.path / "execution"
        new_pod(directory)
        decide(directory, Permission.GRANTED)
        expect(directory, len(content))
        with pytest.raises(OSError, match="No space left"):
            copy(directory, content)
        assert opened(directory).position == 0
        disk.make_room()
        copy(directory, content)
        assert (directory / "relay-outputs.whole").read_bytes() == content
