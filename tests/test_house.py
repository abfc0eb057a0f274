"""The repository is consistent: what is said twice agrees, what is generated fits what is installed, and each tool
says what it is for."""

import ast
import inspect
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from google.protobuf import descriptor_pb2
from packaging.requirements import Requirement
from packaging.version import Version

from fastlane_grpc.record import format as record_format
from fastlane_grpc.v1 import fastlane_pb2

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
V1 = ROOT / "fastlane_grpc" / "v1"


def tracked() -> list[Path]:
    try:
        names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    return [ROOT / name for name in names.split("\0") if name and (ROOT / name).is_file()]


def requirements() -> dict[str, Requirement]:
    lines = [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["dev"]]
    return {requirement.name: requirement for requirement in map(Requirement, lines)}


def floor(name: str) -> Version:
    (specifier,) = requirements()[name].specifier
    assert specifier.operator == ">="
    return Version(specifier.version)


def only_match(pattern: str, text: str) -> tuple[str, ...]:
    match = re.search(pattern, text)
    assert match, pattern
    return match.groups()


# ------------------------------------------------------------------------------------------------------------ the tools


def test_make_alone_says_what_can_be_made() -> None:
    rules = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    said = subprocess.run(["make"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    assert [line.split()[1] for line in said.splitlines()] == rules
    assert all(len(line.split()) > 4 for line in said.splitlines())


def test_every_tool_can_be_run_and_ends_where_it_fails() -> None:
    for path in sorted((ROOT / ".ci").iterdir()):
        if path.suffix or path.is_dir():
            continue
        shebang, _, strictness = path.read_text().splitlines()[:3]
        assert path.stat().st_mode & 0o111, f"{path.name} cannot be executed"
        assert shebang == "#!/usr/bin/env bash", path.name
        assert re.fullmatch(r"set -e?uo pipefail", strictness), path.name


# ------------------------------------------------------------------------------------------------------------- versions


def test_the_changelog_begins_with_the_version_of_the_project() -> None:
    (newest,) = only_match(r"(?m)^## (\S+)", (ROOT / "CHANGELOG.md").read_text())
    assert newest == PROJECT["version"]


def test_what_is_installed_is_at_least_what_the_generated_code_demands() -> None:
    (grpc,) = only_match(r"GRPC_GENERATED_VERSION = '(.+)'", (V1 / "fastlane_pb2_grpc.py").read_text())
    (protobuf,) = only_match(r"Protobuf Python Version: (\S+)", (V1 / "fastlane_pb2.py").read_text())
    assert floor("grpcio") == Version(grpc)
    assert floor("protobuf") == Version(protobuf)
    assert floor("grpcio-tools") == Version(grpc)


def test_the_versions_that_are_tested_are_pinned_and_allowed() -> None:
    lines = (ROOT / ".ci" / "constraints.txt").read_text().splitlines()
    pinned = {
        name: Version(version) for name, _, version in (line.partition("==") for line in lines if line[:1] != "#")
    }
    for name, requirement in requirements().items():
        assert name in pinned, f"{name} is not pinned"
        assert requirement.specifier.contains(pinned[name]), (
            f"{name} is pinned to {pinned[name]}, which is not {requirement.specifier}"
        )


# --------------------------------------------------------------------------------------------------------- the contract


def test_the_descriptors_served_with_comments_are_those_of_the_generated_code() -> None:
    served = descriptor_pb2.FileDescriptorSet.FromString((V1 / "fastlane.binpb").read_bytes()).file
    (ours,) = (file for file in served if file.name == fastlane_pb2.DESCRIPTOR.name)
    assert any("Stores a job" in location.leading_comments for location in ours.source_code_info.location)
    ours.ClearField("source_code_info")
    generated = descriptor_pb2.FileDescriptorProto()
    fastlane_pb2.DESCRIPTOR.CopyToProto(generated)
    # protoc alone writes down the JSON name of each field.
    for message in messages(ours.message_type):
        for field in message.field:
            field.ClearField("json_name")
    assert ours == generated


def test_the_package_works_beside_generated_code_of_the_caller(tmp_path: Path) -> None:
    """Both register the contract in one process, under one file name."""
    protoc = [sys.executable, "-m", "grpc_tools.protoc", f"-I{ROOT / 'protos'}", f"--python_out={tmp_path}"]
    subprocess.run([*protoc, "fastlane/v1/fastlane.proto"], check=True)
    program = (
        "from fastlane.v1 import fastlane_pb2 as theirs; from fastlane_grpc.v1 import fastlane_pb2 as ours; "
        "assert theirs.Job.DESCRIPTOR.file is ours.Job.DESCRIPTOR.file"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    subprocess.run([sys.executable, "-c", program], check=True, env=environment, cwd=tmp_path)


def messages(roots: "list[descriptor_pb2.DescriptorProto]") -> "list[descriptor_pb2.DescriptorProto]":
    return [each for root in roots for each in (root, *messages(list(root.nested_type)))]


# ------------------------------------------------------------------------------------------------------ what is nowhere


def test_the_environment_is_read_in_config_and_by_the_command_line_alone() -> None:
    # The last one runs before the package is installed.
    package = ROOT / "fastlane_grpc"
    readers = {
        package / "config" / "settings.py",
        package / "cli" / "__init__.py",
        package / "recorder" / "build_recorder.py",
    }
    for path in package.rglob("*.py"):
        names = {
            f"{node.value.id}.{node.attr}"
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
        }
        assert path in readers or not names & {"os.environ", "os.getenv"}, path


def test_the_layout_of_a_record_is_told_once() -> None:
    """To those who read the code and to those who read the documentation, word for word."""
    _, layout = inspect.cleandoc(record_format.__doc__ or "").split("\n\n", 1)
    assert (ROOT / "docs" / "log-streams.md").read_text().endswith(f"\n\n{layout}\n")


REGISTRY = re.compile(
    r"files\.pythonhosted|pypi\.org|registry\.npmjs|deb\.debian|proxy\.golang|repo\.maven|(static|index)\.crates"
    r"|registry-1\.docker|docker\.io/|ghcr\.io|quay\.io"
)
# The root of a process, below /proc, is on every machine.
OF_ONE_MACHINE = re.compile(r"(?<![\w.}])/(work|home|Users|root)/\w")


def test_no_file_names_a_package_registry_or_a_place_on_one_machine() -> None:
    for path in tracked():
        if path.suffix in {".binpb", ".png"}:
            continue
        text = path.read_text()
        for forbidden in (REGISTRY, OF_ONE_MACHINE):
            found = forbidden.search(text)
            assert found is None, f"{path} names {found and found[0]}"


# --------------------------------------------------------------------------------------------------------- the language

MOST_WORDS_IN_DOCSTRINGS = 25
MOST_WORDS_IN_DOCS = 30
MOST_COLUMNS_IN_DOCS = 100
# A docstring begins with a verb or a noun phrase, not with a clause.
CLAUSES = {"As", "Of", "It", "That", "Those", "What", "When", "Where", "Who", "Whoever", "Why"}
RIDDLES = re.compile(r"\b(who|whom)ever\b", re.IGNORECASE)


def clauses(text: str) -> list[str]:
    """The sentences of prose, further divided at colons and semicolons; without examples, lists of code and tables."""
    prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    blocks = re.split(r"\n\s*\n|\n(?=\s*(?:[*-]|\d+\.) )", prose)
    kept = [" ".join(block.split()) for block in blocks if not re.match(r"\s*(\||#|\x08|<)|    ", block)]
    return [each for block in kept for each in re.split(r"(?<=[.!?:;])\s+", re.sub(r"\]\([^)]*\)", "]", block))]


def documented(path: Path) -> list[str]:
    nodes = ast.walk(ast.parse(path.read_text()))
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    return [text for node in nodes if isinstance(node, kinds) and (text := ast.get_docstring(node))]


def test_docstrings_are_plain_sentences_that_begin_with_a_verb_or_a_noun() -> None:
    for path in sorted((ROOT / "fastlane_grpc").rglob("*.py")):
        if path.parent == V1:
            continue
        for text in documented(path):
            assert text.split()[0] not in CLAUSES, f"{path}: begin with a verb or a noun: {text}"
            assert not RIDDLES.search(text), f"{path}: name the noun: {text}"
            for clause in clauses(text):
                assert len(clause.split()) <= MOST_WORDS_IN_DOCSTRINGS, f"{path}: divide this sentence: {clause}"


def test_documentation_is_plain_sentences_in_lines_of_a_hundred_columns() -> None:
    pages = [path for path in tracked() if path.suffix == ".md" and path.name != "contract.md"]
    assert len(pages) > 10
    for path in pages:
        prose = re.sub(r"```.*?```", "", path.read_text(), flags=re.DOTALL)
        for line in prose.splitlines():
            is_prose = not line.startswith(("|", "    ")) and "](" not in line
            assert len(line) <= MOST_COLUMNS_IN_DOCS or not is_prose, f"{path}: wrap this line: {line}"
        for clause in clauses(prose):
            assert len(clause.split()) <= MOST_WORDS_IN_DOCS, f"{path}: divide this sentence: {clause}"
            assert not RIDDLES.search(clause), f"{path}: name the noun: {clause}"


def test_no_file_that_is_run_by_its_path_hides_a_module_of_python() -> None:
    # Python looks for modules beside a script first: bench/http.py would be found for `import http`.
    names = {path.stem for path in (ROOT / "bench").glob("*.py")}
    assert not names & sys.stdlib_module_names
