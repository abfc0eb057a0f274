"""The Rust client, built by cargo in a directory that all checkouts of this machine share: its libraries are compiled
once."""

import fcntl
import hashlib
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from tests.tools import PATH, ROOT

CLIENT = ROOT / "clients" / "rust"


def command(example: str, directory: Path) -> Sequence[Path]:
    """Build an example of the client and return the command: a program in the directory."""
    with target() as built:
        cargo("build", "--example", example, cwd=CLIENT)
        # Another checkout would put its own in this place.
        return [Path(shutil.copy(built / "debug" / "examples" / example, directory))]


def cargo(*words: str | Path, cwd: Path) -> str:
    """Run cargo and return all that it prints."""
    ran = subprocess.run(
        ["cargo", *words],
        cwd=cwd,
        env=environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert ran.returncode == 0, ran.stdout
    return ran.stdout


@contextmanager
def target() -> Iterator[Path]:
    """The directory that cargo builds in, for this caller alone."""
    directory = Path(environment()["CARGO_TARGET_DIR"])
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / "fastlane.lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        yield directory


@cache
def environment() -> Mapping[str, str]:
    """The environment of cargo. The directory is of one compiler and of one set of libraries: it never grows old."""
    checks = {"RUSTFLAGS": "-D warnings", "CARGO_PROFILE_DEV_DEBUG": "false"}
    # What checks the own code is its compiler, too: it warns of more, and the libraries are compiled once.
    # Debian's Rust comes without it.
    if shutil.which("clippy-driver", path=PATH):
        checks["RUSTC_WORKSPACE_WRAPPER"] = "clippy-driver"
    environ = os.environ | checks | {"PATH": PATH, "CARGO_TERM_COLOR": "never"}
    version = subprocess.run(["cargo", "-vV"], env=environ, capture_output=True, check=True).stdout
    made_from = hashlib.sha256(version + (CLIENT / "Cargo.toml").read_bytes()).hexdigest()
    cached = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return environ | {"CARGO_TARGET_DIR": str(cached / "fastlane" / f"rust-{made_from[:16]}")}
