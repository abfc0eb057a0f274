"""Costs with a million jobs in the store, of which 100 000 wait: a claim, a start of the server, a watch of all jobs
that wait, and a stop of 1 000 jobs."""

import asyncio
import json
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

import grpc

from bench.ratio import Limit, Ratio
from bench.server import server
from fastlane_grpc import Client
from fastlane_grpc.model import JobSpec, Outcome, State, TaskLimitsChange, new_id
from fastlane_grpc.retention import KEEP_CHANGES
from fastlane_grpc.store import Store
from fastlane_grpc.store.database import open_for_writing
from fastlane_grpc.v1 import fastlane_pb2 as pb
from fastlane_grpc.v1.fastlane_pb2_grpc import JobServiceStub

JOBS, WAITING, TASKS = 1_000_000, 100_000, 500
CLAIMS = 300
# Of the 50 tasks whose executions wait, those that are paused or at their limit.
BLOCKED = 45
AT_ONCE = 10_000


def rows(stage: Path, rounds: int) -> Iterator[Ratio | Limit]:
    empty, full = stage / "million-empty", stage / "million-full"
    empty.mkdir()
    full.mkdir()
    print(f"a store with {JOBS} jobs is made, which takes a minute or so", flush=True)
    build(full)
    yield from _claims(full, empty, rounds)
    yield _start(stage, full, rounds)
    yield from _calls(stage, full, rounds)


def build(directory: Path) -> None:
    """By plain SQL, in bulk; what follows from rows the triggers do, as ever."""
    spec = json.dumps(
        {"image": "registry:5000/mail:1.2", "command": "python send.py", "envs": {"PADDING": "x" * 200}}
    ).encode()
    now = time.time_ns() // 1000
    with closing(open_for_writing(directory / "fastlane.db")) as db:
        db.execute("PRAGMA synchronous = OFF")
        for begin in range(0, JOBS, AT_ONCE):
            ids = [
                (new_id(), new_id(), f"task-{number % TASKS}", _state(number), now + number)
                for number in range(begin, begin + AT_ONCE)
            ]
            db.execute("BEGIN")
            db.executemany(
                """
                INSERT INTO jobs (job_id, execution_id, task_id, state, spec, create_time, request_id, request_digest,
                    caller_address, end_time, reason, detail, exit_code, out_of_memory, stop_signal)
                VALUES (?, ?, ?, ?, ?, ?, '', x'00', 'ipv4:127.0.0.1:50000', ?, ?, '', ?, 0, '')
                """,
                [
                    (job_id, execution_id, task_id, state, spec, at, *_outcome(state, at))
                    for job_id, execution_id, task_id, state, at in ids
                ],
            )
            db.executemany(
                """
                INSERT INTO executions (execution_id, job_id, task_id, priority, run, attempt, state, state_time,
                    create_time, due_time, claim_time, end_time, host, reason, detail, exit_code, out_of_memory,
                    stop_signal)
                VALUES (?, ?, ?, 0, 1, 1, ?, ?, ?, ?, ?, ?, ?, ?, '', ?, 0, '')
                """,
                [
                    (execution_id, job_id, task_id, state, at, at, at, *_end(state, at))
                    for job_id, execution_id, task_id, state, at in ids
                ],
            )
            # As retention leaves the change log.
            db.execute("DELETE FROM changes WHERE sequence <= (SELECT max(sequence) FROM changes) - ?", [KEEP_CHANGES])
            db.execute("COMMIT")


def _state(number: int) -> State:
    return State.QUEUED if number % (JOBS // WAITING) == 0 else State.SUCCEEDED


def _outcome(state: State, at: int) -> tuple[int | None, int | None, int | None]:
    """When a job ended, why and with which code."""
    return (at, 0, 0) if state.final else (None, None, None)


def _end(state: State, at: int) -> tuple[int | None, int | None, str, int | None, int | None]:
    """When it was claimed and ended, where, why and with which code."""
    return (at, at, "local", 0, 0) if state.final else (None, None, "", None, None)


def _claims(full: Path, empty: Path, rounds: int) -> Iterator[Ratio]:
    """Per second of the claims' own time, by their median and by their mean: that has in it what SQLite does once in a
    while."""
    with _store(full) as ours, _store(empty) as theirs:
        yield from _claim_rows(ours, theirs, rounds, f"{JOBS} jobs and {WAITING} waiting")
        with _blocked(ours):
            yield from _claim_rows(ours, theirs, rounds, f"the same, {BLOCKED} of 50 tasks that wait blocked")


def _claim_rows(ours: Store, theirs: Store, rounds: int, which: str) -> Iterator[Ratio]:
    latencies = [_latencies(ours, theirs) for _ in range(rounds + 1)][1:]
    for name, middle in (("median", statistics.median), ("mean", statistics.fmean)):
        yield Ratio(
            f"claims, {name}, {which}, against an empty store",
            "claims/s",
            [1 / middle(of_ours) for of_ours, _ in latencies],
            [1 / middle(of_theirs) for _, of_theirs in latencies],
            1 / 1.2,
        )


@contextmanager
def _blocked(store: Store) -> Iterator[None]:
    """Of the tasks with much that waits, all but a few are paused or run as many executions as they may."""
    tasks = [f"task-{number}" for number in range(0, 10 * BLOCKED, 10)]
    paused, limited = tasks[::2], set(tasks[1::2])
    for task_id in tasks:
        change = TaskLimitsChange(paused=True) if task_id in paused else TaskLimitsChange(max_running=1)
        store.update_task(task_id, change).result()
    claimed = [assignment.execution for assignment in store.claim_on(["local"] * TASKS).result()]
    _finish([(store, execution.id) for execution in claimed if execution.task_id not in limited])
    yield
    for task_id in tasks:
        store.update_task(task_id, TaskLimitsChange(max_running=0, paused=False)).result()
    _finish([(store, execution.id) for execution in claimed if execution.task_id in limited])


@contextmanager
def _store(directory: Path) -> Iterator[Store]:
    # Nobody runs the loop: each call is a thread's.
    loop = asyncio.new_event_loop()
    store = Store.open(directory, on_commit=lambda executions: None, loop=loop)
    try:
        yield store
    finally:
        store.close()
        loop.close()


def _latencies(*stores: Store) -> list[list[float]]:
    """Seconds of each claim, one of each store in turn: a disk that is slow for a while is slow for all of them."""
    for store in stores:
        _enqueue(store)
    latencies: list[list[float]] = [[] for _ in stores]
    claimed: list[tuple[Store, str]] = []
    for _ in range(CLAIMS):
        for store, seconds in zip(stores, latencies, strict=True):
            begin = time.perf_counter()
            [assignment] = store.claim_on(["local"]).result()
            seconds.append(time.perf_counter() - begin)
            claimed.append((store, assignment.execution.id))
    _finish(claimed)
    return latencies


def _enqueue(store: Store) -> None:
    spec = JobSpec("busybox")
    for pending in [
        store.enqueue(task_id=f"task-{number}", spec=spec, request_id="", caller_address="") for number in range(CLAIMS)
    ]:
        pending.result()


def _finish(claimed: Sequence[tuple[Store, str]]) -> None:
    """So that the next server finds nothing to take up."""
    ended = [
        store.finish(execution_id, state=State.SUCCEEDED, outcome=Outcome(exit_code=0), logs=())
        for store, execution_id in claimed
    ]
    for pending in ended:
        pending.result()


def _start(stage: Path, full: Path, rounds: int) -> Limit:
    # No engine: nothing is claimed while it starts.
    no_engine = f"unix://{stage}/no-engine.sock"
    seconds = []
    for _ in range(rounds):
        begin = time.perf_counter()
        with server(stage, "--engine", no_engine, directory=full) as running, Client(running.address) as client:
            client.server_info()
            seconds.append(time.perf_counter() - begin)
    return Limit(f"start of the server to its first answer, {JOBS} jobs kept", "s", seconds, 2.0)


def _calls(stage: Path, full: Path, rounds: int) -> Iterator[Limit]:
    first_seconds, all_seconds, stop_seconds = list[float](), list[float](), list[float]()
    # No engine: what waits stays in the queue.
    with server(stage, "--engine", f"unix://{stage}/no-engine.sock", directory=full) as running:
        with grpc.insecure_channel(running.address) as channel:
            # Each stop has a task of its own: one that has too few jobs left would be quick.
            for task_id in [f"task-{10 * BLOCKED + 10 * number}" for number in range(min(rounds, 50 - BLOCKED))]:
                first, all_of_them = _watch(channel)
                first_seconds.append(first)
                all_seconds.append(all_of_them)
                stop_seconds.append(_stop(channel, task_id))
    yield Limit("first job of WatchJobs, a hundred thousand open", "s", first_seconds, 0.1)
    yield Limit("all jobs of WatchJobs, a hundred thousand open", "s", all_seconds, 5.0)
    yield Limit("BatchStopJobs of a thousand queued jobs", "s", stop_seconds, 1.0)


def _watch(channel: grpc.Channel) -> tuple[float, float]:
    """Return the seconds up to the first open job, and up to the last."""
    # Not parsed, so that the server is measured: what ends the jobs is shorter than any of them.
    watch: grpc.UnaryStreamMultiCallable[pb.WatchJobsRequest, bytes] = channel.unary_stream(
        "/fastlane.v1.JobService/WatchJobs",
        request_serializer=pb.WatchJobsRequest.SerializeToString,
        response_deserializer=None,
    )
    begin = time.perf_counter()
    call = watch(pb.WatchJobsRequest())
    first = len(next(call)), time.perf_counter() - begin
    for message in call:
        if len(message) < first[0] / 2:
            break
    took = time.perf_counter() - begin
    call.cancel()
    return first[1], took


def _stop(channel: grpc.Channel, task_id: str) -> float:
    request = pb.BatchStopJobsRequest(filter=pb.JobFilter(task_id=task_id, states=[pb.STATE_QUEUED]))
    begin = time.perf_counter()
    response = JobServiceStub(channel).BatchStopJobs(request)
    took = time.perf_counter() - begin
    assert response.stopped == 1_000, "the task has as many that wait"
    return took
