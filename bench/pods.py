"""Jobs as pods against bare pods, which the official client creates in the same cluster.

    make cluster ARGS='python -m bench.pods'
    make cluster ARGS='python -m bench.pods throughput idle'     only these rows

The command brings up a cluster of two nodes on this machine, or uses the cluster that KUBECONFIG names. That takes
minutes, so `make bench` leaves these rows out. `ROUNDS` is the number of rounds of each row. A bare pod has one
container. Its output is read from the log of its node, which loses lines when the node rotates the log."""

import itertools
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from kubernetes.client import ApiException
from kubernetes.watch import Watch

from bench.ratio import Limit, Ratio, in_turn
from bench.server import Running, cpu_seconds, server
from fastlane_grpc import Client
from fastlane_grpc.client import STDOUT, Disconnected, End, Output
from fastlane_grpc.v1 import fastlane_pb2 as pb
from tests.cluster.control_plane import ADDRESS
from tests.cluster.kit import KIT_IMAGE
from tests.cluster.running import Cluster, running_cluster
from tests.succession import free_address

ROWS = ("pods", "first-byte", "throughput", "idle")
ROUNDS = 3
AT_A_TIME, PODS = 8, 16
FIRST_BYTES = 3
MEGABYTES = 100
FLOOD = f"yes {'0123456789' * 9}01234567 | head -c {MEGABYTES}000000"
IDLE_PODS, IDLE_SECONDS = 50, 20.0
START_SECONDS = 600


class BarePods:
    """Pods of one container in a namespace, and one watch for all of them."""

    def __init__(self, cluster: Cluster, namespace: str) -> None:
        self._api = cluster.api()
        self._image = cluster.image
        self._namespace = namespace
        self._numbers = itertools.count()
        self._ended = set[str]()
        self._came = threading.Condition()
        threading.Thread(target=self._follow, args=(cluster.api(),), daemon=True).start()

    def run(self, script: str) -> None:
        """Run a script to its end."""
        name = self._create(script)
        with self._came:
            self._came.wait_for(lambda: name in self._ended)
        self._remove(name)

    def read(self, script: str) -> Iterator[bytes]:
        """Yield what a script prints, as it comes, by the log of the node."""
        name = self._create(script)
        try:
            came = False
            # The answer is an error until the container is there, and may be empty when it has just ended.
            while not came:
                if (stream := self._log(name)) is None:
                    time.sleep(0.01)
                    continue
                for piece in stream.stream(1 << 16):
                    came = True
                    yield piece
        finally:
            self._remove(name)

    def _create(self, script: str) -> str:
        name = f"bare-{next(self._numbers)}"
        container = {
            "name": "job",
            "image": self._image,
            "command": ["sh", "-c", script],
            "imagePullPolicy": "IfNotPresent",
        }
        spec = {"restartPolicy": "Never", "automountServiceAccountToken": False, "containers": [container]}
        body: Any = {"metadata": {"name": name}, "spec": spec}
        self._api.create_namespaced_pod(self._namespace, body)
        return name

    def _log(self, name: str) -> Any:
        try:
            return self._api.read_namespaced_pod_log(name, self._namespace, follow=True, _preload_content=False)
        except ApiException:
            return None

    def _remove(self, name: str) -> None:
        self._api.delete_namespaced_pod(name, self._namespace, grace_period_seconds=1)

    def _follow(self, api: Any) -> None:
        while True:
            watch: Any = Watch()  # type: ignore[no-untyped-call]
            for event in watch.stream(api.list_namespaced_pod, self._namespace, timeout_seconds=600):
                if event["object"].status.phase in {"Succeeded", "Failed"}:
                    with self._came:
                        self._ended.add(event["object"].metadata.name)
                        self._came.notify_all()


class Jobs:
    """Jobs of a server, whose only host is the namespace."""

    def __init__(self, client: Client, image: str) -> None:
        self._client = client
        self._image = image

    def start(self, script: str) -> str:
        """Enqueue a script, and return its execution's id."""
        job = self._client.enqueue("bench", self._image, args=[script], entrypoint=["sh", "-c"])
        return job.execution.id

    def read(self, execution_id: str) -> Iterator[bytes]:
        """Yield what a script prints, as it comes. Leaves the program if the log is cut, or is not whole."""
        with self._client.tail(execution_id, sources=[STDOUT]) as tail:
            for event in tail:
                if isinstance(event, Output):
                    yield event.data
                elif isinstance(event, Disconnected) or (isinstance(event, End) and event.exit_status):
                    sys.exit(f"a job of the bench ended with {event}")

    def wait_until_running(self, count: int) -> None:
        until = time.monotonic() + START_SECONDS
        while sum(1 for _ in self._client.jobs(states=[pb.STATE_RUNNING])) < count:
            if time.monotonic() > until:
                sys.exit(f"{count} pods do not run after {START_SECONDS} s")
            time.sleep(0.2)

    def stop_all(self) -> None:
        self._client.stop_many(task_id="bench", grace=1)
        while next(self._client.jobs(states=[pb.STATE_RUNNING, pb.STATE_PREPARING, pb.STATE_QUEUED]), None):
            time.sleep(0.2)


@contextmanager
def pods_server(stage: Path, cluster: Cluster, namespace: str) -> Iterator[Running]:
    """A server with one host, the namespace."""
    relays = free_address(ADDRESS)
    settings = stage / "pods.toml"
    settings.write_text(
        f'insecure = true\nrelay_listen = "{relays}"\n[[hosts]]\nname = "pods"\nkind = "kubernetes"\n'
        f'max_running = {IDLE_PODS}\nnamespace = "{namespace}"\nkubeconfig = "{cluster.kubeconfig}"\n'
        f'kit_image = "{KIT_IMAGE}"\nrelay_address = "{relays}"\n'
    )
    with server(stage, "--config", str(settings)) as running:
        yield running


def pods(jobs: Jobs, bare: BarePods, rounds: int) -> Ratio:
    """Return the row of whole pods a second."""

    def ours() -> float:
        begin = time.perf_counter()
        # As many at a time as the bare ones: a thread waits for its job before it enqueues the next one.
        with ThreadPoolExecutor(AT_A_TIME) as threads:
            list(threads.map(lambda _: sum(map(len, jobs.read(jobs.start("true")))), range(PODS)))
        return PODS / (time.perf_counter() - begin)

    def theirs() -> float:
        begin = time.perf_counter()
        with ThreadPoolExecutor(AT_A_TIME) as threads:
            list(threads.map(lambda _: bare.run("true"), range(PODS)))
        return PODS / (time.perf_counter() - begin)

    what = f"{PODS} pods, {AT_A_TIME} at a time, against bare pods"
    return in_turn(what, "pods/s", 0.5, ours, theirs, rounds=rounds)


def first_byte(jobs: Jobs, bare: BarePods, rounds: int) -> Ratio:
    """Return the row of the time to the first byte, as a rate: one pod after another."""

    def seconds(read: Iterator[bytes], begin: float) -> float:
        next(read)
        took = time.perf_counter() - begin
        # To its end, so that nothing of it is left beside the next one.
        for _ in read:
            pass
        return took

    def of_jobs() -> float:
        begins = (time.perf_counter() for _ in range(FIRST_BYTES))
        return 60 * FIRST_BYTES / sum(seconds(jobs.read(jobs.start("echo first")), begin) for begin in begins)

    def of_bare() -> float:
        begins = (time.perf_counter() for _ in range(FIRST_BYTES))
        return 60 * FIRST_BYTES / sum(seconds(bare.read("echo first"), begin) for begin in begins)

    what = "enqueue to first byte, against create, first byte in the log"
    return in_turn(what, "first bytes/min", 0.5, of_jobs, of_bare, rounds=rounds)


def throughput(jobs: Jobs, bare: BarePods, rounds: int) -> Iterator[Ratio | str]:
    """Yield the row of a flood, and what the log of the node lost of it."""
    arrived: list[int] = []

    def rate(read: Iterator[bytes], *, bare_pod: bool) -> float:
        size, begin = len(next(read)), time.perf_counter()
        size += sum(map(len, read))
        if bare_pod:
            arrived.append(size)
        elif size != MEGABYTES * 1_000_000:
            sys.exit(f"{size} bytes of a job arrived")
        return size / 1e6 / (time.perf_counter() - begin)

    yield in_turn(
        f"{MEGABYTES} MB of lines to a reader, against the log of the node",
        "MB/s",
        1.0,
        lambda: rate(jobs.read(jobs.start(FLOOD)), bare_pod=False),
        lambda: rate(bare.read(FLOOD), bare_pod=True),
        rounds=rounds,
    )
    megabytes = ", ".join(f"{size / 1e6:.1f}" for size in arrived)
    yield f"of these {MEGABYTES} MB the log of the node brought (MB): {megabytes}"


def idle(jobs: Jobs, running: Running, rounds: int) -> Limit:
    """Return the row of what pods that are quiet take of the server."""
    for _ in range(IDLE_PODS):
        jobs.start("exec sleep 10000")
    jobs.wait_until_running(IDLE_PODS)
    costs = []
    for _ in range(rounds):
        begin, before = time.monotonic(), cpu_seconds(running.process_id)
        time.sleep(IDLE_SECONDS)
        minutes = (time.monotonic() - begin) / 60
        costs.append((cpu_seconds(running.process_id) - before) / minutes * 100 / IDLE_PODS)
    jobs.stop_all()
    return Limit(f"server's CPU for 100 quiet pods, by {IDLE_PODS}", "s/min", costs, 3.0)


def main() -> None:
    for name in sys.argv[1:]:
        if name not in ROWS:
            sys.exit(f"there is no row {name!r}; the rows are {', '.join(ROWS)}")
    cluster = running_cluster() or sys.exit("no cluster: make cluster ARGS='python -m bench.pods'")
    stage, rounds = Path(os.environ["STAGE_DIRECTORY"]), int(os.environ.get("ROUNDS", ROUNDS))
    print(
        f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, Python {sys.version.split()[0]}; "
        f"medians of {rounds} rounds in turn, ratio with its least and most",
        flush=True,
    )
    with ExitStack() as stack:
        namespace = cluster.make_namespace()
        stack.callback(cluster.remove_namespace, namespace)
        running = stack.enter_context(pods_server(stage, cluster, namespace))
        jobs = Jobs(stack.enter_context(Client(running.address)), cluster.image)
        bare = BarePods(cluster, namespace)
        rows: Mapping[str, Callable[[], Iterable[object]]] = {
            "pods": lambda: [pods(jobs, bare, rounds)],
            "first-byte": lambda: [first_byte(jobs, bare, rounds)],
            "throughput": lambda: throughput(jobs, bare, rounds),
            "idle": lambda: [idle(jobs, running, rounds)],
        }
        for name in sys.argv[1:] or ROWS:
            for row in rows[name]():
                print(row, flush=True)
        print(f"load at the end {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
