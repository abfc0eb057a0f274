"""The Java client, built by Maven once for each state of its sources, however many tests ask."""

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.tools import PATH, ROOT

CLIENT = ROOT / "clients" / "java"
# A program that lives for seconds: without the second compiler it takes half of the time.
_BRIEF = ["-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC"]
ENVIRONMENT = os.environ | {"PATH": PATH, "MAVEN_OPTS": " ".join(_BRIEF)}
_TARGET = CLIENT / "target"
_ARCHIVE = _TARGET / "classes.jsa"
# A program begins in half of the time with its classes from an archive. An archive of another Java is ignored: the JVM
# would say so on stdout, which is the job's.
_FLAGS = [*_BRIEF, "-Xlog:disable", "-Xlog:all=off"]
_CLASS_PATH = f"{_TARGET / 'tests.zip'}:{_TARGET / 'fastlane-client.jar'}"


def command(main_class: str) -> Sequence[str]:
    """Build the client, with its own tests, and return the command of a program in it."""
    with _locked():
        stamp, sources = _TARGET / "made-from", _sources()
        if not stamp.exists() or stamp.read_text() != sources:
            _build()
            stamp.write_text(sources)
    return ["java", *_FLAGS, f"-XX:SharedArchiveFile={_ARCHIVE}", "-cp", _CLASS_PATH, main_class]


def _build() -> None:
    shutil.rmtree(_TARGET, ignore_errors=True)
    # The output of a build that works says nothing.
    ran = _run("mvn", "--batch-mode", "--quiet", "package")
    assert ran.returncode == 0, ran.stdout
    # Archives of classes want no directories.
    shutil.make_archive(str(_TARGET / "tests"), "zip", _TARGET / "test-classes")
    words = ["get", "job=j", "address=127.0.0.1:1", "timeout_seconds=1", f"report={_TARGET / 'report.json'}"]
    call = json.dumps([*words, "stdout=/dev/null", "stderr=/dev/null"]) + "\n"
    archived = f"-XX:ArchiveClassesAtExit={_ARCHIVE}"
    _run("java", *_FLAGS, archived, "-cp", _CLASS_PATH, "io.fastlane.Conformance", stdin=call)


def _run(*words: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        words,
        cwd=CLIENT,
        env=ENVIRONMENT,
        input=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def _sources() -> str:
    """Return a hash of all that a build is made from. The place too: the class path is in the archive."""
    files = [CLIENT / "pom.xml", Path(__file__), *(CLIENT / "src").rglob("*.java"), *(ROOT / "protos").rglob("*.proto")]
    text = "".join(f"{path} {hashlib.sha256(path.read_bytes()).hexdigest()}\n" for path in sorted(files))
    return hashlib.sha256(text.encode()).hexdigest()


@contextmanager
def _locked() -> Iterator[None]:
    with (CLIENT / "pom.xml").open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        yield
