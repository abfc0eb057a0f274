"""A fork of the tests does what an interpreter does that is started for the same program."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests import forked
from tests.forked import Forked

WHERE = """
import os, sys
print(sys.argv, os.getcwd(), os.environ['SEEN'], 'HOME' in os.environ, sys.stdin.read(), sys.stdout.isatty())
"""


@pytest.mark.parametrize(
    "code",
    [
        WHERE,
        "import os; os.write(2, b'oh')",
        "import os; print(sorted(os.listdir('/proc/self/fd')), 'not flushed')",
        "import atexit, sys; atexit.register(print, 'at the end'); sys.exit(7)",
        "import threading, time; threading.Timer(0.05, print, ['waited for']).start()",
        "import os; print('lost'); os._exit(9)",
        "import sys; sys.exit('why')",
        "import os; os.kill(os.getpid(), 9)",
        "raise KeyboardInterrupt",
        "import signal; print([signal.getsignal(each) for each in (2, 13, 15, 17)])",
    ],
)
def test_a_fork_prints_and_ends_as_an_interpreter_does(
    code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SEEN", "by both")
    monkeypatch.delenv("HOME")
    started = subprocess.run([sys.executable, "-c", code, "a", b"\xe9"], stdin=subprocess.DEVNULL, capture_output=True)
    fork = forked.run(code, "a", b"\xe9")
    assert (fork.returncode, fork.stdout) == (started.returncode, started.stdout)
    # A traceback begins with lines of the process that forks.
    assert fork.stderr.splitlines()[-1:] == started.stderr.splitlines()[-1:]


def test_forks_draw_other_random_numbers() -> None:
    code = "import random; print(random.random())"
    assert forked.run(code).stdout != forked.run(code).stdout


def test_a_fork_is_seen_to_run_until_it_is_killed() -> None:
    process = Forked("import time; print('up', flush=True); time.sleep(60)")
    assert process.stdout.readline() == b"up\n"
    assert (process.poll(), Path(f"/proc/{process.pid}").exists()) == (None, True)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.01)
    os.kill(process.pid, signal.SIGTERM)
    assert (process.wait(30), process.poll()) == (-signal.SIGTERM, -signal.SIGTERM)
    process.kill()
    process.stdout.close()
