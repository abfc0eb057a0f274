"""The Node client, built by npm once for each state of its sources, however many tests ask."""

import fcntl
import hashlib
import os
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.tools import PATH, ROOT

CLIENT = ROOT / "clients" / "node"
# A cache of packages that are there asks no registry.
ENVIRONMENT = os.environ | {
    "PATH": PATH,
    "npm_config_prefer_offline": "true",
    "npm_config_update_notifier": "false",
}
_STAMP = CLIENT / "node_modules" / ".made-from"


def command(program: str) -> Sequence[str | Path]:
    """Build the client and return the command of a program in it."""
    with _locked():
        sources = _sources()
        if not _STAMP.exists() or _STAMP.read_text() != sources:
            npm("install", cwd=CLIENT)
            npm("run", "build", cwd=CLIENT)
            _STAMP.write_text(sources)
    return ["node", CLIENT / "dist" / program]


def npm(*words: str | Path, cwd: Path) -> str:
    """Run npm and return all that it prints."""
    ran = subprocess.run(
        ["npm", *words],
        cwd=cwd,
        env=ENVIRONMENT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert ran.returncode == 0, ran.stdout
    assert "npm warn" not in ran.stdout, ran.stdout
    return ran.stdout


def _sources() -> str:
    """Return a hash of all that a build is made from."""
    made = {"node_modules", "dist", "gen"}
    own = [path for path in CLIENT.rglob("*") if not made & {*path.relative_to(CLIENT).parts} and path.is_file()]
    files = [*own, *(ROOT / "protos").rglob("*.proto")]
    text = "".join(f"{path} {hashlib.sha256(path.read_bytes()).hexdigest()}\n" for path in sorted(files))
    return hashlib.sha256(text.encode()).hexdigest()


@contextmanager
def _locked() -> Iterator[None]:
    with (CLIENT / "package.json").open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        yield
