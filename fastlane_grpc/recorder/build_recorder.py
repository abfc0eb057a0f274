"""Builds the recorder along with the package: hatchling's build backend (PEP 517), and a C compiler before it. It is
not in the wheel.

A wheel has the program for every architecture, by the C compiler that `ziglang` brings. An editable installation has it
for this machine alone, by the machine's own compiler where that can link statically: it takes a second, and nothing is
downloaded for it."""

import os
import platform
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from hatchling import build
from hatchling.build import build_sdist, get_requires_for_build_sdist

__all__ = [
    "build_editable",
    "build_sdist",
    "build_wheel",
    "get_requires_for_build_editable",
    "get_requires_for_build_sdist",
    "get_requires_for_build_wheel",
]

HERE = Path(__file__).parent
ARCHITECTURES = ("x86_64", "aarch64")
FLAGS = ("-std=c11", "-O3", "-Wall", "-Wextra", "-static", "-s")
ZIG = "ziglang>=0.15"

Settings = Mapping[str, object] | None


def get_requires_for_build_wheel(config_settings: Settings = None) -> list[str]:
    return [*build.get_requires_for_build_wheel(), ZIG]


def build_wheel(wheel_directory: str, config_settings: Settings = None, metadata_directory: str | None = None) -> str:
    # Side by side: the first time zig builds a C library for each, on one core.
    with ThreadPoolExecutor() as threads:
        for _ in threads.map(lambda architecture: _compile(_zig(architecture), architecture), ARCHITECTURES):
            pass
    return str(build.build_wheel(wheel_directory))


def get_requires_for_build_editable(config_settings: Settings = None) -> list[str]:
    needs_zig = _is_for_here() and not _links_statically(_compiler())
    return [*build.get_requires_for_build_editable(), *([ZIG] if needs_zig else [])]


def build_editable(
    wheel_directory: str, config_settings: Settings = None, metadata_directory: str | None = None
) -> str:
    if _is_for_here():
        machine = platform.machine()
        _compile(_compiler() if _links_statically(_compiler()) else _zig(machine), machine)
    return str(build.build_editable(wheel_directory))


def _is_for_here() -> bool:
    """Elsewhere fastlane is a client, and a server for engines of other machines: by attach."""
    return platform.system() == "Linux" and platform.machine() in ARCHITECTURES


def _compiler() -> Sequence[str]:
    return shlex.split(os.environ.get("CC", "cc"))


def _zig(architecture: str) -> Sequence[str]:
    return [sys.executable, "-m", "ziglang", "cc", "-target", f"{architecture}-linux-musl"]


def _links_statically(compiler: Sequence[str]) -> bool:
    with tempfile.TemporaryDirectory() as directory:
        source = Path(directory) / "main.c"
        source.write_text('#include <stdio.h>\nint main(void) { return puts("") < 0; }\n')
        try:
            return (
                subprocess.run(
                    [*compiler, "-static", "-o", source.with_suffix(""), source], check=False, capture_output=True
                ).returncode
                == 0
            )
        except OSError:
            return False


def _compile(compiler: Sequence[str], architecture: str) -> None:
    program = HERE / "bin" / f"recorder-{architecture}"
    program.parent.mkdir(exist_ok=True)
    # Servers that run from here never see half a program.
    new = program.with_suffix(".new")
    subprocess.run([*compiler, *FLAGS, "-o", new, HERE / "recorder.c"], check=True)
    new.chmod(0o755)
    new.replace(program)
