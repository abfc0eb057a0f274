"""A server at work for `CHAOS_SECONDS`: it needs no more memory, threads and descriptors at the end than after a third
of that time. Jobs and logs are pruned after seconds, so that days pass in minutes."""

import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http.client import HTTPConnection
from itertools import islice
from pathlib import Path

import docker
import pytest

from fastlane_grpc.client import Client
from fastlane_grpc.v1 import fastlane_pb2 as pb
from tests.recorder_program import eventually
from tests.serving import Server, serving_on
from tests.tally import tally

SECONDS = float(os.environ.get("CHAOS_SECONDS", "2"))
# What caches and allocators may still take after a third of the time. A leak of a kilobyte for each job is more.
SPARE_BYTES = 24 << 20
# Threads of pools are started when they are first needed, and logs have files while they are read.
SPARE_THREADS, SPARE_FILES = 6, 12

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.timeout(120 + 2 * SECONDS)]


@dataclass(frozen=True, slots=True)
class Usage:
    """The resources of a process."""

    memory_bytes: int
    threads: int
    open_files: int


def usage(server: Server) -> Usage:
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    fields = dict(line.split(":\t", 1) for line in status.splitlines())
    return Usage(int(fields["VmRSS"].split()[0]) << 10, int(fields["Threads"]), server.open_files)


def run_jobs(client: Client, image: str) -> None:
    """Enqueue jobs that print, and follow each to its end."""
    job = client.enqueue("soak", image, args=["sh", "-c", "seq 1 2000; seq 1 500 >&2"])
    *_, end = client.tail_job(job.id)
    assert end.exit_status == 0
    tally()


def schedule_and_stop(client: Client, image: str) -> None:
    """Enqueue jobs that never run, change them, and stop them."""
    spec = pb.JobSpec(image=image, cron=pb.Cron(expression="0 3 1 1 *"), labels={"kind": "soak"})
    [made] = client.enqueue_many([pb.EnqueueJobRequest(task_id="scheduled", spec=spec)])
    assert made.job
    client.stop(made.job.id)


def read_lists(client: Client, server: Server) -> None:
    """Read lists by gRPC, and lists and metrics over HTTP, each by a connection of its own."""
    list(islice(client.jobs(task_id="soak"), 50))
    connection = HTTPConnection("127.0.0.1", server.http_port, timeout=60)
    for path in ("/jobs", "/metrics", "/nowhere"):
        connection.request("GET", path)
        connection.getresponse().read()
    connection.close()


def leave_in_the_middle(server: Server) -> None:
    """Open a watch on a connection of its own, and leave without a word."""
    with Client(server.address) as client:
        next(iter(client.watch(task_id="soak")))


def work(server: Server, client: Client, image: str, seconds: float) -> None:
    """Do all of it at the same time, and wait until nothing is left to do."""
    end = time.monotonic() + seconds
    failed = threading.Event()

    def repeat(do: Callable[[], None]) -> None:
        try:
            while time.monotonic() < end and not failed.is_set():
                do()
        except BaseException:
            failed.set()
            raise

    tasks: list[Callable[[], None]] = [
        *(lambda: run_jobs(client, image) for _ in range(3)),
        lambda: schedule_and_stop(client, image),
        lambda: read_lists(client, server),
        lambda: leave_in_the_middle(server),
    ]
    with ThreadPoolExecutor(len(tasks)) as threads:
        for each in [threads.submit(repeat, task) for task in tasks]:
            each.result()


def test_a_server_at_work_needs_no_more_than_before(tmp_path: Path, sdk: docker.DockerClient, image: str) -> None:
    settings = {"http_listen": "127.0.0.1:0", "max_running": 3, "keep_jobs": "5s", "keep_logs": "3s"}
    # The cache of log segments fills in the first third of a long run.
    settings["cache_bytes"] = "4m"
    with serving_on(sdk, tmp_path / "data", **settings) as server, Client(server.address) as client:
        work(server, client, image, SECONDS / 3)
        before = settled(server)
        work(server, client, image, SECONDS * 2 / 3)
        after = settled(server)
        told = f"before {before}, after {after}"
        assert after.threads <= before.threads + SPARE_THREADS, told
        assert after.open_files <= before.open_files + SPARE_FILES, told
        assert after.memory_bytes <= before.memory_bytes + SPARE_BYTES, told
        assert "defect" not in server.log


def settled(server: Server) -> Usage:
    """Return the usage once threads and descriptors stay the same: connections of clients that left are closed."""
    seen: list[Usage] = []

    def is_settled() -> bool:
        seen.append(usage(server))
        return len(seen) > 50 and len({(each.threads, each.open_files) for each in seen[-50:]}) == 1

    eventually(is_settled)
    return seen[-1]
