"""The recorder alone, without an engine: the program that is PID 1 of a container, as it is shipped and under sanitizers."""

import platform
import shutil
import subprocess
import zlib
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from fastlane_grpc import recorder as shipped
from fastlane_grpc.record.format import pack_start
from tests.recorder_program import EXECUTION_ID, Recorder, needs_namespaces, not_here
from tests.tools import PATH

SOURCE = Path(shipped.__file__).with_name("recorder.c")
WARNINGS = ["-Wall", "-Wextra", "-Wconversion", "-Wshadow", "-Wpedantic", "-Werror"]
SANITIZERS = ["-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]


@pytest.fixture(scope="session", params=["shipped", "sanitized"])
def program(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    needs_namespaces()
    if request.param == "shipped":
        architecture = {kernels: dockers for dockers, kernels in shipped.ARCHITECTURES.items()}.get(platform.machine(), "")
        built = shipped.binary(architecture)
        if built is None:
            not_here("the recorder was not built here")
        assert built is not None
        return built
    compiler = shutil.which("cc", path=PATH)
    built = tmp_path_factory.mktemp("sanitized") / "recorder"
    if compiler is None:
        not_here("a C compiler is not here: make test, or .ci/tools cc, looks for one")
    made = subprocess.run([compiler or "", "-std=c11", "-O1", *WARNINGS, *SANITIZERS, "-o", built, SOURCE], capture_output=True, text=True)
    if "cannot find" in made.stderr:
        not_here(f"the C compiler has no sanitizers here: {made.stderr}")
    assert made.returncode == 0, made.stderr
    return built


@pytest.fixture
def recorder(program: Path) -> Iterator[Recorder]:
    with TemporaryDirectory() as directory:
        made = Recorder(program, Path(directory))
        made.directory.chmod(0o755)
        made.offer()
        yield made
        made.check_sanitizers()


# -- begin


def test_a_record_begins_with_start_before_the_command_runs(recorder: Recorder) -> None:
    """The command sees the record by a way that a container has not."""
    start = pack_start(EXECUTION_ID, "recorder")
    walked = recorder.run("stat", "-c", "%s", str(recorder.log))
    assert walked.start == start
    assert walked.stdout == b"%d\n" % (168 + 16 + len(start))


def test_stdout_and_stderr_are_told_apart_and_summed_up(recorder: Recorder) -> None:
    walked = recorder.run("sh", "-c", "echo out; echo err >&2; echo more; exit 3")
    assert (walked.stdout, walked.stderr) == (b"out\nmore\n", b"err\n")
    assert walked.trailer["exit_code"] == 3
    assert walked.trailer["totals"] == [
        {"source": 1, "bytes": 9, "missing_bytes": 0, "newlines": 2, "crc32": zlib.crc32(b"out\nmore\n")},
        {"source": 2, "bytes": 4, "missing_bytes": 0, "newlines": 1, "crc32": zlib.crc32(b"err\n")},
    ]
