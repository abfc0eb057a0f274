"""The data directory is taken by one server at a time, and nothing that others put there is written through."""

from pathlib import Path

import pytest

from fastlane_grpc.client import Client
from fastlane_grpc.doctor.disk import about_directory
from fastlane_grpc.errors import CannotServe
from fastlane_grpc.machine.data_directory import claimed
from tests.serving import serving


def test_a_lock_that_is_a_symbolic_link_is_refused_and_its_target_is_left_alone(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_text("precious")
    data_dir = tmp_path / "data"
    data_dir.mkdir()
    (data_dir / "lock").symlink_to(target)
    with pytest.raises(CannotServe, match="is a symbolic link"), claimed(data_dir):
        pass
    assert target.read_text() == "precious"
    (data_dir / "lock").unlink()
    with claimed(data_dir):
        assert (data_dir / "lock").read_text().strip().isdigit()


def test_a_directory_of_somebody_else_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "precious").touch()
    tmp_path.chmod(0o755)
    refusal = (
        f"{tmp_path} is not empty and is not a fastlane data directory; "
        f"choose an empty directory, as {tmp_path}/fastlane"
    )
    with pytest.raises(CannotServe) as refused, claimed(tmp_path):
        pass
    assert str(refused.value) == refusal
    assert tmp_path.stat().st_mode & 0o777 == 0o755
    assert [each.name for each in tmp_path.iterdir()] == ["precious"]
    assert next(each for each in about_directory(tmp_path, None) if each.check == "data directory").found == refusal


@pytest.mark.parametrize("names", [(), ("lost+found",), ("lock",), ("fastlane.db", "notes"), ("logs", "reserve-1")])
def test_a_directory_that_is_empty_or_of_fastlane_is_taken(tmp_path: Path, names: tuple[str, ...]) -> None:
    for name in names:
        (tmp_path / name).touch()
    with claimed(tmp_path):
        assert (tmp_path / "lock").exists()


def test_a_data_directory_is_for_its_user_alone(tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    data_dir.mkdir(mode=0o755)
    with serving(data_dir, http_listen="127.0.0.1:0", engine="unix:///nobody") as server:
        with Client(server.address) as client:
            client.enqueue("task", "busybox")
        assert data_dir.stat().st_mode & 0o777 == 0o700
        # Programs that are mounted into containers have to be readable there.
        files = [path for path in data_dir.iterdir() if path.name != "recorder"]
        assert {path.name for path in files} >= {"fastlane.db", "fastlane.db-wal", "lock", "serving"}
        assert {path.name for path in files if path.stat().st_mode & 0o077} == set()
