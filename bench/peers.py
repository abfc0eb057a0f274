"""The queues that fastlane is compared with: how many jobs a second each takes, when each job is on disk before its
enqueue returns.

Run by the Python of `.peers`, as `python bench/peers.py NAME PLACE JOBS`: it starts two processes, which fill both
cores, and prints the jobs per second of the two together. A queue with a call for many jobs is given 1 000 at a time;
one without is given as many threads as pay. It imports nothing of fastlane."""

import multiprocessing
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

PROCESSES = 2
BATCH = 1_000
THREADS = 8

# What fastlane's job holds, too.
PAYLOAD = {
    "image": "registry:5000/mail:1.2",
    "command": "python /app/sendmail.py",
    "envs": {"SMTP_SERVER": "my-smtp-server", "PADDING": "x" * 200},
}


def work(**payload: object) -> None:
    """Do nothing: no worker runs in this comparison."""


def rq(place: str) -> Callable[[int], None]:
    from redis import Redis
    from rq import Queue

    queue = Queue("bench", connection=Redis.from_url(place))

    def enqueue(jobs: int) -> None:
        for batch in _batches(jobs):
            queue.enqueue_many([Queue.prepare_data(work, kwargs=PAYLOAD) for _ in batch])

    return enqueue


def dramatiq(place: str) -> Callable[[int], None]:
    import dramatiq
    from dramatiq.brokers.redis import RedisBroker

    broker = RedisBroker(url=place)
    dramatiq.set_broker(broker)
    actor: Any = dramatiq.actor(work, broker=broker)
    return _in_threads(lambda: actor.send(**PAYLOAD))


def celery(place: str) -> Callable[[int], None]:
    from celery import Celery

    # Kombu has its own name for a Unix socket.
    app = Celery("bench", broker=place.replace("unix:", "redis+socket:"), broker_pool_limit=THREADS)
    task: Any = app.task(work, ignore_result=True)
    return _in_threads(lambda: task.apply_async(kwargs=PAYLOAD))


def huey(place: str) -> Callable[[int], None]:
    from huey import SqliteHuey

    queue = SqliteHuey("bench", filename=place, fsync=True)
    task: Any = queue.task()(work)

    def enqueue(jobs: int) -> None:
        for _ in range(jobs):
            task(**PAYLOAD)

    return enqueue


PEERS = {"rq": rq, "dramatiq": dramatiq, "celery": celery, "huey": huey}


def _batches(jobs: int) -> Iterable[Sequence[int]]:
    return (range(begin, min(begin + BATCH, jobs)) for begin in range(0, jobs, BATCH))


def _in_threads(enqueue_one: Callable[[], object]) -> Callable[[int], None]:
    def enqueue(jobs: int) -> None:
        with ThreadPoolExecutor(THREADS) as threads:
            for _ in threads.map(lambda _: enqueue_one(), range(jobs)):
                pass

    return enqueue


def _process(name: str, place: str, jobs: int, gate: Any) -> None:
    enqueue = PEERS[name](place)
    # Connections, imports and caches are made before the clock starts.
    enqueue(20)
    gate.wait()
    enqueue(jobs)


def jobs_per_second(name: str, place: str, jobs: int) -> float:
    gate = multiprocessing.Barrier(PROCESSES + 1)
    processes = [
        multiprocessing.Process(target=_process, args=(name, place, jobs // PROCESSES, gate)) for _ in range(PROCESSES)
    ]
    for process in processes:
        process.start()
    gate.wait(60)
    begin = time.perf_counter()
    for process in processes:
        process.join()
        if process.exitcode:
            sys.exit(f"a process of {name} ended with {process.exitcode}")
    return jobs / (time.perf_counter() - begin)


if __name__ == "__main__":
    print(jobs_per_second(sys.argv[1], sys.argv[2], int(sys.argv[3])))
