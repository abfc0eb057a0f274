"""The access log and the slow-call log: one line for each call of either door, and nothing secret in it."""

import json
import os
import socket
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from fastlane_grpc.call_log import CallLog
from fastlane_grpc.call_record import CallRecord
from fastlane_grpc.client import Client, PermissionDenied, Unauthenticated
from fastlane_grpc.config import ConfigError, Settings, in_force, load
from fastlane_grpc.errors import CannotServe
from fastlane_grpc.trust import Role, TokenFile
from fastlane_grpc.v1 import fastlane_pb2 as pb
from fastlane_grpc.v1 import fastlane_pb2_grpc as pb_grpc
from tests import forked
from tests.recorder_program import eventually
from tests.serving import Server

WRONG = "flt_" + "y" * 43


@dataclass(frozen=True, slots=True)
class Logged:
    """A server that requires tokens and logs each call."""

    server: Server
    file: Path
    token: str

    def client(self) -> Client:
        return Client(self.server.address, token=self.token, retry_for=0, timeout=20)

    def lines(self, **fields: object) -> Sequence[Mapping[str, Any]]:
        """Return the lines with these fields."""
        found = [json.loads(line) for line in self.file.read_text().splitlines()]
        return [line for line in found if fields.items() <= line.items()]

    def line(self, **fields: object) -> Mapping[str, Any]:
        """Return the one line with these fields, once it is there."""
        eventually(lambda: len(self.lines(**fields)) == 1)
        [line] = self.lines(**fields)
        return line

    def ask(self, verb: str, path: str, body: str | None = None, **headers: str) -> bytes:
        connection = HTTPConnection("127.0.0.1", self.server.http_port, timeout=20)
        connection.request(verb, path, body, {"Authorization": f"Bearer {self.token}", **headers})
        data = connection.getresponse().read()
        connection.close()
        return data


@pytest.fixture(scope="module")
def logged(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Logged]:
    directory = tmp_path_factory.mktemp("logged")
    (directory / "data").mkdir()
    token = TokenFile(directory / "data").create("ada", Role.SUBMIT)
    server = Server(
        directory / "data",
        http_listen="127.0.0.1:0",
        engine="unix:///nobody",
        auth="tokens",
        access_log=str(directory / "access.log"),
        slow_call="1ms",
    )
    try:
        yield Logged(server, directory / "access.log", token)
    finally:
        server.stop()


def test_a_call_by_grpc_is_a_line(logged: Logged) -> None:
    with logged.client() as client:
        job = client.enqueue("mail", "busybox", envs={"PASSWORD": "hunter2"}, request_id="r-1")
    line = logged.line(method="EnqueueJob", request_id="r-1")
    assert (line["door"], line["caller"], line["code"]) == ("grpc", "ada", "OK")
    assert (line["task_id"], line["job_id"], line["execution_id"]) == ("mail", job.id, job.execution.id)
    assert line["peer"] == job.caller_address
    assert line["bytes_sent"] > len(job.id)
    assert 0 < line["seconds"] < 60
    assert line["time"].endswith("Z")


def test_a_call_by_http_is_a_line(logged: Logged) -> None:
    body = json.dumps({"task_id": "web", "spec": {"image": "busybox"}})
    answer = logged.ask("POST", "/jobs", body, **{"X-Request-Id": "proxy-7", "Content-Type": "application/json"})
    line = logged.line(door="http", method="EnqueueJob", task_id="web")
    assert (line["path"], line["caller"], line["code"], line["trace"]) == ("POST /jobs", "ada", "201", "proxy-7")
    assert (line["job_id"], line["bytes_sent"]) == (json.loads(answer)["job"]["id"], len(answer))
    assert line["peer"].startswith("ipv4:127.0.0.1:")


def test_headers_of_a_proxy_do_not_say_who_calls(logged: Logged) -> None:
    forged = {
        "Content-Type": "application/json",
        "X-Forwarded-For": "10.9.9.9",
        "Forwarded": "for=10.9.9.9",
        "X-Forwarded-User": "root",
    }
    answer = json.loads(logged.ask("POST", "/tasks/forged", '{"image": "busybox"}', **forged))
    line = logged.line(method="EnqueueJob", task_id="forged")
    assert (line["caller"], line["peer"].rpartition(":")[0]) == ("ada", "ipv4:127.0.0.1")
    assert (answer["job"]["caller"], answer["job"]["caller_address"]) == ("ada", line["peer"])


def test_a_stream_is_a_line_at_its_end(logged: Logged) -> None:
    with logged.client() as client:
        job = client.enqueue("streams", "busybox")
        stream = iter(client.tail_job(job.id))
        next(stream)
        assert logged.lines(method="StreamJobLogs", job_id=job.id) == []
        client.stop(job.id)
        list(stream)
    line = logged.line(method="StreamJobLogs", job_id=job.id)
    assert line["bytes_sent"] > 50
    # A client that has the last message need not wait for the end of the call.
    assert line["code"] in {"OK", "CANCELLED"}
    data = logged.ask("GET", f"/jobs/{job.id}/logs?source=system", Accept="application/jsonl")
    line = logged.line(path="GET /jobs/{job_id}/logs", job_id=job.id)
    assert (line["code"], line["bytes_sent"]) == ("200", len(data))


def test_a_stream_whose_client_leaves_is_a_line(logged: Logged) -> None:
    with grpc.insecure_channel(logged.server.address) as channel:
        metadata = (("authorization", f"Bearer {logged.token}"),)
        request = pb.WatchJobsRequest(task_id="nothing")
        watch = pb_grpc.JobServiceStub(channel).WatchJobs(request, metadata=metadata)
        next(watch)
        watch.cancel()
    assert logged.line(method="WatchJobs", door="grpc")["code"] == "CANCELLED"
    with socket.create_connection(("127.0.0.1", logged.server.http_port), timeout=20) as raw:
        head = f"GET /watch?task_id=nothing HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {logged.token}\r\n\r\n"
        raw.sendall(head.encode())
        assert raw.recv(15) == b"HTTP/1.1 200 OK"
    assert logged.line(method="WatchJobs", door="http")["bytes_sent"] > 0


def test_a_refused_call_is_a_line(logged: Logged) -> None:
    with Client(logged.server.address, token=WRONG, retry_for=0) as client, pytest.raises(Unauthenticated):
        client.server_info()
    assert "caller" not in logged.line(method="GetServerInfo", code="UNAUTHENTICATED")
    with logged.client() as client, pytest.raises(PermissionDenied):
        client.prune(older_than=timedelta(days=1))
    assert logged.line(method="Prune", code="PERMISSION_DENIED")["door"] == "grpc"
    logged.ask("POST", "/prune", "{}", Authorization=f"Bearer {WRONG}")
    assert logged.line(method="Prune", door="http")["code"] == "401"
    logged.ask("GET", f"/nowhere/{WRONG}")
    assert logged.line(path="GET other")["code"] == "404"
    logged.ask("GET", f"/jobs/{WRONG}")
    assert logged.line(path="GET /jobs/{job_id}", code="404").get("job_id") in {None, "flt_***"}


def test_health_and_metrics_are_lines(logged: Logged) -> None:
    with grpc.insecure_channel(logged.server.address) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        stub.Check(health_pb2.HealthCheckRequest(service="live"), timeout=20)
    assert logged.line(method="grpc.health.v1.Health/Check")["code"] == "OK"
    size = len(logged.ask("GET", "/metrics"))
    assert logged.line(method="/metrics")["bytes_sent"] == size


def test_a_slow_call_says_what_it_waited_for(logged: Logged) -> None:
    # No machine stores so many jobs in a millisecond.
    requests = [pb.EnqueueJobRequest(task_id="slow", spec=pb.JobSpec(image="busybox")) for _ in range(500)]
    with logged.client() as client:
        list(client.enqueue_many(requests))
    logs = map(json.loads, filter(None, logged.server.log.splitlines()))
    line = next(each for each in logs if each["event"] == "slow call" and each["method"] == "BatchEnqueueJobs")
    assert (line["level"], line["door"], line["caller"], line["code"]) == ("warning", "grpc", "ada", "OK")
    assert 0 < line["store_write_seconds"] <= line["seconds"]
    assert line["other_seconds"] >= 0


def test_no_line_has_a_secret(logged: Logged) -> None:
    with logged.client() as client:
        client.enqueue("secret", "busybox", envs={"PASSWORD": "hunter2"}, args=["--token", "hunter3"])
        with suppress(Exception):
            client.job(logged.token)
    eventually(lambda: len(logged.lines(task_id="secret")) == 1)
    for text in (logged.file.read_text(), logged.server.log):
        for secret in (logged.token, WRONG, "hunter2", "hunter3", "busybox"):
            assert secret not in text


def test_a_file_that_was_moved_away_is_begun_anew(logged: Logged) -> None:
    before = logged.file.with_suffix(".1")
    with logged.client() as client:
        client.enqueue("rotated", "busybox")
        logged.line(task_id="rotated")
        logged.file.rename(before)
        client.enqueue("after", "busybox")
        eventually(logged.file.exists)
        logged.line(task_id="after")
    assert logged.lines(task_id="rotated") == []
    assert logged.file.stat().st_mode & 0o777 == 0o600


# ---- the log alone


def record() -> CallRecord:
    return CallRecord("grpc", "GetJob", "ipv4:127.0.0.1:1")


def test_a_file_that_hangs_holds_up_no_call(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    log = CallLog(str(pipe), most_waiting=3)
    # A pipe is full after 64 KiB, and what it does not take is dropped.
    for _ in range(2000):
        log.end(record(), "OK")
    log.close()
    with os.fdopen(reader, "rb") as file:
        lines = file.read().splitlines()
    assert 3 <= len(lines) < 2000
    assert all(json.loads(line)["method"] == "GetJob" for line in lines[:-1])


def test_lines_of_many_calls_are_whole(tmp_path: Path) -> None:
    log = CallLog(str(tmp_path / "log"))
    for number in range(3000):
        each = record()
        each.note(pb.GetJobRequest(job_id=f'{number}\n"é'))
        log.end(each, "OK")
    log.close()
    lines = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    assert [line["job_id"] for line in lines] == [f'{number}\n"é' for number in range(3000)]


def test_a_log_that_cannot_be_written_is_an_error_at_the_start(tmp_path: Path) -> None:
    threads = threading.active_count()
    with pytest.raises(CannotServe, match=r"cannot write the access log /nowhere/log: No such file .*set access_log"):
        CallLog("/nowhere/log")
    assert threading.active_count() == threads


def test_the_destination_is_a_path_or_stderr_or_off(tmp_path: Path) -> None:
    assert Settings().access_log is None
    read = {text: load({"access_log": text}, {}, None).access_log for text in ("off", "-", "/var/log/x")}
    assert read == {"off": None, "-": "-", "/var/log/x": "/var/log/x"}


def test_the_time_of_a_slow_call_may_be_in_milliseconds() -> None:
    read = {text: in_force({"slow_call": text}, {}, None) for text in ("250ms", "1500ms", "2s", "1m30s", "off")}
    seconds = [each.settings.slow_call and each.settings.slow_call.total_seconds() for each in read.values()]
    assert seconds == [0.25, 1.5, 2, 90, None]
    for text in ("0ms", "-1s", "1.5s", "fast"):
        with pytest.raises(ConfigError, match=r"slow_call in --slow-call is .*"):
            load({"slow_call": text}, {}, None)


def test_lines_for_stderr_are_beside_the_log_of_the_server(tmp_path: Path) -> None:
    server = Server(tmp_path / "data", engine="unix:///nobody", access_log="-")
    with Client(server.address, retry_for=0) as client:
        client.server_info()
    server.stop()
    lines = [json.loads(line) for line in server.log.splitlines()]
    assert [line["method"] for line in lines if "door" in line] == ["GetServerInfo"]


def test_lines_for_stderr_are_whole_however_many_threads_write() -> None:
    code = """if 1:
        import structlog
        from fastlane_grpc.debugging import RecentLines
        from fastlane_grpc.app import _log_to_stderr
        from fastlane_grpc.call_log import CallLog
        from fastlane_grpc.call_record import CallRecord
        _log_to_stderr(RecentLines(), colors=False)
        calls, log = CallLog("-"), structlog.get_logger()
        for _ in range(2000):
            calls.end(CallRecord("grpc", "GetJob", "peer"), "OK")
            log.info("a line of the server")
        calls.close()
    """
    lines = [json.loads(line) for line in forked.run(code).stderr.splitlines()]
    of_calls = [line for line in lines if "door" in line]
    # On a busy machine the last ones may not be written in the time that closing takes.
    assert of_calls
    assert len(lines) - len(of_calls) == 2000
