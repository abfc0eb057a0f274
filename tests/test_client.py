import contextlib
import gc
import inspect
import itertools
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import grpc
import grpc_testing
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastlane_grpc import client as fastlane_client
from fastlane_grpc.client import Backoff, Client, Disconnected, End, Event, Output, StateChange, requests
from fastlane_grpc.client.errors import BY_REASON
from fastlane_grpc.v1 import fastlane_pb2 as pb
from tests.cutting_relay import CuttingRelay
from tests.scripted_server import Cut, Log, Piece, ScriptedServer
from tests.tailing import (
    HELLO,
    NOT_TEXT,
    QUICK,
    assert_notices_alternate,
    cuts,
    data_of,
    endless,
    forget,
    gaps_of,
    pieces,
    unused_address,
)


@pytest.fixture(scope="module")
def running_server() -> Iterator[ScriptedServer]:
    server = ScriptedServer()
    yield server
    server.stop()


@pytest.fixture
def server(running_server: ScriptedServer) -> ScriptedServer:
    forget(running_server)
    return running_server


@pytest.fixture(scope="module")
def client(running_server: ScriptedServer) -> Iterator[Client]:
    with Client(running_server.address, backoff=QUICK) as client:
        yield client


# ---------------------------------------------------------------------------------------------------------------- calls


def test_enqueue_sends_every_field_and_answers_the_job(server: ScriptedServer, client: Client) -> None:
    job = client.enqueue(
        "send-mail",
        "registry:5000/mail:1",
        "python 'send mail.py'",
        args=["--to", "a b"],
        envs={"A": "1"},
        entrypoint=["/tini", "--"],
        working_dir="/app",
        user="1:1",
        timeout=timedelta(minutes=2),
        pull_policy="always",
        memory_bytes=1 << 20,
        cpus=0.5,
        pids=7,
        network="none",
        read_only_root=True,
        stop_signal="SIGINT",
        stop_grace=0.25,
        priority=-3,
        labels={"team": "x"},
        metadata={"nested": {"list": [1, "a", None]}},
        start_in=timedelta(minutes=10),
        start_at=datetime(2030, 1, 31, 8, tzinfo=UTC),
        expire_time=datetime(2030, 1, 31, 9, tzinfo=UTC),
        cron=fastlane_client.Cron("0 3 * * *", "Europe/Berlin", overlap="replace", catch_up="none", jitter=5),
        retry=fastlane_client.Retry(max_retries=3, initial_backoff=0.5, jitter=False, causes=["timed_out"]),
        unique=fastlane_client.Unique("nightly", "use_existing"),
        history=7,
        stop_when_unwatched="1m",
        shm_bytes=1 << 21,
        memory_reservation_bytes=1 << 19,
        cpuset="0-1",
        tmpfs=["/tmp", fastlane_client.Tmpfs("/scratch", 1 << 20, 0o700, executable=True)],
        volumes=[fastlane_client.Volume("cache", "/cache", read_only=True)],
        outputs=["/dist"],
        devices=["/dev/fuse", fastlane_client.Device("/dev/sdb", "/dev/disk", "r")],
        gpus=fastlane_client.Gpus(ids=["0"]),
        stdin=b"in",
        inputs=[fastlane_client.Input("/etc/a", b"content", mode=0o600)],
        ulimits=[fastlane_client.Ulimit("core", 0), fastlane_client.Ulimit("nofile", 10, -1)],
        extra_hosts={"db": "192.0.2.7"},
        dns=fastlane_client.Dns(["192.0.2.53"], ["example.com"], ["ndots:2"]),
        cap_drop=["NET_RAW"],
        registry_credential="ci",
        secret_envs={"A": "a"},
        notifications=[fastlane_client.Mail("ops@example.org", states=[pb.STATE_FAILED])],
        request_id="r1",
        validate_only=True,
    )
    [request] = server.received(pb.EnqueueJobRequest)
    assert job.id == "job-1"
    assert (request.task_id, request.request_id, request.validate_only) == ("send-mail", "r1", True)
    spec = request.spec
    assert (spec.image, spec.command, list(spec.args)) == (
        "registry:5000/mail:1",
        "python 'send mail.py'",
        ["--to", "a b"],
    )
    assert (dict(spec.envs), list(spec.entrypoint), spec.working_dir, spec.user) == (
        {"A": "1"},
        ["/tini", "--"],
        "/app",
        "1:1",
    )
    assert (spec.timeout.ToTimedelta(), spec.stop_grace.ToTimedelta()) == (
        timedelta(minutes=2),
        timedelta(milliseconds=250),
    )
    assert spec.pull_policy == pb.JobSpec.PULL_POLICY_ALWAYS
    assert spec.limits == pb.Limits(
        memory_bytes=1 << 20, cpus=0.5, pids=7, shm_bytes=1 << 21, memory_reservation_bytes=1 << 19, cpuset="0-1"
    )
    assert list(spec.tmpfs) == [
        pb.Tmpfs(path="/tmp"),
        pb.Tmpfs(path="/scratch", size_bytes=1 << 20, mode=0o700, executable=True),
    ]
    assert list(spec.devices) == [
        pb.Device(path="/dev/fuse"),
        pb.Device(path="/dev/sdb", container_path="/dev/disk", permissions="r"),
    ]
    assert spec.gpus == pb.Gpus(ids=["0"])
    assert (list(spec.outputs), spec.stdin) == (["/dist"], pb.Stdin(content=b"in"))
    assert list(spec.inputs) == [pb.Input(path="/etc/a", content=b"content", mode=0o600)]
    assert list(spec.volumes) == [pb.Volume(name="cache", path="/cache", read_only=True)]
    assert list(spec.ulimits) == [pb.Ulimit(name="core", soft=0), pb.Ulimit(name="nofile", soft=10, hard=-1)]
    assert (dict(spec.extra_hosts), list(spec.cap_drop)) == ({"db": "192.0.2.7"}, ["NET_RAW"])
    assert (spec.registry_credential, dict(spec.secret_envs)) == ("ci", {"A": "a"})
    assert spec.dns == pb.Dns(servers=["192.0.2.53"], search_domains=["example.com"], options=["ndots:2"])
    assert (spec.network, spec.read_only_root, spec.stop_signal, spec.priority) == ("none", True, "SIGINT", -3)
    assert dict(spec.labels) == {"team": "x"}
    assert list(spec.metadata["nested"]["list"]) == [1, "a", None]
    assert spec.start_in.ToTimedelta() == timedelta(minutes=10)
    assert (spec.start_at.ToDatetime(UTC).hour, spec.expire_time.ToDatetime(UTC).hour) == (8, 9)
    assert (spec.cron.expression, spec.cron.time_zone, spec.cron.overlap, spec.cron.catch_up) == (
        "0 3 * * *",
        "Europe/Berlin",
        pb.Cron.OVERLAP_REPLACE,
        pb.Cron.CATCH_UP_NONE,
    )
    assert (spec.retry.max_retries, spec.retry.jitter, list(spec.retry.causes)) == (
        3,
        pb.Retry.JITTER_NONE,
        [pb.Retry.RETRY_CAUSE_TIMED_OUT],
    )
    assert spec.retry.initial_backoff.ToTimedelta() == timedelta(milliseconds=500)
    assert spec.unique == pb.Unique(key="nightly", conflict=pb.Unique.CONFLICT_USE_EXISTING)
    assert spec.history == 7
    assert spec.stop_when_unwatched.ToTimedelta() == timedelta(minutes=1)
    assert [(list(each.mail.to), list(each.states)) for each in spec.notifications] == [
        (["ops@example.org"], [pb.STATE_FAILED])
    ]
    assert {field.name for field, _ in spec.ListFields()} == set(pb.JobSpec.DESCRIPTOR.fields_by_name), (
        "a field of JobSpec is missing here"
    )


@pytest.mark.parametrize("name", ["start_at", "expire_time"])
def test_enqueue_takes_no_time_without_its_zone(server: ScriptedServer, client: Client, name: str) -> None:
    with pytest.raises(ValueError, match="has no time zone"):
        client.enqueue("t", "busybox", **{name: datetime(2030, 1, 31, 8)})  # type: ignore[arg-type]  # noqa: DTZ001
    assert server.requests == []


@pytest.mark.parametrize(
    ("state", "outcome", "status"),
    [
        (pb.STATE_SUCCEEDED, pb.Outcome(exit_code=0), 0),
        (pb.STATE_FAILED, pb.Outcome(exit_code=3), 3),
        (pb.STATE_FAILED, pb.Outcome(), 125),
        (pb.STATE_TIMED_OUT, pb.Outcome(exit_code=137), 124),
        (pb.STATE_STOPPED, pb.Outcome(exit_code=0), 130),
        (pb.STATE_EXPIRED, pb.Outcome(), 125),
        (pb.STATE_LOST, pb.Outcome(), 125),
        (77, pb.Outcome(exit_code=0), 125),
        (pb.STATE_SCHEDULED, None, 75),
        (pb.STATE_RUNNING, None, 75),
    ],
)
def test_the_exit_status_of_a_job_is_by_its_own_outcome(state: int, outcome: pb.Outcome | None, status: int) -> None:
    assert fastlane_client.exit_status(pb.Job(state=state, outcome=outcome)) == status  # type: ignore[arg-type]


def test_enqueue_leaves_unset_what_was_not_given(server: ScriptedServer, client: Client) -> None:
    client.enqueue("t", "busybox")
    [request] = server.received(pb.EnqueueJobRequest)
    assert request.spec == pb.JobSpec(image="busybox")


def test_enqueue_is_sent_again_with_the_same_request_id_while_the_server_is_away(
    server: ScriptedServer, client: Client
) -> None:
    server.refusals.extend(
        [
            (grpc.StatusCode.UNAVAILABLE, "", {}),
            (grpc.StatusCode.UNAVAILABLE, "SERVER_STOPPING", {"retry_seconds": 0.001}),
        ]
    )
    client.enqueue("t", "busybox")
    client.enqueue("t", "busybox")
    ids = [request.request_id for request in server.received(pb.EnqueueJobRequest)]
    assert ids[0]
    assert ids[0] == ids[1] == ids[2] != ids[3]


def test_a_retry_waits_as_long_as_the_server_asks_and_not_beyond_the_timeout(server: ScriptedServer) -> None:
    with Client(server.address, timeout=5, backoff=QUICK) as client:
        server.refusals.append((grpc.StatusCode.RESOURCE_EXHAUSTED, "DISK_FULL", {"retry_seconds": 60.0}))
        with pytest.raises(fastlane_client.Exhausted) as refused:
            client.enqueue("t", "busybox")
        assert refused.value.retry_seconds == 60
        assert len(server.requests) == 1
        server.refusals.append((grpc.StatusCode.RESOURCE_EXHAUSTED, "DISK_FULL", {"retry_seconds": 0.01}))
        assert client.enqueue("t", "busybox").id == "job-1"


def test_job_execution_stop_and_server_info_answer_what_the_server_has(server: ScriptedServer, client: Client) -> None:
    server.logs["e"] = HELLO
    assert client.job("job-1").execution.id == "execution-1"
    assert client.execution("e").job_id == "job-1"
    assert client.stop("job-1", "enough", timedelta(seconds=3)).id == "job-1"
    [stop] = server.received(pb.StopJobRequest)
    assert (stop.note, stop.grace.seconds) == ("enough", 3)
    client.stop("job-1", grace=0)
    assert server.received(pb.StopJobRequest)[1].HasField("grace"), "zero is `kill at once`, unset the job's own grace"
    assert client.server_info().version == "9.9.9"


def test_a_list_has_what_all_its_pages_have_and_fetches_them_when_they_are_needed(
    server: ScriptedServer, client: Client
) -> None:
    server.empty_pages = True
    server.jobs.extend(pb.Job(id=f"job {number}", task_id="t" if number % 2 else "u") for number in range(10))
    listed = client.jobs(task_id="t", page_size=2)
    assert server.requests == []
    assert next(listed).id == "job 1"
    assert len(server.requests) == 2, "the first page, which was empty, and the second"
    assert [job.id for job in listed] == ["job 3", "job 5", "job 7", "job 9"]
    server.executions.extend(pb.Execution(id=f"execution {number}", job_id="job 1") for number in range(5))
    assert len(list(client.executions(job_id="job 1", page_size=2))) == 5
    server.tasks.extend(pb.TaskSummary(id=f"task {number}") for number in range(3))
    assert [task.id for task in client.tasks(page_size=1)] == ["task 0", "task 1", "task 2"]


def test_a_list_asks_for_what_it_was_told(server: ScriptedServer, client: Client) -> None:
    since = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    states = [pb.STATE_FAILED, pb.STATE_LOST]
    until = since + timedelta(days=1)
    filters = {
        "task_id": "t",
        "labels": {"a": "b"},
        "since": since,
        "until": until,
        "with_spec": True,
        "id_prefix": "01",
        "page_size": 7,
    }
    assert list(client.jobs(states=states, **filters)) == []  # type: ignore[arg-type]
    assert list(client.executions(states=states, job_id="j", task_id="t", host="h", id_prefix="02", page_size=8)) == []
    jobs, executions = server.requests
    assert (jobs.task_id, list(jobs.states), dict(jobs.labels), jobs.with_spec) == ("t", states, {"a": "b"}, True)
    assert (jobs.since_time.ToDatetime(UTC), jobs.until_time.ToDatetime(UTC)) == (since, until)
    assert (jobs.id_prefix, jobs.page_size) == ("01", 7)
    assert executions == pb.ListExecutionsRequest(
        job_id="j", task_id="t", states=states, host="h", id_prefix="02", page_size=8
    )


def test_a_time_that_is_not_certain_is_refused(client: Client) -> None:
    with pytest.raises(ValueError, match="time zone"):
        list(client.jobs(since=datetime(2026, 1, 1)))  # noqa: DTZ001


def test_task_hosts_and_stop_execution_answer_what_the_server_has(server: ScriptedServer, client: Client) -> None:
    server.tasks.append(pb.TaskSummary(id="t", jobs=3))
    server.hosts.append(pb.EngineHost(name="here"))
    server.logs["e"] = HELLO
    assert client.task("t").jobs == 3
    with pytest.raises(fastlane_client.NotFound):
        client.task("u")
    assert [host.name for host in client.hosts()] == ["here"]
    assert client.stop_execution("e", "enough", 0).id == "e"
    [stop] = server.received(pb.StopExecutionRequest)
    assert (stop.note, stop.HasField("grace")) == ("enough", True)


def test_pruning_goes_on_to_the_end_and_counts_once_where_it_deletes_nothing(
    server: ScriptedServer, client: Client
) -> None:
    answers = [pb.PruneResponse(jobs=1000, logs=1200, bytes=9, more=True), pb.PruneResponse(jobs=5, logs=5, bytes=1)]
    server.prunings.extend(answers)
    assert client.prune(timedelta(days=30), task_id="t") == pb.PruneResponse(jobs=1005, logs=1205, bytes=10)
    request = server.requests[0]
    assert (request.older_than.seconds, request.task_id, request.logs_only, request.validate_only) == (
        30 * 86400,
        "t",
        False,
        False,
    )
    server.prunings.append(answers[0])
    assert client.prune(timedelta(0), logs_only=True, validate_only=True) == answers[0]
    assert (server.requests[2].HasField("older_than"), server.requests[2].logs_only) == (True, True)


def test_every_call_of_the_contract_is_a_method_of_both_clients() -> None:
    calls = {method.name for service in pb.DESCRIPTOR.services_by_name.values() for method in service.methods}
    names = {
        "StreamExecutionLogs": "tail",
        "StreamJobLogs": "tail_job",
        "StopJob": "stop",
        "EnqueueJob": "enqueue",
        "GetServerInfo": "server_info",
        "BatchEnqueueJobs": "enqueue_many",
        "BatchStopJobs": "stop_many",
        "BatchRetryJobs": "retry_many",
        "WatchJobs": "watch",
        "RedeliverNotification": "redeliver",
        "UploadInput": "upload",
    }
    for call in calls:
        words = re.findall("[A-Z][a-z]+", call)
        name = names.get(call) or "_".join(words[1:] if words[0] in {"Get", "List"} else words).lower()
        for kind in (Client, fastlane_client.AsyncClient):
            assert hasattr(kind, name), call


@pytest.mark.parametrize(
    ("options", "request_of"),
    [(fastlane_client.JobOptions, requests.enqueue), (fastlane_client.ExecutionTailOptions, requests.tail)],
)
def test_the_options_that_are_told_are_those_that_are_taken(options: type, request_of: Callable[..., object]) -> None:
    taken = {name for name, each in inspect.signature(request_of).parameters.items() if each.kind is each.KEYWORD_ONLY}
    assert set(options.__annotations__) == taken


@pytest.mark.parametrize(
    ("code", "reason", "kind"),
    [
        (grpc.StatusCode.NOT_FOUND, "JOB_NOT_FOUND", fastlane_client.NotFound),
        (grpc.StatusCode.NOT_FOUND, "EXECUTION_NOT_FOUND", fastlane_client.NotFound),
        (grpc.StatusCode.UNIMPLEMENTED, "UNKNOWN_FIELD", fastlane_client.UnknownField),
        (grpc.StatusCode.ALREADY_EXISTS, "REQUEST_ID_REUSED", fastlane_client.RequestIdReused),
        (grpc.StatusCode.INTERNAL, "DEFECT", fastlane_client.ServerDefect),
        (grpc.StatusCode.NOT_FOUND, "A_REASON_OF_TOMORROW", fastlane_client.NotFound),
        (grpc.StatusCode.PERMISSION_DENIED, "", fastlane_client.PermissionDenied),
        (grpc.StatusCode.UNIMPLEMENTED, "", fastlane_client.UnknownField),
    ],
)
def test_an_error_is_typed_and_carries_what_the_server_said(
    server: ScriptedServer, client: Client, code: grpc.StatusCode, reason: str, kind: type[fastlane_client.Error]
) -> None:
    server.refusals.append((code, reason, {"message": "not this one", "job_id": "j"}))
    with pytest.raises(fastlane_client.Error) as refused:
        client.job("j")
    assert type(refused.value) is kind
    assert (refused.value.code, refused.value.reason, str(refused.value)) == (code, reason, "not this one")
    assert refused.value.metadata == ({"job_id": "j"} if reason else {})
    assert len(server.requests) == 1, "an answer that will not change is not asked for again"


def test_invalid_fields_come_with_what_is_wrong_with_each(server: ScriptedServer, client: Client) -> None:
    violations = [("spec.image", "is required"), ('spec.envs["A=B"]', "a name has no =")]
    server.refusals.append((grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD", {"violations": violations}))
    with pytest.raises(fastlane_client.InvalidRequest) as refused:
        client.enqueue("t", "")
    assert list(refused.value.violations) == violations


def test_a_server_that_is_not_there_is_an_error_after_retry_for() -> None:
    with (
        Client(unused_address(), retry_for=0.05, backoff=QUICK) as client,
        pytest.raises(fastlane_client.ServerUnavailable) as refused,
    ):
        client.job("j")
    assert refused.value.reason == ""


def test_every_reason_of_the_contract_has_its_class() -> None:
    reasons = {name.removeprefix("ERROR_REASON_") for name in pb.ErrorReason.keys()} - {"UNSPECIFIED"}  # noqa: SIM118
    assert reasons == set(BY_REASON)


def test_the_words_of_jobs_are_had_without_loading_grpc() -> None:
    before = "import sys, fastlane_grpc as f, fastlane_grpc.model; assert 'grpc' not in sys.modules"
    subprocess.run([sys.executable, "-c", f"{before}; f.Client; assert 'grpc' in sys.modules"], check=True)


def test_a_client_loads_no_logging_and_nothing_of_a_server() -> None:
    loaded = "import sys, fastlane_grpc.client; print(*{name.partition('.')[0] for name in sys.modules})"
    names = subprocess.run([sys.executable, "-c", loaded], check=True, capture_output=True, text=True).stdout.split()
    assert "grpc" in names
    assert not {"aiohttp", "docker", "requests", "sqlite_utils", "starlette", "structlog", "uvicorn"} & {*names}


def test_a_call_over_a_channel_of_ones_own() -> None:
    channel = grpc_testing.channel(pb.DESCRIPTOR.services_by_name.values(), grpc_testing.strict_real_time())
    method = pb.DESCRIPTOR.services_by_name["JobService"].methods_by_name["EnqueueJob"]
    with ThreadPoolExecutor(1) as caller, Client(channel, backoff=QUICK) as client:
        answer = caller.submit(client.enqueue, "t", "busybox", "echo hi")
        _, first, call = channel.take_unary_unary(method)
        call.terminate(None, (), grpc.StatusCode.UNAVAILABLE, "connection refused")
        _, second, call = channel.take_unary_unary(method)
        call.send_initial_metadata(())
        call.terminate(pb.EnqueueJobResponse(job=pb.Job(id="j")), (), grpc.StatusCode.OK, "")
        assert answer.result(10).id == "j"
    assert first == second
    assert first.spec.command == "echo hi"


# ------------------------------------------------------------------------------------------------------------- the tail


def test_a_tail_yields_states_output_and_the_end(server: ScriptedServer, client: Client) -> None:
    server.logs["e"] = Log(
        HELLO.pieces, state=pb.STATE_FAILED, exit_status=3, outcome=pb.Outcome(reason=pb.REASON_EXIT_CODE, exit_code=3)
    )
    events = list(client.tail("e"))
    assert [type(event) for event in events] == [StateChange, Output, Output, Output, Output, StateChange, End]
    first = events[1]
    assert isinstance(first, Output)
    assert first == Output(1, 0, b"hello\n", "", 1_700_000_000_123_456_789, 1)
    assert first.time == datetime(2023, 11, 14, 22, 13, 20, 123456, UTC)
    end = events[-1]
    assert isinstance(end, End)
    assert (end.sealed, end.state, end.exit_status, end.outcome) == (True, pb.STATE_FAILED, 3, server.logs["e"].outcome)
    assert [totals.bytes for totals in end.totals] == [12, 3, 9]


def test_a_tail_asks_for_what_it_was_told(server: ScriptedServer, client: Client) -> None:
    server.logs["e"] = HELLO
    events = list(client.tail("e", sources=[fastlane_client.STDERR], follow=False, heartbeat=timedelta(seconds=2)))
    assert (data_of(events, 1), data_of(events, 2)) == (b"", b"oh\n")
    [request] = server.received(pb.StreamExecutionLogsRequest)
    assert (request.HasField("follow"), request.follow, list(request.sources), request.heartbeat_interval.seconds) == (
        True,
        False,
        [2],
        2,
    )


def test_a_tail_of_the_last_lines_takes_its_first_chunk_where_it_comes(server: ScriptedServer, client: Client) -> None:
    server.logs["e"] = Log(HELLO.pieces, begin="2.0")
    since = datetime(2026, 1, 2, tzinfo=UTC)
    events = list(client.tail("e", tail_lines=2, since=since))
    assert [data_of(events, source) for source in (1, 2, 3)] == [b"world\n", b"", b"it ended\n"]
    [request] = server.received(pb.StreamExecutionLogsRequest)
    assert (request.tail_lines, request.since_time.ToDatetime(UTC)) == (2, since)


def test_a_tail_of_the_last_lines_that_was_cut_goes_on_by_its_cursor(server: ScriptedServer, client: Client) -> None:
    server.logs["e"] = Log(HELLO.pieces, begin="2.0", chunks_per_message=1)
    server.cuts.extend([Cut(0, "unavailable"), Cut(2, "unavailable"), Cut(1, "ok")])
    events = list(client.tail("e", tail_lines=0))
    assert [data_of(events, source) for source in (1, 2, 3)] == [b"world\n", b"", b"it ended\n"]
    sent = server.received(pb.StreamExecutionLogsRequest)
    assert [(each.cursor, each.HasField("tail_lines")) for each in sent] == [
        ("", True),
        ("", True),
        ("3.0", True),
        ("3.0", True),
    ]


def test_text_in_place_of_bytes(server: ScriptedServer, client: Client) -> None:
    server.logs["e"] = Log([Piece(1, "grüße\n".encode()), Piece(1, b"\xff\n")])
    outputs = [event for event in client.tail("e", text=True) if isinstance(event, Output)]
    assert [(output.text, output.data) for output in outputs] == [("grüße\n", b""), ("\ufffd\n", b"")]


def test_an_unsealed_end_is_no_failure(server: ScriptedServer, client: Client) -> None:
    server.logs["e"] = Log([Piece(1, b"so far")], sealed=False, state=pb.STATE_RUNNING, exit_status=75)
    *_, end = client.tail("e", follow=False)
    assert isinstance(end, End)
    assert (end.sealed, end.outcome, end.exit_status) == (False, None, 75)


@settings(max_examples=60)
@given(
    pieces=pieces, cuts=cuts, chunk_bytes=st.integers(1, 30), chunks_per_message=st.integers(1, 4), seed=st.integers()
)
def test_bytes_arrive_once_and_in_order_however_the_stream_is_cut(
    running_server: ScriptedServer,
    client: Client,
    pieces: list[Piece],
    cuts: list[Cut],
    chunk_bytes: int,
    chunks_per_message: int,
    seed: int,
) -> None:
    forget(running_server)
    running_server.randomness.seed(seed)
    log = Log(pieces, chunk_bytes=chunk_bytes, chunks_per_message=chunks_per_message, cut_anew=True)
    running_server.logs["e"] = log
    running_server.cuts.extend(cuts)
    events = list(client.tail("e"))
    assert [data_of(events, source) for source in (1, 2, 3)] == [log.data(source) for source in (1, 2, 3)]
    assert [gap.missing_bytes or -1 for gap in gaps_of(events)] == [piece.missing for piece in pieces if piece.missing]
    assert isinstance(events[-1], End)
    states = [event.state for event in events if isinstance(event, StateChange)]
    assert states == [state for state, _ in itertools.groupby(states)], "a state that did not change is not told again"
    assert_notices_alternate(events)


@settings(max_examples=40)
@given(
    pieces=pieces,
    chunk_bytes=st.integers(1, 30),
    events_read=st.lists(st.integers(0, 6), max_size=6),
    by_batch=st.booleans(),
)
def test_a_program_that_kept_the_cursor_goes_on_from_there(
    running_server: ScriptedServer,
    client: Client,
    pieces: list[Piece],
    chunk_bytes: int,
    events_read: list[int],
    by_batch: bool,
) -> None:
    forget(running_server)
    log = Log(pieces, chunk_bytes=chunk_bytes)
    running_server.logs["e"] = log
    kept: list[Event] = []
    cursor = ""
    for count in [*events_read, 1000]:
        pending: list[Event] = []
        with client.tail("e", cursor) as tail:
            # What was handed out beyond the kept cursor is forgotten, as it is when a program dies.
            for events, _ in zip(
                tail.batches() if by_batch else ([event] for event in tail), range(count), strict=False
            ):
                pending.extend(events)
                if tail.cursor != cursor:
                    cursor = tail.cursor
                    kept.extend(pending)
                    pending = []
    kept.extend(pending)
    assert [data_of(kept, source) for source in (1, 2, 3)] == [log.data(source) for source in (1, 2, 3)]
    assert len(gaps_of(kept)) == sum(1 for piece in pieces if piece.missing)


def test_bytes_arrive_once_when_connections_break_in_the_middle_of_messages(server: ScriptedServer) -> None:
    log = Log([Piece(1 + number % 2, bytes([number % 251]) * 700) for number in range(600)], chunk_bytes=300)
    server.logs["e"] = log
    limits = [1, 9, 100, 5_000, 5_001, 17_003, 30_000, 65_536, 70_007]
    with (
        contextlib.closing(CuttingRelay(server.address, limits)) as relay,
        Client(relay.address, backoff=QUICK) as client,
    ):
        events = list(client.tail("e"))
    assert [data_of(events, source) for source in (1, 2)] == [log.data(source) for source in (1, 2)]
    assert_notices_alternate(events)
    assert not relay.cuts


def test_a_peer_that_falls_silent_is_left_after_three_heartbeats(server: ScriptedServer, client: Client) -> None:
    server.logs["e"] = HELLO
    server.cuts.append(Cut(2, "silence"))
    events = list(client.tail("e", heartbeat=0.1))
    assert data_of(events, 1) == b"hello\nworld\n"
    [notice] = [event for event in events if isinstance(event, Disconnected)]
    assert "not even a heartbeat" in str(notice.error)


def test_a_reader_that_takes_its_time_is_not_taken_for_a_dead_peer(server: ScriptedServer, client: Client) -> None:
    server.logs["e"] = Log(HELLO.pieces, heartbeats_before_end=30)
    events: list[Event] = []
    for event in client.tail("e", heartbeat=0.1):
        events.append(event)
        if isinstance(event, Output):
            assert server.event("heartbeat 25").wait(30), "0.5 s, more than three heartbeats"
    assert len(server.received(pb.StreamExecutionLogsRequest)) == 1
    assert not any(isinstance(event, Disconnected) for event in events)


def test_heartbeats_move_the_cursor_and_are_not_shown(server: ScriptedServer, client: Client) -> None:
    server.logs["e"] = Log(HELLO.pieces, heartbeats_before_end=3)
    assert [type(event) for event in client.tail("e", sources=[pb.SOURCE_STDOUT])] == [
        StateChange,
        Output,
        Output,
        StateChange,
        End,
    ]


@pytest.mark.parametrize(
    ("served", "finding"),
    [
        ([Piece(1, b"hellO\n"), *HELLO.pieces[1:]], "stdout: its checksum"),
        ([*HELLO.pieces[:3], Piece(3, b"it ended")], "system: it ended at byte 8, but the server has 9"),
        ([HELLO.pieces[0], *HELLO.pieces[2:]], "stderr: it ended at byte 0, but the server has 3"),
        ([*HELLO.pieces, Piece(1, b"more")], "stdout: it ended at byte 16"),
    ],
)
def test_a_log_that_is_not_what_was_written_is_an_error_at_its_end(
    server: ScriptedServer, client: Client, served: list[Piece], finding: str
) -> None:
    server.logs["e"] = Log(HELLO.pieces, served=served)
    with pytest.raises(fastlane_client.LogInconsistent, match=finding) as found, client.tail("e") as tail:
        list(tail)
    assert "execution e" in str(found.value)


def recite(*messages: pb.StreamExecutionLogsResponse, cursor: str = "", text: bool = False) -> list[Event]:
    """What a tail makes of messages that the test wrote down."""
    channel = grpc_testing.channel(pb.DESCRIPTOR.services_by_name.values(), grpc_testing.strict_real_time())
    method = pb.DESCRIPTOR.services_by_name["ExecutionService"].methods_by_name["StreamExecutionLogs"]
    with ThreadPoolExecutor(1) as reader, Client(channel, backoff=QUICK) as client:
        answer = reader.submit(list, client.tail("e", cursor, text=text))
        _, _, call = channel.take_unary_stream(method)
        call.send_initial_metadata(())
        for message in messages:
            call.send_response(message)
        call.terminate((), grpc.StatusCode.OK, "")
        return answer.result(10)


def chunk(source: int, offset: int, data: bytes = b"", text: str = "") -> pb.StreamExecutionLogsResponse:
    return pb.StreamExecutionLogsResponse(
        cursor="c", chunks=[pb.LogChunk(source=source, offset=offset, data=data, text=text)]
    )  # type: ignore[arg-type]


def end(**bytes_of: int) -> pb.StreamExecutionLogsResponse:
    totals = [
        pb.LogTotals(source=pb.Source.Value(f"SOURCE_{name.upper()}"), bytes=size) for name, size in bytes_of.items()
    ]
    return pb.StreamExecutionLogsResponse(
        cursor="c", end=pb.LogEnd(sealed=True, state=pb.STATE_SUCCEEDED, totals=totals)
    )


def gap(source: int, offset: int, missing_bytes: int | None) -> pb.StreamExecutionLogsResponse:
    return pb.StreamExecutionLogsResponse(
        cursor="c", gap=pb.LogGap(source=source, offset=offset, missing_bytes=missing_bytes)
    )  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "messages",
    [
        [chunk(1, 0, b"abc"), chunk(1, 0, b"abc")],
        [chunk(1, 0, b"abc"), chunk(1, 4, b"e")],
        [chunk(1, 1, b"abc")],
        [chunk(1, 0, b"abc"), gap(1, 4, 2)],
        [chunk(1, 0, b"abc"), gap(1, 3, 2), chunk(1, 3, b"de")],
        [chunk(1, 0, b"abc"), gap(1, 3, None), chunk(1, 4, b"de")],
    ],
    ids=["twice", "one missing", "first missing", "gap elsewhere", "gap not counted", "unknown gap counted"],
)
def test_bytes_that_are_not_due_are_an_error_at_once(messages: list[pb.StreamExecutionLogsResponse]) -> None:
    with pytest.raises(fastlane_client.LogInconsistent, match="stdout: received byte"):
        recite(*messages)


def test_after_a_cursor_the_first_chunk_says_where_a_source_is() -> None:
    events = recite(
        chunk(1, 500, b"abc"), gap(2, 7, 3), chunk(2, 10, b"d"), end(stdout=503, stderr=11, system=99), cursor="c"
    )
    assert (data_of(events, 1), data_of(events, 2)) == (b"abc", b"d")
    with pytest.raises(fastlane_client.LogInconsistent):
        recite(chunk(1, 500, b"abc"), chunk(1, 500, b"abc"), cursor="c")
    with pytest.raises(fastlane_client.LogInconsistent):
        recite(chunk(1, 500, b"abc"), end(stdout=504), cursor="c")


def test_text_may_leap_and_never_goes_back() -> None:
    assert len(recite(chunk(1, 0, text="a"), chunk(1, 4, text="b"), end(stdout=5), text=True)) == 3
    with pytest.raises(fastlane_client.LogInconsistent):
        recite(chunk(1, 4, text="a"), chunk(1, 3, text="b"), text=True)


def test_what_this_client_does_not_know_yet_is_passed_on_or_skipped() -> None:
    event_of_tomorrow = pb.StreamExecutionLogsResponse.FromString(b"\x0a\x01c\xa2\x06\x00")
    state_of_tomorrow = pb.StreamExecutionLogsResponse(cursor="c", state=pb.LogState(state=77))  # type: ignore[arg-type]
    events = recite(state_of_tomorrow, event_of_tomorrow, chunk(9, 0, b"abc"), end())
    assert [type(event) for event in events] == [StateChange, Output, End]
    assert data_of(events, 9) == b"abc"


def test_chunks_that_a_proxy_joined_into_one_message_arrive_all() -> None:
    joined = pb.StreamExecutionLogsResponse.FromString(
        chunk(1, 0, b"abc").SerializeToString() + chunk(1, 3, b"de").SerializeToString()
    )
    assert data_of(recite(joined, end(stdout=5)), 1) == b"abcde"


@pytest.mark.parametrize(
    ("code", "reason", "kind"),
    [
        (grpc.StatusCode.INVALID_ARGUMENT, "CURSOR_INVALID", fastlane_client.CursorRefused),
        (grpc.StatusCode.INVALID_ARGUMENT, "CURSOR_OF_ANOTHER_EXECUTION", fastlane_client.CursorRefused),
        (grpc.StatusCode.OUT_OF_RANGE, "CURSOR_AHEAD", fastlane_client.CursorRefused),
        (grpc.StatusCode.INTERNAL, "DEFECT", fastlane_client.ServerDefect),
        (grpc.StatusCode.UNIMPLEMENTED, "", fastlane_client.UnknownField),
    ],
)
def test_an_answer_that_will_not_change_ends_the_tail(
    server: ScriptedServer, client: Client, code: grpc.StatusCode, reason: str, kind: type[fastlane_client.Error]
) -> None:
    server.logs["e"] = HELLO
    server.refusals.append((code, reason, {}))
    with pytest.raises(kind):
        next(client.tail("e"))
    assert len(server.requests) == 1


def test_an_execution_that_is_not_there_ends_the_tail(client: Client) -> None:
    with pytest.raises(fastlane_client.NotFound) as refused:
        list(client.tail("nowhere"))
    assert refused.value.metadata == {"execution_id": "nowhere"}


def test_a_tail_gives_up_when_it_was_told_when(server: ScriptedServer) -> None:
    with Client(unused_address(), backoff=QUICK) as client:
        tail = client.tail("e", give_up_after=0.05)
        with pytest.raises(fastlane_client.ServerUnavailable):
            list(tail)
        assert list(tail) == []


def test_pauses_grow_to_their_longest_and_come_on_top_of_what_the_server_asks() -> None:
    backoff = Backoff(first_seconds=0.1, longest_seconds=5)
    for failures, longest in [(0, 0.1), (1, 0.2), (5, 3.2), (6, 5), (10_000, 5)]:
        assert longest / 2 <= backoff.pause_seconds(failures, None) <= longest
    assert 2 < backoff.pause_seconds(0, 2.0) <= 2.1


# -------------------------------------------------------------------------------------------------------------- leaving


def test_close_from_another_thread_ends_the_tail_and_the_call(server: ScriptedServer, client: Client) -> None:
    endless(server)
    tail = client.tail("e")
    with ThreadPoolExecutor(1) as reader:
        events = reader.submit(list, tail)
        assert server.event("heartbeat 1").wait(30)
        tail.close()
        assert not any(isinstance(event, End | Disconnected) for event in events.result(30))
    assert server.event("stream over").wait(30)


def test_close_ends_a_pause(server: ScriptedServer) -> None:
    with Client(unused_address(), backoff=Backoff(3600, 3600)) as client, ThreadPoolExecutor(1) as reader:
        tail = client.tail("e")
        assert isinstance(next(tail), Disconnected)
        rest = reader.submit(list, tail)
        tail.close()
        assert rest.result(30) == []


def test_leaving_a_with_block_cancels_the_call(server: ScriptedServer, client: Client) -> None:
    endless(server)
    with client.tail("e") as tail:
        next(tail)
    assert server.event("stream over").wait(30)


@pytest.mark.parametrize(
    "cuts", [[], [Cut(1, "unavailable"), Cut(1, "ok"), Cut(0, "reset")]], ids=["never cut", "after cuts"]
)
def test_dropping_a_tail_cancels_the_call_and_ends_its_thread(
    server: ScriptedServer, client: Client, cuts: list[Cut]
) -> None:
    endless(server)
    server.cuts.extend(cuts)
    gc.collect()
    gc.disable()
    try:
        for event in client.tail("e"):
            if isinstance(event, Output):
                break
        server.event("stream over").clear()
        assert server.event("stream over").wait(30), (
            "the last reference ends it: it must not wait for a garbage collection"
        )
    finally:
        gc.enable()
    for thread in threading.enumerate():
        if thread.name == "fastlane-tail-watch":
            thread.join(30)
            assert not thread.is_alive()


def test_closing_the_client_ends_its_tails(server: ScriptedServer) -> None:
    endless(server)
    with ThreadPoolExecutor(1) as reader:
        with Client(server.address, backoff=QUICK) as client:
            events = reader.submit(list, client.tail("e"))
            assert server.event("heartbeat 1").wait(30)
        assert not any(isinstance(event, End) for event in events.result(30))


class Interrupted(Exception):
    """What a signal's handler raises, as Ctrl-C raises KeyboardInterrupt."""


def test_a_tail_that_was_interrupted_while_it_waited_can_be_asked_again(server: ScriptedServer, client: Client) -> None:
    server.logs["e"] = HELLO
    server.cuts.append(Cut(2, "silence"))
    main_thread = threading.main_thread().ident
    assert main_thread

    def handle(*_: object) -> None:
        raise Interrupted

    def interrupt() -> None:
        # In the wait itself, and nowhere else in gRPC: elsewhere it might leave a lock taken, which nothing can mend.
        while True:
            frame = sys._current_frames()[main_thread]
            if (
                frame.f_code.co_name == "wait"
                and frame.f_back
                and frame.f_back.f_globals["__name__"].startswith("grpc")
            ):
                break
        signal.pthread_kill(main_thread, signal.SIGUSR1)

    tail = client.tail("e")
    before = signal.signal(signal.SIGUSR1, handle)
    try:
        events = [next(tail) for _ in range(5)]
        with pytest.raises(Interrupted):
            threading.Thread(target=interrupt).start()
            next(tail)
    finally:
        signal.signal(signal.SIGUSR1, before)
    events.extend(tail)
    assert (data_of(events, 1), data_of(events, 3)) == (b"hello\nworld\n", b"it ended\n")
    assert isinstance(events[-1], End)


# ---------------------------------------------------------------------------------------------------------------- text


# As Python makes it of bytes that are not UTF-8.
RAW = "caf\udce9"


@pytest.mark.parametrize(("field", "method", "positional", "named"), NOT_TEXT)
def test_a_text_that_is_not_utf_8_is_refused_by_the_name_of_its_field(
    server: ScriptedServer, client: Client, field: str, method: str, positional: tuple[Any, ...], named: dict[str, Any]
) -> None:
    with pytest.raises(fastlane_client.InvalidText) as refused:
        list(getattr(client, method)(*positional, **named))
    assert isinstance(refused.value, ValueError)
    assert [each for each, _ in refused.value.violations] == [field]
    assert str(refused.value).startswith(f"{field}: is not valid UTF-8")
    assert server.requests == []


def test_an_address_that_is_not_utf_8_is_refused() -> None:
    with pytest.raises(fastlane_client.InvalidText, match="address: is not valid UTF-8"):
        Client(f"{RAW}:7020")
