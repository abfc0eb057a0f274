"""Processes of the cluster: started with a log file, ended with the process that started them."""

import os
import select
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

SECONDS = 120


class Failed(Exception):
    """A part of the cluster does not come up."""


def spawn(command: Sequence[str | Path], log: Path, **more: object) -> subprocess.Popen[str]:
    """Start a process that is killed when the thread that called this ends."""
    with log.open("ab") as output:
        return subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", *command],
            stdin=subprocess.DEVNULL,
            **{"stdout": output, "stderr": output, "text": True, **more},
        )


def children(process: int) -> Sequence[int]:
    """Return the ids of the children of a process."""
    try:
        return [int(word) for word in Path(f"/proc/{process}/task/{process}/children").read_text().split()]
    except OSError:
        return []


def start(command: Sequence[str | Path], log: Path, pid_file: Path) -> None:
    """Start a process by a command of nsenter, which has it for its child, and write its id into the file.

    The process lives on if this one ends: it ends with the first process of its namespace.
    """
    entered = spawn(command, log)
    wait_until(lambda: bool(children(entered.pid)) or entered.poll() is not None, f"{pid_file.stem} starts")
    if entered.poll() is not None:
        raise Failed(f"{pid_file.stem} ended; its last words:\n{tail(log)}")
    pid_file.write_text(str(children(entered.pid)[0]))


def end(process: subprocess.Popen[str] | None, number: int = signal.SIGTERM, *, seconds: float = 10) -> None:
    """Send a signal and wait for the end of the process; kill it if it does not end."""
    if process is None:
        return
    process.send_signal(number)
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def run(*command: str | Path) -> str:
    """Run a command and return what it prints. Raises Failed with its words."""
    ran = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if ran.returncode:
        raise Failed(f"{' '.join(map(str, command))}: {ran.stderr.strip() or ran.stdout.strip()}")
    return ran.stdout


def wait_until(true: Callable[[], bool], what: str, *, seconds: float = SECONDS) -> None:
    """Ask until the answer is yes. Raises Failed after so many seconds."""
    until = time.monotonic() + seconds
    while not true():
        if time.monotonic() > until:
            raise Failed(f"{what}: not within {seconds:.0f} s")
        time.sleep(0.05)


def processes_with(*words: str) -> Sequence[int]:
    """Return the ids of the processes of this machine whose command has all these words, in this order."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            command = (path / "cmdline").read_bytes().decode(errors="replace").split("\0")
            if [word for word in command if word in words][: len(words)] == [*words]:
                found.append(int(path.name))
    return found


def recorders(execution_id: str) -> Sequence[int]:
    """Return the recorder of an execution, if it runs."""
    return processes_with("/.fastlane/bin/recorder", "--execution", execution_id)


def relays(execution_id: str) -> Sequence[int]:
    """Return the relay of an execution, if it runs."""
    return processes_with("/relay", "--execution", execution_id)


def holds_lock(process: int) -> bool:
    """Whether a process holds a lock of flock(2)."""
    locks = [line.split() for line in Path("/proc/locks").read_text().splitlines()]
    return any(words[1] == "FLOCK" and words[4] == str(process) for words in locks)


def kill_recorder(execution_id: str) -> None:
    """Kill the recorder of an execution with -9, and with it all processes of the container."""
    (process,) = recorders(execution_id)
    os.kill(process, signal.SIGKILL)


def kill_relay(execution_id: str) -> None:
    """Kill the relay of an execution with -9."""
    (process,) = relays(execution_id)
    os.kill(process, signal.SIGKILL)


def tail(log: Path, lines: int = 5) -> str:
    """Return the last lines of a log."""
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:]) if log.exists() else ""


def runs(pid_file: Path) -> bool:
    """Whether the process whose id is in the file runs; there need not be a file."""
    try:
        stat = Path(f"/proc/{int(pid_file.read_text())}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX"


def kill(pid_file: Path) -> None:
    """Kill the process with -9, if it runs."""
    if not runs(pid_file):
        return
    process = int(pid_file.read_text())
    # A process whose first thread has ended looks dead while the others still hold its ports and its locks.
    handle = os.pidfd_open(process)
    try:
        signal.pidfd_send_signal(handle, signal.SIGKILL)
        if not select.select([handle], [], [], SECONDS)[0]:
            raise Failed(f"{pid_file.stem} does not end")
    finally:
        os.close(handle)
    # Somebody else's child is reaped by its parent.
    with suppress(ChildProcessError):
        os.waitpid(process, 0)
