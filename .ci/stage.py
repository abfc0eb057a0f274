"""Runs a command with an image on the engine and a directory for its data, and takes both down after.

    .ci/stage demo COMMAND…      the command finds them as STAGE_IMAGE and STAGE_DIRECTORY in its environment

Both bear the name of this process, so several runs stand side by side, and each first takes down what dead ones left.
The engine's other images, containers and tags stay as they were.
"""

import hashlib
import io
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import docker
from docker.errors import APIError, ImageNotFound
from requests.exceptions import RequestException

REPOSITORY = "fastlane-stage"
DIRECTORIES = Path(tempfile.gettempdir())

# An image that has what jobs need, and how long a registry may keep silent before it is taken for out of reach.
PULLED = "busybox:stable"
REGISTRY_SECONDS = 20

# An engine may hang for as long as somebody reads a container's output too slowly.
ENGINE_SECONDS = 30

# What was told to end and has not is killed then.
STOP_SECONDS = 15

# Signals that end this process in order, as Ctrl-C does.
ENDS = (signal.SIGTERM, signal.SIGHUP)


def main(purpose: str, *command: str) -> int:
    # A shell starts what is in its background with these ignored, and so would be all that tests start.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGQUIT, signal.SIG_DFL)
    for number in ENDS:
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    engine = docker.from_env(timeout=ENGINE_SECONDS).api
    for dead in leftovers(engine):
        say(f"clearing away what an interrupted run left ({dead})")
        take_down(engine, dead)
    name = f"{purpose}-{place()}-{os.getpid()}-{birth(os.getpid())}"
    try:
        directory(name).mkdir(mode=0o700)
        make_image(engine, name)
        return run(command, STAGE_IMAGE=image(name), STAGE_DIRECTORY=str(directory(name)))
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    finally:
        with undisturbed():
            take_down(engine, name)


@contextmanager
def undisturbed() -> Iterator[None]:
    """Signals wait: an engine goes on with what it was asked for, and would finish it behind the back of a clean-up."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT, *ENDS])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def run(command: Sequence[str], **more: str) -> int:
    """The command's exit status. It ends when we do, however that comes about; Ctrl-C it gets by itself, and answers as
    it likes."""
    with subprocess.Popen(["setpriv", "--pdeathsig", "TERM", *command], env=os.environ | more) as child:
        while True:
            try:
                code = child.wait()
                return code if code >= 0 else 128 - code
            except KeyboardInterrupt:
                pass
            except SystemExit:
                child.terminate()
                with suppress(subprocess.TimeoutExpired):
                    child.wait(STOP_SECONDS)
                child.kill()
                raise


def image(name: str) -> str:
    return f"{REPOSITORY}:{name}"


def directory(name: str) -> Path:
    return DIRECTORIES / f"{REPOSITORY}-{name}"


def say(words: str) -> None:
    print(f"fastlane: {words}", file=sys.stderr)


# ---------------------------------------------------------------------------------------------------------- whose it is


def place() -> str:
    """Where a process id means something: this machine, this PID namespace. Others may use the same engine."""
    return hashlib.sha256(f"{socket.gethostname()} {Path('/proc/self/ns/pid').readlink()}".encode()).hexdigest()[:8]


def birth(process: int | str) -> str:
    """When the process began, in ticks since boot, since ids are used again; empty if it is no more."""
    with suppress(OSError):
        state, *rest = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        return "" if state in "ZX" else rest[18]
    return ""


def leftovers(engine: docker.APIClient) -> Iterator[str]:
    """The names of stages whose process is gone."""
    tags = (tag for found in engine.images(REPOSITORY) for tag in found["RepoTags"] or ())
    names = {tag.removeprefix(f"{REPOSITORY}:") for tag in tags}
    names |= {
        path.name.removeprefix(f"{REPOSITORY}-")
        for path in DIRECTORIES.glob(f"{REPOSITORY}-*")
        if path.stat().st_uid == os.getuid()
    }
    for name in sorted(names):
        match = re.fullmatch(r"[a-z]+-([0-9a-f]+)-([0-9]+)-([0-9]+)", name)
        if match and match[1] == place() and birth(match[2]) != match[3]:
            yield name


def take_down(engine: docker.APIClient, name: str) -> None:
    end_processes(name)
    remove_directory(directory(name))
    try:
        for container in engine.containers(all=True, filters={"ancestor": image(name)}):
            if container["Image"] == image(name):
                with gone_already():
                    engine.remove_container(container["Id"], v=True, force=True)
        with gone_already():
            engine.remove_image(image(name))
    except (APIError, RequestException) as error:
        # The command's exit status says how it went, not this.
        say(f"the engine keeps {image(name)} for now ({error}); the next run tries again")


def end_processes(name: str) -> None:
    """Whatever the command started and did not outlive: servers, and engines of tests."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        for process in processes(name):
            with suppress(ProcessLookupError):
                os.kill(process, number)
        until = time.monotonic() + STOP_SECONDS
        while [*processes(name)] and time.monotonic() < until:
            time.sleep(0.05)


def remove_directory(path: Path) -> None:
    # An engine of a test that was killed leaves mounts.
    for line in reversed(Path("/proc/self/mounts").read_text().splitlines()):
        if (place := line.split()[1]).startswith(f"{path}/"):
            subprocess.run(["umount", "--lazy", place], check=False)
    shutil.rmtree(path, ignore_errors=True)


def processes(name: str) -> Iterator[int]:
    """Those that have the image's name in their environment."""
    mark = f"STAGE_IMAGE={image(name)}\0".encode()
    for environment in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):
            if mark in environment.read_bytes():
                yield int(environment.parent.name)


@contextmanager
def gone_already() -> Iterator[None]:
    """Not there, or another run is taking it down at this moment: as good as taken down."""
    try:
        yield
    except APIError as error:
        if error.status_code not in (404, 409):
            raise


# ------------------------------------------------------------------------------------------------------------ the image


def make_image(engine: docker.APIClient, name: str) -> None:
    """One that is there, or comes from a registry, or is made from Debian's busybox; without a command of its own,
    whichever it is."""
    was_there = is_there(engine, PULLED)
    if not was_there and not pull(engine):
        import_busybox(engine, name)
        return
    with undisturbed():
        container = engine.create_container(PULLED, "true")
        try:
            import_image(engine, name, b"".join(engine.export(container)))
        finally:
            engine.remove_container(container)
        if not was_there:
            with gone_already():
                engine.remove_image(PULLED)


def is_there(engine: docker.APIClient, tag: str) -> bool:
    try:
        engine.inspect_image(tag)
    except ImageNotFound:
        return False
    return True


def pull(engine: docker.APIClient) -> bool:
    repository, _, tag = PULLED.partition(":")
    try:
        for _ in docker.from_env(timeout=REGISTRY_SECONDS).api.pull(repository, tag, stream=True, decode=True):
            pass
    except (APIError, RequestException):
        return False
    return is_there(engine, PULLED)


def import_busybox(engine: docker.APIClient, name: str) -> None:
    subprocess.run([Path(__file__).with_name("tools"), "busybox"], check=True)
    busybox = Path(__file__).parents[1] / ".tools/bin/busybox"
    applets = subprocess.run([busybox, "--list"], check=True, capture_output=True, text=True).stdout.split()
    files = io.BytesIO()
    with tarfile.open(fileobj=files, mode="w") as tar:
        for path, mode in {"bin": 0o755, "etc": 0o755, "root": 0o700, "tmp": 0o1777}.items():
            tar.addfile(entry(path, mode, tarfile.DIRTYPE))
        content = busybox.read_bytes()
        tar.addfile(entry("bin/busybox", 0o755, size=len(content)), io.BytesIO(content))
        for applet in set(applets) - {"busybox"}:
            tar.addfile(entry(f"bin/{applet}", 0o777, tarfile.SYMTYPE, linkname="busybox"))
        for path, text in {"etc/passwd": USERS, "etc/group": GROUPS}.items():
            tar.addfile(entry(path, 0o644, size=len(text)), io.BytesIO(text.encode()))
    import_image(engine, name, files.getvalue())


def import_image(engine: docker.APIClient, name: str, files: bytes) -> None:
    with undisturbed():
        engine.import_image_from_data(files, repository=REPOSITORY, tag=name)


USERS = "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n"
GROUPS = "root:x:0:\nnogroup:x:65534:\n"


def entry(path: str, mode: int, kind: bytes = tarfile.REGTYPE, *, size: int = 0, linkname: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(path)
    info.mode, info.type, info.size, info.linkname = mode, kind, size, linkname
    return info


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
