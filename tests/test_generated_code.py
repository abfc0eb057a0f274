"""The contract can be used from languages that have no client here: what is generated for them loads without a
warning."""

import subprocess
from pathlib import Path

import grpc_tools
import pytest

from fastlane_grpc.v1 import fastlane_pb2 as pb
from tests.tools import ROOT, tool

METHODS = {service.name: len(service.methods) for service in pb.DESCRIPTOR.services_by_name.values()}


def run(*command: str | Path) -> str:
    """Run a command that must not say anything on stderr, and return what it prints."""
    ran = subprocess.run(command, capture_output=True, text=True)
    assert (ran.returncode, ran.stderr) == (0, "")
    return ran.stdout


def generate(into: Path, language: str, *options: str) -> None:
    well_known = Path(grpc_tools.__file__).parent / "_proto"
    includes = [f"-I{ROOT / 'protos'}", f"-I{well_known}"]
    run(tool("protoc"), *includes, f"--{language}_out={into}", *options, "fastlane/v1/fastlane.proto")


def grpc_plugin(into: Path, language: str) -> tuple[str, str]:
    return f"--grpc_out={into}", f"--plugin=protoc-gen-grpc={tool(f'grpc_{language}_plugin')}"


def test_ruby_code_loads_without_a_warning(tmp_path: Path) -> None:
    generate(tmp_path, "ruby", *grpc_plugin(tmp_path, "ruby"))
    counts = " ".join(f"#{{Fastlane::V1::{name}::Stub.instance_methods(false).size}}" for name in METHODS)
    program = f'require "fastlane/v1/fastlane_services_pb"; puts "{counts}"'
    assert [int(each) for each in run(tool("ruby"), "-w", f"-I{tmp_path}", "-e", program).split()] == [
        *METHODS.values()
    ]


def test_php_code_loads_without_a_warning(tmp_path: Path) -> None:
    generate(tmp_path, "php", *grpc_plugin(tmp_path, "php"))
    assert run(tool("php"), ROOT / "tests" / "load_generated.php", tmp_path) == "busybox 90\n"
    for client in sorted(tmp_path.rglob("*Client.php")):
        assert "No syntax errors" in run(tool("php"), "-l", client)


@pytest.mark.parametrize(("language", "suffix"), [("csharp", "cs"), ("java", "java"), ("kotlin", "kt"), ("objc", "h")])
def test_code_is_generated_without_a_warning(tmp_path: Path, language: str, suffix: str) -> None:
    generate(tmp_path, language)
    assert [*tmp_path.rglob(f"*.{suffix}")]
