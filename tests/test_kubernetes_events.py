"""The events of pods, from an API server that forgets, breaks off, and sends what is no event."""

import json
import queue
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from fastlane_grpc.backend import BackendDown, BackendRefuses, ContainerEvent, UnreadableEvent
from fastlane_grpc.kubernetes.cluster_api import ClusterApi
from fastlane_grpc.kubernetes.pod_body import EXECUTION_LABEL
from fastlane_grpc.kubernetes.pod_events import PodEvents


def pod(name: str, **job: Any) -> dict[str, Any]:
    metadata = {"name": name, "uid": f"uid-{name}", "resourceVersion": "7", "labels": {EXECUTION_LABEL: name}}
    return {"metadata": metadata, "spec": {}, "status": {"containerStatuses": [{"name": "job", "state": job}]}}


RUNS = {"running": {"startedAt": "2026-11-29T10:00:00Z"}}
ENDED = {"terminated": {"exitCode": 3, "startedAt": "2026-11-29T10:00:00Z", "finishedAt": "2026-11-29T10:00:01Z"}}
FORGOTTEN = {"type": "ERROR", "object": {"code": 410, "message": "too old resource version"}}


class Server:
    """An API server whose answers a test gives in their order: a list of pods, or the lines of a watch."""

    def __init__(self, directory: Path) -> None:
        self.answers: queue.Queue[Any] = queue.Queue()
        self.asked: list[str] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                server.asked.append(self.path)
                answer = server.answers.get(timeout=30)
                self.send_response(answer if isinstance(answer, int) else 200)
                self.end_headers()
                if isinstance(answer, dict):
                    self.wfile.write(json.dumps(answer).encode())
                elif isinstance(answer, list):
                    for line in answer:
                        self.wfile.write((line if isinstance(line, bytes) else json.dumps(line).encode()) + b"\n")
                elif isinstance(answer, threading.Event):
                    self.wfile.flush()
                    answer.wait(30)

            def log_message(self, *arguments: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        kubeconfig = directory / "kubeconfig"
        cluster = {"name": "c", "cluster": {"server": f"http://127.0.0.1:{self._server.server_port}"}}
        context = {"name": "c", "context": {"cluster": "c", "user": "u"}}
        user = {"name": "u", "user": {"token": "t"}}
        values = {"clusters": [cluster], "contexts": [context], "users": [user], "current-context": "c"}
        kubeconfig.write_text(json.dumps({"apiVersion": "v1", "kind": "Config", **values}))
        self.api = ClusterApi(kubeconfig=kubeconfig, namespace="jobs", answer_seconds=30)

    def list(self, *pods: Any) -> None:
        self.answers.put({"metadata": {"resourceVersion": "5"}, "items": list(pods)})

    def watch(self, *lines: Any) -> None:
        self.answers.put(list(lines))

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    server = Server(tmp_path)
    yield server
    server.close()


def ends(events: list[Any]) -> list[tuple[str, bool, int | None]]:
    return [(event.execution_id, event.died, event.exit_code) for event in events]


def test_what_a_server_forgot_is_told_by_a_new_list(server: Server) -> None:
    server.list(pod("a", **RUNS), pod("b", **RUNS))
    server.watch({"type": "MODIFIED", "object": pod("a", **RUNS)}, FORGOTTEN)
    # Meanwhile a has ended, and b is gone.
    server.list(pod("a", **ENDED))
    server.answers.put(500)
    events: list[Any] = []
    with pytest.raises(OSError, match="fails for now"):
        collect(PodEvents(server.api, "i"), events)
    assert ends(events) == [("a", False, None), ("b", False, None), ("a", True, 3), ("b", True, None)]


def collect(stream: PodEvents, events: list[Any]) -> None:
    for event in stream.events():
        events.append(event)


def test_a_watch_goes_on_at_the_version_that_it_reached(server: Server) -> None:
    server.list()
    server.watch({"type": "BOOKMARK", "object": {"metadata": {"resourceVersion": "9"}}})
    server.watch({"type": "ADDED", "object": pod("a")}, {"type": "MODIFIED", "object": pod("a", **ENDED)})
    server.answers.put(410)
    server.list(pod("a", **ENDED))
    server.answers.put(500)
    events: list[Any] = []
    with pytest.raises(OSError, match="fails for now"):
        collect(PodEvents(server.api, "i"), events)
    assert ends(events) == [("a", False, None), ("a", True, 3)]
    watches = [path.partition("resourceVersion=")[2].partition("&")[0] for path in server.asked if "watch=true" in path]
    assert watches == ["5", "9", "7", "5"]


def test_each_reason_of_a_wait_is_told_once_and_the_start_after_it(server: Server) -> None:
    def failing(message: str) -> dict[str, Any]:
        return {"type": "MODIFIED", "object": pod("a", waiting={"reason": "ErrImagePull", "message": message})}

    server.list(pod("a"))
    server.watch(
        failing("first"), failing("first"), failing("second"), {"type": "MODIFIED", "object": pod("a", **RUNS)}
    )
    server.answers.put(500)
    events: list[Any] = []
    with pytest.raises(OSError, match="fails for now"):
        collect(PodEvents(server.api, "i"), events)
    assert ends(events) == [("a", False, None)] * 3


def test_a_pod_that_is_deleted_has_ended(server: Server) -> None:
    server.list(pod("a", **RUNS), pod("b", **RUNS))
    server.watch({"type": "DELETED", "object": pod("a", **ENDED)}, {"type": "DELETED", "object": pod("b", **RUNS)})
    server.answers.put(500)
    events: list[Any] = []
    with pytest.raises(OSError, match="fails for now"):
        collect(PodEvents(server.api, "i"), events)
    assert ends(events[2:]) == [("a", True, 3), ("b", True, None)]


@pytest.mark.parametrize(
    "line", [b"no JSON", b"[]", b"{}", b'{"type": "ADDED", "object": {"metadata": {}}}', b"[" * 100_000]
)
def test_a_line_that_is_no_event_is_told_and_passed_over(server: Server, line: bytes) -> None:
    server.list()
    server.watch(line, {"type": "ADDED", "object": pod("a", **RUNS)})
    stream = PodEvents(server.api, "i")
    events = stream.events()
    assert isinstance(next(events), UnreadableEvent)
    assert isinstance(next(events), ContainerEvent)


def test_a_stream_that_is_cut_ends_the_thread_that_reads_it(server: Server) -> None:
    server.list(pod("a", **RUNS))
    release = threading.Event()
    server.answers.put(release)
    stream = PodEvents(server.api, "i")
    first = threading.Event()

    def read() -> None:
        try:
            for _ in stream.events():
                first.set()
        except OSError:
            pass

    reader = threading.Thread(target=read)
    reader.start()
    assert first.wait(30)
    stream.cut()
    reader.join(30)
    release.set()
    assert not reader.is_alive()


def test_a_watch_that_is_silent_from_its_request_on_is_no_broken_one(server: Server) -> None:
    server.list()
    stream = PodEvents(server.api, "i")
    stream.set_timeout(0.1)
    with pytest.raises(TimeoutError):
        next(stream.events())
    server.watch()


def test_a_server_that_fails_is_down_and_one_that_forbids_refuses(server: Server) -> None:
    server.answers.put(503)
    with pytest.raises(BackendDown):
        PodEvents(server.api, "i")
    server.answers.put(403)
    with pytest.raises(BackendRefuses):
        PodEvents(server.api, "i")


def test_a_configuration_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(BackendDown, match="configuration of the cluster cannot be read"):
        ClusterApi(kubeconfig=tmp_path / "none", namespace="jobs")
