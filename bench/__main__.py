"""Measures and prints a row for each question; `make bench` puts up what it needs. Says whether a goal was met, never
fails for one."""

import os
import sys
from pathlib import Path

from bench import (
    batches,
    containers,
    enqueue,
    http_enqueue,
    latency,
    lookups,
    masking,
    million,
    observed,
    page,
    readers,
    running,
    throughput,
    unread,
    watchers,
)
from fastlane_grpc.machine.open_files import raise_limit

ROUNDS = 5


def main() -> None:
    # A reader over HTTP has a connection of its own.
    raise_limit()
    stage, image, engine = Path(os.environ["STAGE_DIRECTORY"]), os.environ["STAGE_IMAGE"], os.environ["DOCKER_HOST"]
    rounds = int(os.environ.get("ROUNDS", ROUNDS))
    print(
        f"{os.cpu_count()} cores, Python {sys.version.split()[0]}; "
        f"medians of {rounds} rounds in turn, ratio with its least and most"
    )
    for rows in (
        lambda: [enqueue.row(stage, rounds)],
        lambda: [http_enqueue.row(stage, rounds)],
        lambda: batches.rows(stage, rounds),
        lambda: lookups.rows(stage, rounds),
        lambda: million.rows(stage, rounds),
        lambda: running.rows(stage, rounds),
        lambda: [containers.row(stage, image, engine, rounds)],
        lambda: [latency.first_byte(stage, image, engine, rounds)],
        lambda: latency.lines(stage, image, engine, rounds),
        lambda: [unread.row(stage, image, engine)],
        lambda: readers.rows(stage, rounds),
        lambda: watchers.rows(stage, rounds),
        lambda: page.rows(stage, rounds),
        lambda: throughput.rows(stage, image, engine, rounds),
        lambda: masking.rows(stage, image, engine, rounds),
        lambda: observed.rows(stage, rounds),
    ):
        for row in rows():
            print(row, flush=True)


if __name__ == "__main__":
    main()
