"""The audit: each call that writes leaves who asked for what, on disk with what it wrote."""

import asyncio
import json
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import closing
from datetime import UTC, datetime, timedelta
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.message_factory import GetMessageClass

from fastlane_grpc import client as api
from fastlane_grpc.api.audit import writes
from fastlane_grpc.api.calls import NOT_AUDITED
from fastlane_grpc.client import Client
from fastlane_grpc.errors import JobNotFound
from fastlane_grpc.http.routes import methods
from fastlane_grpc.logs import Logs
from fastlane_grpc.model import JobSpec
from fastlane_grpc.retention import Retention, RetentionLimits
from fastlane_grpc.store import AUDITED, AuditedCall, AuditEntry, AuditQuery, JobQuery, Store
from fastlane_grpc.store.database import sqlite3
from fastlane_grpc.trust import Role, TokenFile
from fastlane_grpc.v1 import fastlane_pb2 as pb
from tests.certificates import Authority
from tests.commands import FASTLANE, environment
from tests.parts import Parts
from tests.recorder_program import eventually
from tests.serving import Server, serving

# Written by the version before: a job that waits, and one that was stopped.
DUMP = Path(__file__).parent / "databases" / "before_the_audit.sql"
SPEC = pb.JobSpec(image="busybox", envs={"SMTP_PASSWORD": "hunter2"})
CRON = pb.JobSpec(image="busybox", cron=pb.Cron(expression="0 3 1 1 *"))
TIME = datetime(2026, 1, 1, tzinfo=UTC)
NIGHTLY = "0198f0d4-7c1e-7a52-8f0b-3f1f1d1e7a10"
NOWHERE = "http://127.0.0.1:9/"


# ---- the contract, from outside


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, str]]:
    """A server that requires tokens, and a token of its operator, `ada`."""
    data_dir = tmp_path_factory.mktemp("audited") / "data"
    data_dir.mkdir()
    token = TokenFile(data_dir).create("ada", Role.OPERATE)
    with serving(data_dir, http_listen="127.0.0.1:0", engine="unix:///nobody", auth="tokens") as server:
        yield server, token


@pytest.fixture
def operator(server: tuple[Server, str]) -> Iterator[Client]:
    with Client(server[0].address, token=server[1], retry_for=0, timeout=20) as client:
        yield client


def call(server: Server, token: str, request: Any, method: str) -> Any:
    descriptor = methods()[method]
    path = f"/{descriptor.containing_service.full_name}/{method}"
    with grpc.insecure_channel(server.address) as channel:
        reader = GetMessageClass(descriptor.output_type).FromString
        return channel.unary_unary(path, type(request).SerializeToString, reader)(
            request, timeout=20, metadata=(("authorization", f"Bearer {token}"),)
        )


def stopped(operator: Client, **spec: Any) -> pb.Job:
    return operator.stop(operator.enqueue("mail", "busybox", **spec).id)


def delivery_id(operator: Client) -> str:
    job = stopped(operator, notifications=[api.Webhook(NOWHERE)])
    found: list[pb.Delivery] = []
    eventually(lambda: bool(found.extend(operator.deliveries(job_id=job.id)) or found))
    return found[0].id


def about(job: pb.Job, **more: str) -> Mapping[str, str]:
    return {"task_id": job.task_id, "job_id": job.id, **more}


# Of each method that writes: a request that changes something, and what its entry says beside the method.
CASES: Mapping[str, Callable[[Client], tuple[Any, Mapping[str, str]]]] = {
    "EnqueueJob": lambda it: (pb.EnqueueJobRequest(task_id="mail", spec=SPEC), {"task_id": "mail"}),
    "StopJob": lambda it: (
        pb.StopJobRequest(job_id=(job := it.enqueue("mail", "busybox")).id, note="enough"),
        about(job, detail='{"note": "enough"}'),
    ),
    "RetryJob": lambda it: (pb.RetryJobRequest(job_id=(job := stopped(it)).id), about(job)),
    "ReplaceJob": lambda it: (
        pb.ReplaceJobRequest(job_id=NIGHTLY, task_id="mail", spec=SPEC),
        {"task_id": "mail", "job_id": NIGHTLY},
    ),
    "PauseSchedule": lambda it: (
        pb.PauseScheduleRequest(job_id=(job := it.enqueue("mail", "busybox", cron="0 3 1 1 *")).id),
        about(job),
    ),
    "ResumeSchedule": lambda it: (
        pb.ResumeScheduleRequest(
            job_id=(job := it.pause_schedule(it.enqueue("mail", "busybox", cron="0 3 1 1 *").id)).id
        ),
        about(job),
    ),
    "BatchEnqueueJobs": lambda it: (
        pb.BatchEnqueueJobsRequest(requests=[pb.EnqueueJobRequest(task_id="many", spec=SPEC)] * 3),
        {"detail": '{"jobs": 3}'},
    ),
    "BatchStopJobs": lambda it: (
        pb.BatchStopJobsRequest(filter=pb.JobFilter(job_ids=[(job := it.enqueue("some", "busybox")).id])),
        {"detail": f'{{"filter": {{"job_ids": ["{job.id}"]}}}}'},
    ),
    "BatchRetryJobs": lambda it: (
        pb.BatchRetryJobsRequest(filter=pb.JobFilter(job_ids=[(job := stopped(it)).id], states=[pb.STATE_STOPPED])),
        {"detail": f'{{"filter": {{"states": ["STATE_STOPPED"], "job_ids": ["{job.id}"]}}}}'},
    ),
    "StopExecution": lambda it: (
        pb.StopExecutionRequest(execution_id=(job := it.enqueue("mail", "busybox")).execution.id),
        about(job, execution_id=job.execution.id),
    ),
    "UpdateTask": lambda it: (
        pb.UpdateTaskRequest(
            task_id="mail",
            max_running=2,
            notifications=pb.UpdateTaskRequest.Notifications(
                items=[
                    pb.Notification(webhook=pb.Notification.Webhook(url=NOWHERE, headers={"X-Token": "hunter2"})),
                ]
            ),
        ),
        {"task_id": "mail", "detail": '{"max_running": 2, "notifications": "changed"}'},
    ),
    "DrainHost": lambda it: (
        pb.DrainHostRequest(host=(host := next(iter(it.hosts())).name), note="new disk"),
        {"detail": f'{{"host": "{host}", "note": "new disk"}}'},
    ),
    "ResumeHost": lambda it: (
        pb.ResumeHostRequest(host=(host := next(iter(it.hosts())).name)),
        {"detail": f'{{"host": "{host}"}}'},
    ),
    "RedeliverNotification": lambda it: (
        pb.RedeliverNotificationRequest(delivery_id=(delivery := delivery_id(it))),
        {"task_id": "mail", "detail": f'{{"delivery_id": "{delivery}"}}'},
    ),
    "Prune": lambda it: (
        pb.PruneRequest(older_than={}, task_id=it.stop(it.enqueue("old", "busybox").id).task_id),
        {"task_id": "old", "detail": '{"older_than": "0s"}'},
    ),
}


def test_each_call_of_the_contract_that_writes_is_in_the_audit(server: tuple[Server, str], operator: Client) -> None:
    assert sorted(CASES) == sorted(
        name for name, method in methods().items() if writes(method) and name not in NOT_AUDITED
    )
    for method, make in CASES.items():
        request, said = make(operator)
        before = len(list(operator.audit_entries(method=method)))
        call(*server, request, method)
        newest, *rest = operator.audit_entries(method=method)
        assert len(rest) == before, method
        assert (newest.method, newest.caller, newest.certificate) == (method, "ada", "")
        assert newest.address.startswith(("ipv4:127.0.0.1:", "ipv6:[::1]:"))
        assert abs(newest.time.ToDatetime(UTC) - datetime.now(UTC)) < timedelta(minutes=1)
        for name, value in said.items():
            assert getattr(newest, name) == value, (method, name)
        logged = [line for line in map(json.loads, server[0].log.splitlines()) if line.get("method") == method]
        if method == "EnqueueJob":
            # A line for each would make an enqueue slower.
            assert logged == []
        else:
            assert (logged[-1]["caller"], logged[-1]["address"]) == ("ada", newest.address)
            assert logged[-1].get("job_id", "") == newest.job_id
    everything = server[0].log + "".join(entry.detail for entry in operator.audit_entries())
    assert "hunter2" not in everything


def test_a_call_that_changes_nothing_is_not_in_the_audit(server: tuple[Server, str], operator: Client) -> None:
    before = [entry.time for entry in operator.audit_entries()]
    call(*server, pb.EnqueueJobRequest(task_id="mail", spec=SPEC, validate_only=True), "EnqueueJob")
    for attempt in (
        lambda: operator.stop("00000000-0000-7000-8000-000000000000"),
        lambda: operator.enqueue("", "busybox"),
        lambda: operator.drain_host("nobody"),
        # No duration: the detail of an entry cannot have it.
        lambda: call(*server, pb.PruneRequest(older_than={"seconds": 1, "nanos": -1}), "Prune"),
    ):
        with pytest.raises((api.Error, grpc.RpcError)):
            attempt()
    assert [entry.time for entry in operator.audit_entries()] == before


def test_a_job_says_who_enqueued_it_and_who_stopped_it(server: tuple[Server, str], operator: Client) -> None:
    job = stopped(operator)
    assert (job.caller, job.stop_caller) == ("ada", "ada")
    again = operator.retry_job(job.id)
    assert (again.caller, again.stop_caller) == ("ada", "")
    many = call(
        *server,
        pb.BatchEnqueueJobsRequest(requests=[pb.EnqueueJobRequest(task_id="a", spec=SPEC)] * 2),
        "BatchEnqueueJobs",
    )
    assert [each.enqueued.job.caller for each in many.results] == ["ada", "ada"]


def test_calls_over_http_are_in_the_audit_and_the_audit_is_over_http(server: tuple[Server, str]) -> None:
    connection = HTTPConnection("127.0.0.1", server[0].http_port, timeout=20)

    def ask(verb: str, path: str, body: Any = None) -> Any:
        headers = {"Authorization": f"Bearer {server[1]}", "Content-Type": "application/json"}
        connection.request(verb, path, None if body is None else json.dumps(body), headers)
        return json.loads(connection.getresponse().read())

    with closing(connection):
        job = ask("POST", "/tasks/web", {"image": "busybox"})["job"]
        [entry] = ask("GET", f"/audit?job_id={job['id']}")["entries"]
        assert (entry["method"], entry["caller"], entry["task_id"]) == ("EnqueueJob", "ada", "web")
        assert entry["address"] == job["caller_address"] == f"ipv4:127.0.0.1:{connection.sock.getsockname()[1]}"
        # The next request of the connection that changes nothing has no entry.
        assert ask("GET", "/jobs?task_id=web")["jobs"]
        assert len(ask("GET", "/audit?task_id=web")["entries"]) == 1


def test_the_command_shows_the_audit(server: tuple[Server, str], operator: Client) -> None:
    job = operator.enqueue("shown", "busybox")
    operator.stop(job.id, note="too late")
    env = environment(None, FASTLANE_ADDRESS=server[0].address, FASTLANE_TOKEN=server[1])
    ran = subprocess.run([*FASTLANE, "audit", "--job", job.id], env=env, capture_output=True, text=True, timeout=60)
    header, stop, enqueue = ran.stdout.splitlines()
    assert header.split() == ["WHEN", "METHOD", "CALLER", "ADDRESS", "TASK", "JOB", "DETAIL"]
    assert "  StopJob " in stop
    assert stop.split("ada ")[1].split() == [job.caller_address, "shown", job.id, '{"note":', '"too', 'late"}']
    assert enqueue.split("ada ")[1].split() == [job.caller_address, "shown", job.id]


def test_a_client_with_a_certificate_is_known_by_its_name(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    pair, own = authority.sign("server"), authority.sign("ci.example.org")
    tls = {"tls_cert": str(pair.cert), "tls_key": str(pair.key), "tls_client_ca": str(authority.cert)}
    with (
        serving(tmp_path / "data", http_listen="127.0.0.1:0", engine="unix:///nobody", **tls) as server,
        Client(server.address, tls_ca=authority.cert, tls_cert=own.cert, tls_key=own.key) as client,
    ):
        job = client.enqueue("mail", "busybox")
        command: list[str | Path] = [
            "curl",
            "-sS",
            "--cacert",
            authority.cert,
            "--cert",
            own.cert,
            "--key",
            own.key,
            "-X",
            "POST",
        ]
        url = f"https://localhost:{server.http_port}/jobs/{job.id}/stop"
        subprocess.run([*command, url], check=True, capture_output=True, timeout=20)
        assert [(each.method, each.caller, each.certificate) for each in client.audit_entries()] == [
            ("StopJob", "", "ci.example.org"),
            ("EnqueueJob", "", "ci.example.org"),
        ]
        assert (client.job(job.id).caller, client.job(job.id).stop_caller) == ("ci.example.org",) * 2


def test_without_tokens_a_stop_is_known_by_its_address(tmp_path: Path) -> None:
    with serving(tmp_path / "data", engine="unix:///nobody") as server, Client(server.address) as client:
        job = client.stop(client.enqueue("mail", "busybox").id)
        assert (job.caller, job.stop_caller) == ("", job.caller_address)
        server.kill()
    with serving(tmp_path / "data", engine="unix:///nobody") as server, Client(server.address) as client:
        assert [entry.method for entry in client.audit_entries(job_id=job.id)] == ["StopJob", "EnqueueJob"]


# ---- the store


@pytest.fixture
async def parts(tmp_path: Path) -> AsyncIterator[Parts]:
    harness = Parts(tmp_path)
    harness.loop = asyncio.get_running_loop()
    harness.open_store(harness.parts)
    yield harness
    harness.parts.close()


def entry(number: int = 0, **more: Any) -> AuditEntry:
    return AuditEntry(TIME + timedelta(seconds=number), "EnqueueJob", f"caller-{number}", **more)


async def by(audited: AuditEntry | None, write: Callable[[], Any]) -> Any:
    """Write as a call with this entry does; None: as no call."""
    token = AUDITED.set(audited and AuditedCall(audited))
    try:
        return await write()
    finally:
        AUDITED.reset(token)


async def entries(store: Store, **query: str) -> list[AuditEntry]:
    found, after = list[AuditEntry](), None
    while True:
        page = await store.audit_entries(AuditQuery(**query), after=after, size=2)
        found += page.items
        if page.rest is None:
            return found
        after = page.rest


async def test_calls_that_share_a_commit_have_an_entry_each_and_other_writes_none(parts: Parts) -> None:
    def enqueue() -> Any:
        return parts.store.enqueue(task_id="task", spec=JobSpec("busybox"), request_id="", caller_address="")

    made = await asyncio.gather(*(by(entry(number) if number % 3 else None, enqueue) for number in range(90)))
    found = await entries(parts.store)
    assert {each.caller: each.job_id for each in found} == {
        f"caller-{number}": job.id for number, (job, _) in enumerate(made) if number % 3
    }
    assert [job.caller for job, _ in made[:3]] == ["", "caller-1", "caller-2"]


async def test_a_write_that_fails_leaves_no_entry_and_the_next_one_of_its_call_does(parts: Parts) -> None:
    job, _ = await parts.store.enqueue(task_id="task", spec=JobSpec("busybox"), request_id="", caller_address="")

    async def twice() -> None:
        # In one commit with others, and so with a savepoint each.
        with pytest.raises(JobNotFound):
            await parts.store.stop("nobody", grace=None, note="")
        assert await entries(parts.store, caller="caller-1") == []
        for _ in range(2):
            await parts.store.stop(job.id, grace=None, note="")

    await by(entry(1, job_id=job.id), twice)
    assert await entries(parts.store) == [entry(1, job_id=job.id, task_id="task")]


async def test_filters_narrow_and_pages_go_through_all(parts: Parts) -> None:
    def enqueue(task_id: str) -> Callable[[], Any]:
        return lambda: parts.store.enqueue(task_id=task_id, spec=JobSpec("busybox"), request_id="", caller_address="")

    made = [(await by(entry(number, task_id=task_id), enqueue(task_id)))[0] for number, task_id in enumerate("aabab")]
    numbers = {each.caller: each for each in await entries(parts.store)}
    assert list(numbers) == [f"caller-{number}" for number in (4, 3, 2, 1, 0)]
    assert [each.caller[-1] for each in await entries(parts.store, task_id="a")] == ["3", "1", "0"]
    assert [each.caller[-1] for each in await entries(parts.store, job_id=made[2].id)] == ["2"]
    assert await entries(parts.store, job_id=made[2].id, task_id="a") == []
    assert await entries(parts.store, method="StopJob") == []


async def test_entries_are_kept_as_long_as_jobs(parts: Parts) -> None:
    def enqueue() -> Any:
        return parts.store.enqueue(task_id="task", spec=JobSpec("busybox"), request_id="", caller_address="")

    for number in range(3):
        await by(entry(number), enqueue)
    logs = Logs(parts.settings.data_dir)
    for limits, left in (
        (RetentionLimits(), 3),
        (RetentionLimits(keep_jobs=timedelta(days=1)), 1),
    ):
        retention = Retention(parts.store, logs, limits)
        await retention.round(TIME + timedelta(days=1, seconds=2))
        retention.close()
        assert len(await entries(parts.store)) == left


def test_a_database_of_the_version_before_is_brought_along(tmp_path: Path) -> None:
    async def check() -> None:
        store = Store.open(tmp_path, on_commit=lambda executions: None, loop=asyncio.get_running_loop())
        try:
            for job in (await store.jobs(JobQuery(), size=9)).items:
                assert (job.caller, job.stop_caller, job.caller_address) == ("", "", "ipv4:10.0.0.7:51234")
            assert await entries(store) == []
            waiting = next(job for job in (await store.jobs(JobQuery(), size=9)).items if not job.state.final)
            call = entry(1, job_id=waiting.id)
            await by(call, lambda: store.stop(waiting.id, grace=None, note=""))
            assert [each.task_id for each in await entries(store)] == ["mail"]
        finally:
            store.close()

    with closing(sqlite3.connect(tmp_path / "fastlane.db")) as db:
        db.executescript(DUMP.read_text())
    asyncio.run(check())
