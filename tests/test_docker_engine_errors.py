"""What engines say when they refuse. The texts are those of real engines."""

import pytest

from fastlane_grpc.backend import RefusalKind
from fastlane_grpc.docker.engine_errors import (
    about_host,
    command_reason,
    container_gone,
    explained,
    refusal_of,
)
from fastlane_grpc.model import Reason

OF_20 = "failed to create shim task: OCI runtime create failed: runc create failed: unable to start container process: "
OF_28 = f"failed to create task for container: {OF_20}"
GUESS = (
    ": unknown: Are you trying to mount a directory onto a file (or vice-versa)? "
    "Check if the specified host path exists and is the expected type"
)


@pytest.mark.parametrize(
    ("message", "refusal"),
    [
        ("mkdir /var/lib/docker/overlay2/x: no space left on device", RefusalKind.PASSING),
        (f"{OF_20}error during container init: mkdir /x: disk quota exceeded: unknown", RefusalKind.PASSING),
        (
            "error creating overlay mount to /var/lib/docker/overlay2/x/merged: device or resource busy",
            RefusalKind.PASSING,
        ),
        ("fork/exec /usr/bin/containerd-shim-runc-v2: resource temporarily unavailable: unknown", RefusalKind.PASSING),
        (
            (
                f"{OF_20}unable to apply cgroup configuration: "
                "mkdir /sys/fs/cgroup/pids/docker/x: cannot allocate memory: unknown"
            ),
            RefusalKind.PASSING,
        ),
        (
            (
                "failed to create endpoint x on network bridge: "
                "adding interface veth1 to bridge docker0 failed: exchange full"
            ),
            RefusalKind.PASSING,
        ),
        (
            (
                "failed to create endpoint x on network bridge: "
                "no available IPv4 addresses on this network's address pools: bridge"
            ),
            RefusalKind.PASSING,
        ),
        ("failed to update store for object type *libnetwork.endpointCnt: Key not found in store", RefusalKind.PASSING),
        ("context deadline exceeded", RefusalKind.CUT_OFF),
        ("transport is closing: unavailable", RefusalKind.CUT_OFF),
        (
            (
                'connection error: desc = "transport: Error while dialing '
                'dial unix /run/containerd.sock: connect: refused"'
            ),
            RefusalKind.CUT_OFF,
        ),
        ("failed to create shim task: ttrpc: closed: unknown", RefusalKind.CUT_OFF),
        (
            (
                "failed to start shim: start failed: io.containerd.runc.v2: "
                "create new shim socket: listen unix: bad: unknown"
            ),
            RefusalKind.CUT_OFF,
        ),
        ("unable to find user nosuch: no matching entries in passwd file", RefusalKind.FINAL),
        ("network nosuch not found", RefusalKind.FINAL),
        ("cannot join network of a non running container: 0123", RefusalKind.FINAL),
        ("Minimum memory limit allowed is 6MB", RefusalKind.FINAL),
        (f"{OF_20}error during container init: mkdir /proc/self/fd/3: not a directory{GUESS}", RefusalKind.FINAL),
        (f'{OF_20}exec: "/x": stat /x: no such file or directory: unknown', RefusalKind.FINAL),
        # A command may be called anything.
        (f'{OF_20}exec: "no space left on device": executable file not found in $PATH: unknown', RefusalKind.FINAL),
    ],
)
def test_a_refusal_passes_or_is_final(message: str, refusal: RefusalKind) -> None:
    assert refusal_of(message) is refusal


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ('exec: "nosuch": executable file not found in $PATH: unknown', Reason.COMMAND_NOT_FOUND),
        ('exec: "/nosuch": stat /nosuch: no such file or directory: unknown', Reason.COMMAND_NOT_FOUND),
        ('exec: "/bin/sh/x": stat /bin/sh/x: not a directory: unknown', Reason.COMMAND_NOT_FOUND),
        ('exec: "": executable file not found in $PATH: unknown', Reason.COMMAND_NOT_FOUND),
        ('exec: "/noexec": permission denied: unknown', Reason.COMMAND_NOT_EXECUTABLE),
        ('exec: "/dir": is a directory: unknown', Reason.COMMAND_NOT_EXECUTABLE),
        (f"error during container init: mkdir /proc/self/fd/3: not a directory{GUESS}", None),
        (
            (
                'error during container init: error mounting "/data/recorder" to rootfs at '
                f'"/.fastlane/recorder": not a directory{GUESS}'
            ),
            None,
        ),
        ('chdir to cwd ("/secret") set in config.json failed: permission denied: unknown', None),
    ],
)
def test_what_is_said_of_the_command_is_told_from_what_is_not(message: str, reason: Reason | None) -> None:
    assert command_reason(f"{OF_20}{message}") is command_reason(f"{OF_28}{message}") is reason
    # An engine with runc 1.0, which quotes once more.
    older = "OCI runtime create failed: container_linux.go:380: starting container process caused: "
    assert command_reason(older + message.replace('"', '\\"')) is reason


@pytest.mark.parametrize(
    ("message", "advice", "words"),
    [
        (
            f"{OF_28}error during container init: mkdir /proc/self/fd/3: not a directory{GUESS}",
            "the working directory is a file, lies below a file, or may not be entered by this user: name a directory",
            "mkdir /proc/self/fd/3: not a directory",
        ),
        (
            (
                f'{OF_20}error during container init: error mounting "/d" to rootfs at '
                f'"/.fastlane/recorder": not a directory{GUESS}'
            ),
            (
                "the image has a file /.fastlane, where the recorder is mounted: "
                "take it out of the image, or set capture = attach"
            ),
            'error mounting "/d" to rootfs at "/.fastlane/recorder": not a directory',
        ),
        (
            "unable to find user nosuch: no matching entries in passwd file",
            "the image does not have this user or group: name one that it has, or a number",
            "unable to find user nosuch: no matching entries in passwd file",
        ),
    ],
)
def test_a_refusal_says_what_is_wrong_and_what_to_do(message: str, advice: str, words: str) -> None:
    assert explained(message) == f"{advice}. The engine says: {words}"


def test_a_refusal_that_nobody_has_seen_yet_is_told_as_it_is() -> None:
    assert explained("something new: unknown") == "something new"


@pytest.mark.parametrize(
    "message",
    [
        "No such container: 0123",
        "container is marked for removal and cannot be started",
        "removal of container 0123 is already in progress",
    ],
)
def test_a_container_that_is_gone_is_told_from_one_that_is_refused(message: str) -> None:
    assert container_gone(message, "0123")


def test_another_container_that_is_gone_is_another_matter() -> None:
    assert not container_gone("No such container: nosuch", "0123")
    assert not container_gone("network nosuch not found", "0123")


@pytest.mark.parametrize(
    ("status", "message", "its_fault"),
    [
        (500, "mkdir /var/lib/docker/overlay2/x: no space left on device", True),
        (500, "failed to create shim task: ttrpc: closed: unknown", True),
        (500, f"{OF_28}runc did not terminate successfully: exit status 127: unknown", True),
        (400, f'{OF_28}exec: "/.fastlane/recorder": permission denied: unknown', True),
        (400, f'{OF_28}exec: "nosuch": executable file not found in $PATH: unknown', False),
        (500, f"{OF_28}error during container init: chdir to cwd (/x) set in config.json failed: unknown", False),
        (500, f"{OF_28}container init was OOM-killed (memory limit too low?): unknown", False),
        (500, "unable to find user nosuch: no matching entries in passwd file", False),
        (404, "network nosuch not found", False),
        (400, "Minimum memory limit allowed is 6MB", False),
        (409, "Conflict. The container name is already in use", False),
    ],
)
def test_a_refusal_that_says_something_about_the_host_is_told_from_one_about_the_job(
    status: int, message: str, its_fault: bool
) -> None:
    assert about_host(status, message) == its_fault
