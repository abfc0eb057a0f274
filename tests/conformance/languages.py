"""The clients that the suite is run against, and how the driver of each is built."""

import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests import java, node, rust
from tests.tools import PATH, ROOT, tool

ENVIRONMENT: Mapping[str, str] = os.environ | {"PATH": f"{Path(sys.executable).parent}:{PATH}"}


@dataclass(frozen=True)
class Language:
    """A client: the programs of `.ci/tools` that its driver needs, and how it is built. `build` gets a directory of its
    own and returns the command of the driver. The driver connects within three heartbeats, also on a busy machine."""

    name: str
    build: Callable[[Path], Sequence[str | Path]]
    tools: Sequence[str] = ()
    heartbeat_seconds: float = 0.1

    def driver(self, directory: Path) -> Sequence[str | Path]:
        """Build the driver and return its command; the test is skipped if a program is missing, or fails in CI."""
        for name in self.tools:
            tool(name)
        return self.build(directory)


def run(*command: str | Path, cwd: Path) -> None:
    """Run a command of a build; its output is shown if it fails."""
    subprocess.run(command, cwd=cwd, env=ENVIRONMENT, stdin=subprocess.DEVNULL, check=True)


def _python(directory: Path) -> Sequence[str | Path]:
    return [sys.executable, ROOT / "clients" / "python" / "conformance.py"]


def _go(directory: Path) -> Sequence[str | Path]:
    run("go", "build", "-o", directory / "conformance", "./internal/conformance", cwd=ROOT / "clients" / "go")
    return [directory / "conformance"]


def _java(directory: Path) -> Sequence[str | Path]:
    return java.command("io.fastlane.Conformance")


def _node(directory: Path) -> Sequence[str | Path]:
    program, driver = node.command("conformance/driver.js")
    # About TLS to an IP address, as the README says.
    return [program, "--disable-warning=DEP0123", driver]


def _rust(directory: Path) -> Sequence[str | Path]:
    return rust.command("conformance", directory)


PYTHON = Language("Python", _python)
GO = Language("Go", _go, ["go"])
JAVA = Language("Java", _java, ["java", "mvn"], heartbeat_seconds=0.2)
NODE = Language("Node", _node, ["node", "npm"])
RUST = Language("Rust", _rust, ["cargo"])
LANGUAGES: Sequence[Language] = (PYTHON, GO, JAVA, NODE, RUST)
