"""Damaged data directories, and backups that are damaged, cut off, or none: what `verify` finds, and what `restore`
refuses."""

import io
import os
import shutil
import tarfile
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path

import docker
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastlane_grpc.backup import BackupError, Manifest, back_up, restore, verify
from fastlane_grpc.client import Client
from tests.reading import Reader
from tests.serving import serving_on
from tests.test_backup import fastlane

pytestmark = pytest.mark.engine

NOW = datetime(2026, 11, 28, tzinfo=UTC)
LIMIT = 1 << 20


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, sdk: docker.DockerClient, image: str) -> Path:
    """A backup of a server with three logs: a short one, one of 300 kB by both sources, and one that its limit has
    punched holes into. Taken while the server runs."""
    directory = tmp_path_factory.mktemp("whole")
    with (
        serving_on(sdk, directory / "data", capture="recorder", max_log_bytes=str(LIMIT)) as server,
        Client(server.address) as client,
    ):
        for script in ("echo short", "seq 1 30000; seq 1 30000 >&2", "seq 1 700000"):
            assert (
                Reader(client, client.enqueue("logs", image, args=["sh", "-c", script]).execution.id).end().exit_status
                == 0
            )
        made = taken(directory / "data", directory / "backup")
        assert verify(directory / "data").faults == []
    assert made.records >= 3
    return directory / "backup"


@pytest.fixture
def copy(whole: Path, tmp_path: Path) -> Path:
    shutil.copytree(whole, tmp_path / "copy")
    return tmp_path / "copy"


def taken(data_dir: Path, target: Path) -> Manifest:
    return back_up(data_dir, str(target), output=io.BytesIO(), version="test", now=NOW)


def restored(source: Path, data_dir: Path) -> None:
    restore(str(source), data_dir, stream=io.BytesIO(), now=NOW)


def contents(directory: Path) -> Mapping[str, bytes]:
    """The records by their names."""
    return {str(path.relative_to(directory)): path.read_bytes() for path in sorted(directory.glob("logs/*/*/*"))}


def disk_bytes(directory: Path) -> int:
    return sum(path.stat().st_blocks * 512 for path in directory.glob("logs/*/*/*"))


def records(directory: Path) -> list[Path]:
    """The records of output, the largest one last."""
    return sorted(directory.glob("logs/*/*/log"), key=lambda path: path.stat().st_size)


def found(directory: Path) -> list[str]:
    return [f"{fault.subject}: {fault.detail}" for fault in verify(directory).faults]


# ------------------------------------------------------------------------------------------------------- whole backups


def test_a_backup_has_every_byte_whichever_way_it_goes(whole: Path, tmp_path: Path) -> None:
    data_dir, there = whole.parent / "data", contents(whole)
    taken(data_dir, tmp_path / "backup.tar")
    output = io.BytesIO()
    back_up(data_dir, "-", output=output, version="test", now=NOW)
    restored(whole, tmp_path / "of a directory")
    restored(tmp_path / "backup.tar", tmp_path / "of a tar")
    restore("-", tmp_path / "of a stream", stream=io.BytesIO(output.getvalue()), now=NOW)
    for way in ("of a directory", "of a tar", "of a stream"):
        assert contents(tmp_path / way) == there == contents(data_dir)
        assert (tmp_path / way).stat().st_mode & 0o777 == 0o700
        assert {path.stat().st_mode & 0o077 for path in (tmp_path / way).rglob("*") if path.is_file()} == {0}
        # What the limit has punched out takes no room again.
        assert disk_bytes(tmp_path / way) < disk_bytes(data_dir) + (256 << 10)
        assert found(tmp_path / way) == []


def test_a_target_that_exists_is_not_touched(whole: Path, tmp_path: Path) -> None:
    (tmp_path / "some.tar").write_bytes(b"precious")
    for target in (tmp_path / "some.tar", tmp_path):
        with pytest.raises(BackupError, match="exists already: name a new directory or tar"):
            taken(whole, target)
    assert (tmp_path / "some.tar").read_bytes() == b"precious"


def test_no_tar_is_left_of_a_backup_that_failed(copy: Path, tmp_path: Path) -> None:
    (copy / "fastlane.db").write_bytes(b"no database")
    with pytest.raises(BackupError, match="file is not a database"):
        taken(copy, tmp_path / "failed.tar")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy"]


# -------------------------------------------------------------------------------------------------------------- verify


def test_a_record_with_a_changed_byte_is_found(copy: Path) -> None:
    changed = records(copy)[1]
    with changed.open("r+b") as file:
        file.seek(100_000)
        byte = file.read(1)
        file.seek(100_000)
        file.write(bytes([byte[0] ^ 1]))
    [fault] = found(copy)
    assert f"{changed} is damaged: " in fault
    assert fault.startswith(f"execution {changed.parent.name}: ")


def test_a_record_that_was_cut_off_is_found(copy: Path) -> None:
    cut = records(copy)[1]
    os.truncate(cut, cut.stat().st_size // 2)
    assert any(f"{cut} ends after " in fault for fault in found(copy))


def test_a_record_that_is_missing_is_found(copy: Path) -> None:
    missing = records(copy)[0]
    missing.unlink()
    assert found(copy) == [f"execution {missing.parent.name}: {missing} is missing"]


def test_the_record_of_another_execution_is_found(copy: Path) -> None:
    first, second, *_ = records(copy)
    shutil.copyfile(first, second)
    assert found(copy) == [f"execution {second.parent.name}: {second} is the record of another execution"]


def test_a_record_that_no_execution_has_is_found(copy: Path) -> None:
    [known, *_] = records(copy)
    unknown = known.parent.parent / "00000000-0000-7000-8000-000000000000"
    shutil.copytree(known.parent, unknown)
    assert found(copy) == [f"{unknown.relative_to(copy)}: the database knows no execution with this log"]


def test_a_damaged_database_is_found(copy: Path) -> None:
    with (copy / "fastlane.db").open("r+b") as file:
        file.seek(5 * 4096)
        file.write(b"\xff" * 4096 * 3)
    assert any(fault.startswith(str(copy / "fastlane.db")) for fault in found(copy))


def test_the_command_says_what_is_wrong_and_exits_with_1(copy: Path, whole: Path, tmp_path: Path) -> None:
    assert fastlane("verify", str(whole)).returncode == 0
    [missing, *_] = records(copy)
    missing.unlink()
    told = fastlane("verify", str(copy))
    assert (told.returncode, told.stdout.decode().strip().endswith("is missing")) == (1, True)
    assert b"1 fault; read the database" in told.stderr
    nothing = fastlane("verify", str(tmp_path / "nowhere"))
    assert (nothing.returncode, b"there is no" in nothing.stderr) == (1, True)


# ------------------------------------------------------------------------------------------------------------- restore


@pytest.fixture(scope="module")
def tar(whole: Path) -> Path:
    taken(whole, whole.parent / "whole.tar")
    return whole.parent / "whole.tar"


@given(share=st.floats(0, 0.98))
@settings(max_examples=12)
def test_a_tar_that_was_cut_off_leaves_nothing(
    tmp_path_factory: pytest.TempPathFactory, tar: Path, share: float
) -> None:
    directory, contents = tmp_path_factory.mktemp("cut") / "data", tar.read_bytes()
    with pytest.raises(BackupError):
        restore("-", directory, stream=io.BytesIO(contents[: int(len(contents) * share)]), now=NOW)
    assert list(directory.iterdir()) == []


def evil(tmp_path: Path) -> Iterator[tarfile.TarInfo]:
    for name in ("../evil", str(tmp_path / "evil"), "logs/../../evil", "serving", "logs/2026-11-28/evil/log"):
        yield tarfile.TarInfo(name)
    link = tarfile.TarInfo("tokens.json")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    yield link
    device = tarfile.TarInfo("fastlane.db")
    device.type = tarfile.CHRTYPE
    yield device


def test_a_tar_of_others_writes_nothing_anywhere(tmp_path: Path) -> None:
    for number, member in enumerate(evil(tmp_path)):
        with tarfile.open(tmp_path / f"{number}.tar", "w") as made:
            made.addfile(member)
        with pytest.raises(BackupError, match="this is not a backup"):
            restored(tmp_path / f"{number}.tar", tmp_path / "data")
        assert list((tmp_path / "data").iterdir()) == []
    assert not list(tmp_path.rglob("*evil*"))


def test_a_file_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "twice.tar", "w") as made:
        made.addfile(tarfile.TarInfo("tokens.json"))
        made.addfile(tarfile.TarInfo("tokens.json"))
    with pytest.raises(BackupError, match=r"tokens\.json is there twice"):
        restored(tmp_path / "twice.tar", tmp_path / "data")


def test_a_backup_with_a_record_less_is_refused(copy: Path, tmp_path: Path) -> None:
    records(copy)[0].unlink()
    with pytest.raises(BackupError, match="files are missing or were added"):
        restored(copy, tmp_path / "data")
    assert list((tmp_path / "data").iterdir()) == []


def test_a_backup_that_was_not_finished_is_refused(copy: Path, tmp_path: Path) -> None:
    (copy / "backup.json").unlink()
    with pytest.raises(BackupError, match="was not finished, or is cut off"):
        restored(copy, tmp_path / "data")


def test_a_directory_that_is_not_empty_is_refused(whole: Path, tmp_path: Path) -> None:
    (tmp_path / "precious").touch()
    with pytest.raises(BackupError, match="is not empty, it has precious"):
        restored(whole, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["precious"]


def test_nobody_to_ask_needs_yes(whole: Path, tmp_path: Path) -> None:
    told = fastlane("restore", str(whole), "--data-dir", str(tmp_path / "data"), input=b"")
    assert (told.returncode, b"Confirm it with --yes" in told.stderr) == (2, True)
    assert not (tmp_path / "data").exists()
