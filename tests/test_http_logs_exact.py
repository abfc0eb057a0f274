"""Readers over HTTP under servers that are killed with -9: raw, as events, as JSON lines, and the tail of the docs in
`sh` and `curl`. `CHAOS_ROUNDS` kills are made, at moments that follow from `CHAOS_SEED`."""

import os
import random
import re
import shutil
import subprocess
import threading
from pathlib import Path

import docker
import pytest

from fastlane_grpc.model import Source
from fastlane_grpc.v1 import fastlane_pb2 as pb
from tests.http_log_readers import HttpReader
from tests.serving import clear
from tests.succession import Succession, free_address
from tests.tally import tally

ROUNDS = int(os.environ.get("CHAOS_ROUNDS", "2"))
SEED = int(os.environ.get("CHAOS_SEED", "20261124"))
DOCS = Path(__file__).parent.parent / "docs" / "http-logs.md"

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.timeout(120 + 20 * ROUNDS)]

# Bytes of every kind, in pieces, from both sources, for longer than a server lives here; then a flood.
COUNT = 20 + 20 * ROUNDS
SCRIPT = (
    f"i=0; while [ $i -lt {COUNT} ]; do i=$((i+1)); printf '\\000\\377\\r\\n%d' $i;"
    " printf 'e\\303%d' $i >&2; sleep 0.05; done; seq 1 60000; seq 1 20000 >&2; printf '\\200'; exit 7"
)


def numbers(count: int) -> bytes:
    return b"".join(b"%d\n" % number for number in range(1, count + 1))


STDOUT = b"".join(b"\x00\xff\r\n%d" % number for number in range(1, COUNT + 1)) + numbers(60_000) + b"\x80"
STDERR = b"".join(b"e\xc3%d" % number for number in range(1, COUNT + 1)) + numbers(20_000)


def script_of_the_docs() -> str:
    found = re.search(r"```sh\n(#!/bin/sh\n.*?)```", DOCS.read_text(), re.DOTALL)
    assert found, "the docs have the script"
    return found[1]


def test_the_tail_of_the_docs_is_at_most_forty_lines() -> None:
    assert script_of_the_docs().count("\n") <= 40


def test_http_readers_have_each_byte_of_a_log_whose_server_is_killed(
    tmp_path: Path, sdk: docker.DockerClient, image: str
) -> None:
    chance = random.Random(SEED)
    dash, curl = shutil.which("dash"), shutil.which("curl")
    assert dash, "the tail is tested with dash"
    assert curl, "the tail is tested with curl"
    script = tmp_path / "fastlane-tail"
    script.write_text(script_of_the_docs())
    http = free_address()
    succession = Succession(tmp_path / "data", sdk, image, http_listen=http)
    try:
        server = succession.server()
        job = succession.client.enqueue("exact", image, args=["sh", "-c", SCRIPT])
        url = f"http://{http}/executions/{job.execution.id}"
        with (tmp_path / "out").open("wb") as out, (tmp_path / "err").open("wb") as err:
            tail = subprocess.Popen([dash, script, url], stdout=out, stderr=err)
        readers = [HttpReader(http, job.execution.id, each) for each in ("application/x-ndjson", "text/event-stream")]
        for _ in range(ROUNDS):
            raw = subprocess.Popen([curl, "-sN", f"{url}/logs?source=stdout"], stdout=subprocess.PIPE)
            threading.Event().wait(chance.uniform(0.3, 1.0))
            server.kill()
            tally()
            # The stream was cut, and curl says so; what came is what was printed.
            assert STDOUT.startswith(raw.communicate(timeout=30)[0])
            # 52: the server was killed before it had sent anything.
            assert raw.returncode in {18, 52, 56}
            server = succession.server()
        for reader in readers:
            assert reader.result() | {Source.SYSTEM: b""} == {
                Source.STDOUT: STDOUT,
                Source.STDERR: STDERR,
                Source.SYSTEM: b"",
            }
            assert reader.end["exit_status"] == 7
            assert reader.cuts >= ROUNDS
        assert tail.wait(60) == 7
        assert (tmp_path / "out").read_bytes() == STDOUT
        # Beside the job's own, there is what curl says of a server that is away.
        said = re.sub(rb"curl: \(\d+\)[^\n]*\n", b"", (tmp_path / "err").read_bytes())
        assert said == STDERR
        # The whole of it again, late, with its end.
        late = subprocess.run([curl, "-sS", f"{url}/logs?source=stdout&exit_line=1"], capture_output=True, check=True)
        log, line = late.stdout[:-1].rsplit(b"\n", 1)
        assert log == STDOUT
        assert line.startswith(b"fastlane-end exit_status=7 state=FAILED outcome=EXIT_CODE stdout_bytes=%d " % len(log))
        assert succession.client.execution(job.execution.id).state == pb.STATE_FAILED
        assert server.stop() == 0
    finally:
        for server in succession.servers:
            server.kill()
        succession.client.close()
        clear(sdk, tmp_path / "data")


def test_the_tail_of_the_docs_says_why_it_ends(tmp_path: Path, sdk: docker.DockerClient, image: str) -> None:
    script = tmp_path / "fastlane-tail"
    script.write_text(script_of_the_docs())
    succession = Succession(tmp_path / "data", sdk, image, http_listen="127.0.0.1:0")
    try:
        server = succession.server()
        url = f"http://127.0.0.1:{server.http_port}/executions/nothing"
        ended = subprocess.run(["dash", script, url], capture_output=True, timeout=30, check=False)
        assert ended.returncode == 1
        assert b"EXECUTION_NOT_FOUND" in ended.stderr
    finally:
        server.kill()
        succession.client.close()
