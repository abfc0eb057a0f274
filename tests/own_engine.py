"""An engine of a test's own, which may be killed."""

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from contextlib import closing
from pathlib import Path

import docker

from tests.engine import busybox_tar

IMAGE = "busybox:own"


class OwnEngine:
    """A `dockerd` with its own data, sockets and network namespace, so that it touches nothing of any other.

    Its containers have no network, unless it is given a namespace for them: a path as in /proc. Never our own: an
    engine without a bridge deletes the bridge of another one there. A `listener` is of our own network all the same;
    the engine takes connections there, too.
    """

    def __init__(self, *options: str, network: str = "", listener: socket.socket | None = None) -> None:
        # A short path, since sockets of containers are made below it; `.ci/stage` clears it away when this process is
        # killed.
        self.directory = Path(tempfile.mkdtemp(prefix="fl-", dir=os.environ.get("STAGE_DIRECTORY")))
        self.address = f"unix://{self.directory}/docker.sock"
        self._options = options if network else ("--bridge=none", *options)
        self._enter = ["nsenter", f"--net={network}"] if network else ["unshare", "--net"]
        self._passed: list[int] = []
        if listener is not None:
            # As systemd passes it on: as descriptor 3, to the process of this number alone.
            self._passed = [listener.fileno()]
            script = f'LISTEN_FDS=1 LISTEN_PID=$$ exec "$@" --host=fd:// 3<&{listener.fileno()}'
            self._enter = ["bash", "-c", script, "bash", *self._enter]
        self._log = (self.directory / "log").open("wb")
        self.start()
        with closing(docker.DockerClient(self.address)) as sdk:
            repository, _, tag = IMAGE.partition(":")
            sdk.api.import_image_from_data(busybox_tar(), repository=repository, tag=tag)

    def start(self) -> None:
        self._forget_dead_containerd()
        home = self.directory
        paths = [
            f"--data-root={home}/data",
            f"--exec-root={home}/exec",
            f"--pidfile={home}/docker.pid",
            f"--host={self.address}",
        ]
        self._process = subprocess.Popen(
            [
                *self._enter,
                "dockerd",
                *paths,
                "--iptables=false",
                "--ip6tables=false",
                "--ip-forward=false",
                *self._options,
            ],
            stdout=self._log,
            stderr=self._log,
            start_new_session=True,
            pass_fds=self._passed,
        )
        until = time.monotonic() + 60
        while not self._answers():
            assert self._process.poll() is None, (self.directory / "log").read_text()[-2000:]
            assert time.monotonic() < until
            time.sleep(0.05)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def freeze(self) -> None:
        """As one that hangs: it takes connections, and answers none. Its containers go on."""
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._process.send_signal(signal.SIGCONT)

    def stop(self) -> None:
        """In an orderly way: without live-restore it takes its containers with it."""
        self._process.terminate()
        self._process.wait(60)

    def remove(self) -> None:
        self.thaw()
        if self._process.poll() is not None:
            self.start()
        with closing(docker.DockerClient(self.address)) as sdk:
            for container in sdk.containers.list(all=True, ignore_removed=True):
                container.remove(force=True)
        self.stop()
        self._log.close()
        # What a killed engine had mounted, and the next one did not find.
        for line in reversed(Path("/proc/self/mounts").read_text().splitlines()):
            if (place := line.split()[1]).startswith(f"{self.directory}/"):
                subprocess.run(["umount", "--lazy", place], check=True)
        shutil.rmtree(self.directory)

    def _answers(self) -> bool:
        try:
            with closing(docker.DockerClient(self.address, timeout=5)) as sdk:
                return bool(sdk.ping())
        except (docker.errors.DockerException, OSError):
            return False

    def _forget_dead_containerd(self) -> None:
        """It dies with its engine, a moment later; where nobody buries it the next engine takes it for one that is
        alive."""
        note = self.directory / "exec/containerd/containerd.pid"
        until = time.monotonic() + 10
        while _is_alive(note):
            assert time.monotonic() < until
            time.sleep(0.01)
        note.unlink(missing_ok=True)


def _is_alive(note: Path) -> bool:
    """Whether the process whose number is noted there runs."""
    try:
        return Path(f"/proc/{int(note.read_text())}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (OSError, ValueError):
        return False
