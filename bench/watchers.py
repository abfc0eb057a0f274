"""A thousand watchers of one busy task, against a bare stream of messages of the same size to the same readers.

Each enqueue changes a job, and each watcher is told of it at once. The peer has all of its messages ready, and sends
each reader one after another: it wakes a reader once, where a change wakes every watcher."""

import itertools
from collections.abc import Iterator
from pathlib import Path

from bench.ratio import Margin, Ratio, in_turn
from bench.readers import Got, bare, peak_megabytes, read
from bench.server import server
from fastlane_grpc import Client
from fastlane_grpc.client import CaughtUp, JobChanged
from fastlane_grpc.v1 import fastlane_pb2 as pb

WATCHERS = 1_000
JOBS = 100
METHOD = "/fastlane.v1.JobService/WatchJobs"


def rows(stage: Path, rounds: int) -> Iterator[Ratio | Margin]:
    numbers = itertools.count()
    # No engine: what is enqueued stays in the queue.
    with server(stage, "--engine", f"unix://{stage}/no-engine.sock") as running, Client(running.address) as client:
        message_bytes = _message_bytes(client)
        # A little less than all: a message may be some bytes shorter.
        wanted = message_bytes * JOBS * 95 // 100

        def ours() -> float:
            task_id = f"bench-{next(numbers)}"
            request = pb.WatchJobsRequest(task_id=task_id)
            return _rate(read(running.address, request, wanted, WATCHERS, lambda: _enqueue(client, task_id), METHOD))

        with bare(message_bytes, JOBS, WATCHERS) as peer:

            def theirs() -> float:
                return _rate(read(peer.address, pb.WatchJobsRequest(), wanted, WATCHERS, lambda: None))

            what = f"{WATCHERS} watchers of one busy task, against bare grpc.aio"
            yield in_turn(what, "messages/s", 0.4, ours, theirs, rounds=rounds)
            yield Margin(
                "  the server's memory at its most", "MB", peak_megabytes(running), peak_megabytes(peer), 200.0
            )


def _message_bytes(client: Client) -> int:
    """The size of the message of one change."""
    with client.watch("one") as watch:
        for event in watch:
            match event:
                case CaughtUp():
                    client.enqueue("one", "busybox")
                case JobChanged(job):
                    return pb.WatchJobsResponse(cursor=watch.cursor, job=job).ByteSize()
    raise RuntimeError("the watch ended")


def _enqueue(client: Client, task_id: str) -> None:
    for _ in range(JOBS):
        client.enqueue(task_id, "busybox")


def _rate(got: Got) -> float:
    return got.messages / got.seconds
