"""The data directory is taken by one server at a time, and nothing that others put there is written through."""

from pathlib import Path

import pytest

from fastlane_grpc.errors import CannotServe
from fastlane_grpc.machine.data_directory import claimed


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
