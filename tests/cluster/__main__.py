"""Bring up a cluster in the network namespace of this process, run a command beside it, and take the cluster down.

    python -m tests.cluster PROGRAMS DIRECTORY IMAGE [COMMAND…]

Without a command the cluster stays until Ctrl-C. `.ci/cluster` calls this.
"""

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

from tests.cluster import cgroups, images
from tests.cluster.control_plane import ControlPlane, is_ready
from tests.cluster.kit import KIT_IMAGE, RELAY, recorder_program
from tests.cluster.node import PAUSE_IMAGE, NodeProcess
from tests.cluster.processes import Failed, tail, wait_until
from tests.cluster.running import Cluster, write

NODES = ("n1", "n2")
# Of each log, after a command that failed.
LOG_LINES = 15


def main(programs: Path, directory: Path, image: str, command: Sequence[str]) -> int:
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    cgroups.remove_left()
    with ExitStack() as stack:
        try:
            variables = bring_up(stack, programs, directory, image)
        except Failed as failure:
            say(f"the cluster does not come up: {failure}")
            return 1
        if not command:
            return hold(variables)
        code = run(command, variables)
        if code:
            say_logs(directory)
        return code
    return 0


def bring_up(stack: ExitStack, programs: Path, directory: Path, image: str) -> dict[str, str]:
    """Return the variables by which a command finds the cluster, which the stack takes down."""
    began = time.monotonic()
    directory.mkdir()
    archives = [directory / "pause.tar", directory / "image.tar", directory / "kit.tar"]
    images.write(PAUSE_IMAGE, {"pause": programs / "pause"}, archives[0], entrypoint="/pause")
    images.save(image, archives[1])
    images.write(KIT_IMAGE, {"relay": RELAY, "recorder": recorder_program()}, archives[2], entrypoint="/relay")
    control_plane = ControlPlane(directory / "control", programs)
    stack.callback(control_plane.stop)
    control_plane.start()
    nodes = {}
    for number, name in enumerate(NODES, 1):
        process = NodeProcess(name, number, directory / name, programs, control_plane.kubeconfig, cgroups.name(name))
        stack.callback(process.stop)
        process.start(archives)
        nodes[name] = process.node
    api = control_plane.api()
    for name in NODES:
        wait_until(lambda name=name: is_ready(api, name), f"node {name} is ready")
    say(f"a cluster of {len(nodes)} nodes is up, after {time.monotonic() - began:.0f} s")
    return dict(write(Cluster(control_plane.kubeconfig, image, nodes, control_plane), directory))


def run(command: Sequence[str], variables: dict[str, str]) -> int:
    """Run the command, and return its exit status."""
    with subprocess.Popen(["setpriv", "--pdeathsig", "TERM", *command], env=os.environ | variables) as child:
        while True:
            try:
                code = child.wait()
                return code if code >= 0 else 128 - code
            except KeyboardInterrupt:
                # The command gets it, too, and answers as it likes.
                continue
            except SystemExit:
                child.terminate()
                raise


def hold(variables: dict[str, str]) -> int:
    """Say how to use the cluster, and wait for Ctrl-C."""
    set_variables = " ".join(f"{name}={shlex.quote(value)}" for name, value in variables.items())
    say(f"to use it, in another terminal: nsenter --net --target {os.getpid()} env {set_variables} bash")
    say("Ctrl-C takes it down")
    with suppress(KeyboardInterrupt):
        signal.pause()
    return 0


def say_logs(directory: Path) -> None:
    """Say the last lines of each log, as the logs are gone with the cluster."""
    for log in sorted(directory.glob("*/*.log")):
        if lines := tail(log, LOG_LINES):
            say(f"the end of {log.relative_to(directory)}:\n{lines}")


def say(words: str) -> None:
    sys.stderr.write(f"fastlane: {words}\n")


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], sys.argv[4:]))
