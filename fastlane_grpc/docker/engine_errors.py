"""The errors of a Docker engine, and the classification of their texts: passing or final, about the command or not.

The texts are not documented. They are those of engines 20.10 to 28, of containerd, and of runc 1.0 to 1.2.
"""

import re

from fastlane_grpc.backend import BackendDown, BackendRefuses, ContainerGone, Diagnosis, RefusalKind
from fastlane_grpc.model import Reason


class EngineDown(BackendDown):
    """The engine did not answer. The request may have been carried out, or may be carried out later."""


class EngineRefuses(BackendRefuses):
    """The engine refused the request, with an HTTP status and a message."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(diagnosis(message), about_host=about_host(status, message))
        self.status = status
        self.message = message


def _pattern(*texts: str) -> re.Pattern[str]:
    return re.compile("|".join(texts), re.IGNORECASE | re.DOTALL)


# The engine lost touch with its own runtime: the request may have been carried out all the same.
_CUT_OFF = _pattern(
    "context (deadline exceeded|canceled)",
    "transport is closing",
    "connection error",
    "error while dialing",
    "error reading from server",
    "code = (unavailable|deadlineexceeded|canceled)",
    r"ttrpc: (closed|client shutting down)",
    "shim (disconnected|exited)",
    "failed to (start|connect to) shim",
    r"shim\.sock",
    "containerd: container did not start before the specified timeout",
    "timed out",
    "i/o timeout",
)
# The engine, its machine or its network lacks a resource, or is busy.
_SHORT = _pattern(
    "no space left",
    "quota exceeded",
    "too many open files",
    "cannot allocate memory",
    "temporarily unavailable",
    "device or resource busy",
    "interrupted system call",
    "no available (ipv[46] )?address",
    "exchange full",
    "(failed|unable) to update store for object",
    "xtables lock",
    "unit .{0,200} already exists",
    "dbus: connection closed",
    "cgroup deleted",
)
# Somebody is removing the container.
_GOES = _pattern("marked for removal", "(container|it) is dead", "removal .{0,100} in progress")

# The runtime's errors about a command. The runtime quotes the command, which may contain any words.
_OF_COMMAND = r'exec: \\*".*\\*": '
_NOT_FOUND = _pattern(
    f"{_OF_COMMAND}(executable file not found|no such file or directory"
    "|stat .*: (no such file or directory|not a directory))",
    "executable file `.*` not found",
)
_NOT_EXECUTABLE = _pattern(
    f"{_OF_COMMAND}(stat .*: )?"
    "(permission denied|is a directory|exec format error|operation not permitted|text file busy)"
)

# What a job asks for and no host can give it.
_OF_JOB = _pattern(
    "chdir to cwd",
    "cannot mkdir: .* is not a directory",
    "mkdir .*: (not a directory|file exists)",
    "unable to find (user|group) ",
    "[ug]ids and [ug]ids must be in range",
    "no command specified",
    "network",
    "oom-killed",
    "could not select device driver",
    "gathering device information",
    "memory limit too low",
    r"/\.fastlane\b.*(not a directory|is a directory|file exists|too many levels|cannot be mounted|not supported)",
)

# The fault and its remedy, from the most specific pattern to the least.
_ADVICE = (
    (
        _pattern(r'exec: \\*"/\.fastlane'),
        "the engine cannot execute the recorder: look whether the file system of the data directory is mounted noexec",
    ),
    (
        _pattern(
            r"/\.fastlane\b.*"
            "(not a directory|is a directory|file exists|too many levels|cannot be mounted|not supported)"
        ),
        (
            "the image has a file /.fastlane, where the recorder is mounted: "
            "take it out of the image, or set capture = attach"
        ),
    ),
    (
        _pattern(
            "cannot mkdir: .* is not a directory",
            "(container init|caused): mkdir .*: (not a directory|file exists)",
            "chdir to cwd",
        ),
        "the working directory is a file, lies below a file, or may not be entered by this user: name a directory",
    ),
    (
        _pattern("unable to find (user|group) "),
        "the image does not have this user or group: name one that it has, or a number",
    ),
    (_pattern("[ug]ids and [ug]ids must be in range"), "the number of the user or group is too large"),
    (_pattern("non running container"), "the container whose network was asked for does not run: start it first"),
    (_pattern("network .* not found"), "the host does not have this network: create it there, or name another"),
    (
        _pattern("could not select device driver"),
        (
            "gpus: the engine has no runtime for GPUs, as NVIDIA's container toolkit: "
            "install one on the host, or let the task run on another host"
        ),
    ),
    (
        _pattern("gathering device information"),
        "devices: the host does not have this device: name one that it has",
    ),
    (
        _pattern("no space left", "quota exceeded"),
        "the engine's disk is full: make room on the host (docker system df)",
    ),
    (_pattern("no command specified"), "there is no command: neither the job nor its image says what to run"),
)


def diagnosis(message: str) -> Diagnosis:
    return Diagnosis(message, plain(message), explained(message), refusal_of(message), command_reason(message))


def refusal_of(message: str) -> RefusalKind:
    if command_reason(message) is not None:
        return RefusalKind.FINAL
    if _SHORT.search(message):
        return RefusalKind.PASSING
    return RefusalKind.CUT_OFF if _CUT_OFF.search(message) else RefusalKind.FINAL


def passes(message: str) -> bool:
    """Whether the same request may succeed a moment later."""
    return refusal_of(message) is not RefusalKind.FINAL


def about_host(status: int, message: str) -> bool:
    """Whether a refusal to create or start a container is about the host, as far as is known: other jobs would be
    refused there, too."""
    if refusal_of(message) is not RefusalKind.FINAL or re.search(r'exec: \\*"/\.fastlane', message):
        return True
    return status >= 500 and command_reason(message) is None and not _OF_JOB.search(message)


def container_gone(message: str, container_id: str) -> bool:
    """Whether the engine refuses because this container was removed, or is being removed.

    The engine sends the same text about another container whose network was asked for.
    """
    return (container_id in message and "no such container" in message.lower()) or bool(_GOES.search(message))


def gone_or(refusal: EngineRefuses, container_id: str) -> BackendRefuses:
    """Return ContainerGone if that is what the engine means, else the refusal itself."""
    return ContainerGone(refusal.diagnosis) if container_gone(refusal.message, container_id) else refusal


def command_reason(message: str) -> Reason | None:
    """Return the reason if the runtime refuses the command itself. None: the error is not about the command."""
    if _NOT_FOUND.search(message):
        return Reason.COMMAND_NOT_FOUND
    return Reason.COMMAND_NOT_EXECUTABLE if _NOT_EXECUTABLE.search(message) else None


def explained(message: str) -> str:
    """Return the engine's message without the names of its inner parts, with advice before it if there is some."""
    text = plain(message)
    advice = next((advice for pattern, advice in _ADVICE if pattern.search(message)), "")
    return f"{advice}. The engine says: {text}" if advice else text


def plain(message: str) -> str:
    """Return the engine's message without the names of its inner parts."""
    message = re.sub(r"^(failed to create (shim task|shim|task for container): )*", "", message)
    message = re.sub(r"^OCI runtime create failed: ", "", message)
    message = re.sub(
        r"^(runc|container_linux\.go:\d+|starting container process caused)( create failed)?: ", "", message
    )
    message = re.sub(r"^unable to start container process: (error during container init: )?", "", message)
    # The engine adds this guess to each ENOTDIR. Jobs mount nothing.
    message = re.sub(r": Are you trying to mount a directory onto a file .*$", "", message, flags=re.DOTALL)
    return re.sub(r": unknown$", "", message)
