"""The command `fastlane` and a server that it began itself, on a real engine."""

import os
import re
import signal
import subprocess
from collections.abc import Mapping
from pathlib import Path

from tests import forked
from tests.commands import FASTLANE, PROGRAM

SECONDS = 90


def environment(address: str = "") -> Mapping[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("FASTLANE_")}
    return kept | ({"FASTLANE_ADDRESS": address} if address else {})


class Server:
    """`fastlane server`, which may be killed and started again in the same place."""

    def __init__(self, data_dir: Path, *flags: str) -> None:
        self.data_dir = data_dir
        self.flags = flags
        self.address = "127.0.0.1:0"
        self.start()

    def start(self) -> None:
        command = [*FASTLANE, "server", "--data-dir", str(self.data_dir), "--listen", self.address]
        command += ["--http-listen", "off", *self.flags]
        with Path(f"{self.data_dir}.log").open("ab") as log:
            self.process = subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, stderr=log, text=True)
        assert self.process.stdout
        self.line = self.process.stdout.readline()
        heard = re.fullmatch(r"fastlane \S+ listening on (127\.0\.0\.1:\d+), data in (.+)\n", self.line)
        assert heard, f"{self.line!r}\n{Path(f'{self.data_dir}.log').read_text()[-4000:]}"
        assert heard[2] == str(self.data_dir)
        self.address = heard[1]

    def end(self, number: signal.Signals) -> int:
        self.process.send_signal(number)
        return self.process.wait(SECONDS)


def fastlane(server: Server, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    return forked.run(PROGRAM, *arguments, environment=environment(server.address), timeout=SECONDS)
