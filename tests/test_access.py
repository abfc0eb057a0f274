"""Tokens, roles and patterns, as clients and attackers meet them: every method and every path, from outside."""

import json
import os
import stat
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from playwright.sync_api import Browser, expect

from fastlane_grpc import client as api
from fastlane_grpc.app import check_reach
from fastlane_grpc.client import Client, PermissionDenied, Unauthenticated
from fastlane_grpc.client.errors import error_of
from fastlane_grpc.config import load
from fastlane_grpc.doctor.server import about_server
from fastlane_grpc.errors import CannotServe
from fastlane_grpc.http.routes import ROUTES, methods
from fastlane_grpc.trust import Role, TaskPattern, TokenFile, TokenRefused
from fastlane_grpc.v1 import fastlane_pb2 as pb
from tests import forked
from tests.browser import browsing, visit
from tests.certificates import Authority
from tests.commands import PROGRAM, environment
from tests.recorder_program import eventually
from tests.serving import Server

# The one table: which methods a role may call. A method that is in none fails the test.
MAY: Mapping[str, frozenset[str]] = {
    "view": frozenset(
        [
            "GetJob",
            "ListJobs",
            "StreamJobLogs",
            "PreviewSchedule",
            "WatchJobs",
            "GetExecution",
            "ListExecutions",
            "StreamExecutionLogs",
            "ReadOutputs",
            "ListOutputs",
            "GetTask",
            "ListTasks",
            "ListHosts",
            "ListDeliveries",
            "GetServerInfo",
        ]
    ),
    "submit": frozenset(
        [
            "EnqueueJob",
            "StopJob",
            "RetryJob",
            "ReplaceJob",
            "PauseSchedule",
            "ResumeSchedule",
            "BatchEnqueueJobs",
            "BatchStopJobs",
            "BatchRetryJobs",
            "StopExecution",
            "RedeliverNotification",
            "UploadInput",
        ]
    ),
    "operate": frozenset(["UpdateTask", "DrainHost", "ResumeHost", "Prune", "ListAuditEntries"]),
}
# Of the paths that are no calls: which answer without a token. The others need the role view.
OPEN_PATHS = {"/healthz", "/readyz", "/", "/assets/app.js"}
CLOSED_PATHS = {"/metrics", "/openapi.json"}
WRONG = "flt_" + "x" * 43
REFUSED = {"TOKEN_REQUIRED", "TOKEN_INVALID", "TOKEN_EXPIRED", "PERMISSION_DENIED"}


@dataclass(frozen=True, slots=True)
class Guarded:
    """A server that requires tokens, and its tokens by name; `hidden` and `shown` are jobs."""

    server: Server
    tokens: Mapping[str, str]
    file: TokenFile
    hidden: pb.Job
    shown: pb.Job

    def client(self, token: str) -> Client:
        return Client(self.server.address, token=self.tokens.get(token, token), retry_for=0, timeout=20)


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    data_dir = tmp_path_factory.mktemp("guarded") / "data"
    data_dir.mkdir()
    file = TokenFile(data_dir)
    tokens = {role.name.lower(): file.create(role.name.lower(), role) for role in Role}
    tokens["limited"] = file.create("limited", Role.OPERATE, tasks=TaskPattern("team-*"))
    tokens["expired"] = file.create("expired", Role.OPERATE, expire_time=datetime.now(UTC) - timedelta(seconds=1))
    tokens["revoked"] = file.create("revoked", Role.OPERATE)
    file.revoke("revoked")
    server = Server(data_dir, http_listen="127.0.0.1:0", engine="unix:///nobody", auth="tokens")
    try:
        with Client(server.address, token=tokens["operate"]) as client:
            hidden, shown = client.enqueue("other", "busybox"), client.enqueue("team-a", "busybox")
        yield Guarded(server, tokens, file, hidden, shown)
    finally:
        server.stop()
    # Nothing that was sent is in the log of the server or in its files.
    everything = server.log + "".join(path.read_text(errors="replace") for path in data_dir.glob("*") if path.is_file())
    for text in [*tokens.values(), WRONG]:
        assert text not in everything


def reason(server: Server, method: str, token: str | None, request: Any = None) -> str:
    """Call the method with an empty request, unless one is given. Return the reason of the refusal, or empty."""
    descriptor = methods()[method]
    request = request or GetMessageClass(descriptor.input_type)()
    metadata = () if token is None else (("authorization", f"Bearer {token}"),)
    path = f"/{descriptor.containing_service.full_name}/{method}"
    with grpc.insecure_channel(server.address) as channel:
        serializer, reader = type(request).SerializeToString, GetMessageClass(descriptor.output_type).FromString
        try:
            if descriptor.server_streaming:
                stream: Any = channel.unary_stream(path, serializer, reader)(request, timeout=20, metadata=metadata)
                next(stream)
                stream.cancel()
            else:
                channel.unary_unary(path, serializer, reader)(request, timeout=20, metadata=metadata)
        except grpc.RpcError as error:
            failure = error_of(error)
            code = {"PERMISSION_DENIED": grpc.StatusCode.PERMISSION_DENIED}.get(
                failure.reason, grpc.StatusCode.UNAUTHENTICATED
            )
            assert failure.reason not in REFUSED or failure.code is code
            return failure.reason
    return ""


def ask(server: Server, verb: str, path: str, body: Any = None, **headers: str) -> tuple[int, Mapping[str, str], bytes]:
    connection = HTTPConnection("127.0.0.1", server.http_port, timeout=20)
    try:
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        if body is not None:
            sent["Content-Type"] = "application/json"
        connection.request(verb, path, None if body is None else json.dumps(body), sent)
        response = connection.getresponse()
        # A stream goes on: its head is enough.
        content = b"" if response.getheader("Transfer-Encoding") else response.read()
        return response.status, {name.lower(): value for name, value in response.getheaders()}, content
    finally:
        connection.close()


def expected(method: str, token: str) -> str:
    """Return the reason of the refusal by the table; empty: the call is admitted."""
    if token in {"none", "wrong", "revoked", "expired"}:
        return {"none": "TOKEN_REQUIRED", "expired": "TOKEN_EXPIRED"}.get(token, "TOKEN_INVALID")
    roles = list(MAY)
    return "" if any(method in MAY[role] for role in roles[: roles.index(token) + 1]) else "PERMISSION_DENIED"


CREDENTIALS = ["none", "wrong", "revoked", "expired", "view", "submit", "operate"]


def test_the_table_has_each_method_of_the_contract_once() -> None:
    assert sorted(name for names in MAY.values() for name in names) == sorted(methods())


@pytest.mark.parametrize("name", CREDENTIALS)
def test_each_method_is_admitted_or_refused_by_the_table(guarded: Guarded, name: str) -> None:
    token = None if name == "none" else guarded.tokens.get(name, WRONG)
    for method in methods():
        told = reason(guarded.server, method, token)
        assert (told if told in REFUSED else "") == expected(method, name), method


@pytest.mark.parametrize("name", CREDENTIALS)
def test_each_path_is_admitted_or_refused_by_the_table(guarded: Guarded, name: str) -> None:
    headers = {} if name == "none" else {"Authorization": f"Bearer {guarded.tokens.get(name, WRONG)}"}
    for route in ROUTES:
        path = route.path.format(job_id="x", task_id="-", execution_id="x", delivery_id="x", host="x", sha256="x")
        body = None if route.verb == "GET" else {}
        status, got, content = ask(guarded.server, route.verb, path, body, **headers)
        told = json.loads(content).get("reason", "") if content.startswith(b'{"type"') else ""
        refusal = expected(route.method, name)
        assert (told if told in REFUSED else "") == refusal, (route.verb, path)
        assert (status == 401) == refusal.startswith("TOKEN"), path
        assert (status == 403) == (refusal == "PERMISSION_DENIED"), path
        assert (got.get("www-authenticate") == "Bearer") == (status == 401)
    for path in OPEN_PATHS:
        assert ask(guarded.server, "GET", path, **headers)[0] == 200, path
    for path in CLOSED_PATHS:
        assert (ask(guarded.server, "GET", path, **headers)[0] == 401) == (name in CREDENTIALS[:4]), path


def test_a_browser_without_a_token_gets_the_page_and_no_data(guarded: Guarded) -> None:
    status, headers, content = ask(guarded.server, "GET", "/jobs", Accept="text/html")
    assert (status, headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert guarded.shown.id.encode() not in content


def test_the_openapi_document_of_a_server_with_tokens_says_so(guarded: Guarded) -> None:
    headers = {"Authorization": f"Bearer {guarded.tokens['view']}"}
    document = json.loads(ask(guarded.server, "GET", "/openapi.json", **headers)[2])
    assert document["security"] == [{"token": []}, {"cookie": []}]
    assert document["paths"]["/readyz"]["get"]["security"] == []


@pytest.mark.parametrize("name", [*CREDENTIALS, "limited"])
def test_reflection_needs_a_token_and_health_does_not(guarded: Guarded, name: str) -> None:
    metadata = () if name == "none" else (("authorization", f"Bearer {guarded.tokens.get(name, WRONG)}"),)
    with grpc.insecure_channel(guarded.server.address) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        assert stub.Check(health_pb2.HealthCheckRequest(service="live"), metadata=metadata, timeout=20).status == 1
        watch = stub.Watch(health_pb2.HealthCheckRequest(service="live"), metadata=metadata, timeout=20)
        assert next(watch).status == 1
        watch.cancel()
        reflection: Any = reflection_pb2_grpc.ServerReflectionStub(channel)
        asked = iter([reflection_pb2.ServerReflectionRequest(list_services="")])
        answers = reflection.ServerReflectionInfo(asked, metadata=metadata, timeout=20)
        if name in CREDENTIALS[:4]:
            with pytest.raises(grpc.RpcError) as raised:
                next(answers)
            assert raised.value.code() is grpc.StatusCode.UNAUTHENTICATED  # type: ignore[attr-defined]
        else:
            assert next(answers).list_services_response.service


def hidden_requests(guarded: Guarded) -> Mapping[str, tuple[Any, str]]:
    """A request for what the limited token must not see, and what it is told, for each method."""
    job, execution = guarded.hidden.id, guarded.hidden.execution.id
    spec = pb.JobSpec(image="busybox")
    other = pb.EnqueueJobRequest(task_id="other", spec=spec)
    by_job = {
        name: (GetMessageClass(methods()[name].input_type)(job_id=job), "JOB_NOT_FOUND")
        for name in [
            "GetJob",
            "StopJob",
            "StreamJobLogs",
            "RetryJob",
            "PauseSchedule",
            "ResumeSchedule",
            "ListDeliveries",
        ]
    }
    by_execution = {
        name: (GetMessageClass(methods()[name].input_type)(execution_id=execution), "EXECUTION_NOT_FOUND")
        for name in ["GetExecution", "StopExecution", "StreamExecutionLogs", "ReadOutputs", "ListOutputs"]
    }
    by_task = {
        name: (GetMessageClass(methods()[name].input_type)(task_id="other"), "TASK_NOT_FOUND")
        for name in ["GetTask", "UpdateTask", "ListJobs", "ListExecutions", "WatchJobs", "Prune"]
    }
    by_server = dict.fromkeys(
        ["ListHosts", "DrainHost", "ResumeHost", "RedeliverNotification", "ListAuditEntries"],
        (None, "PERMISSION_DENIED"),
    )
    return {
        **by_job,
        **by_execution,
        **by_task,
        **by_server,
        "EnqueueJob": (other, "TASK_NOT_FOUND"),
        "ReplaceJob": (pb.ReplaceJobRequest(job_id=job, task_id="team-a", spec=spec), "JOB_NOT_FOUND"),
        "BatchEnqueueJobs": (pb.BatchEnqueueJobsRequest(requests=[other]), "TASK_NOT_FOUND"),
        "BatchStopJobs": (pb.BatchStopJobsRequest(filter=pb.JobFilter(job_ids=[job])), "JOB_NOT_FOUND"),
        "BatchRetryJobs": (pb.BatchRetryJobsRequest(filter=pb.JobFilter(labels={"a": "b"})), "PERMISSION_DENIED"),
        "PreviewSchedule": (pb.PreviewScheduleRequest(cron=pb.Cron(expression="* * * * *")), ""),
        "UploadInput": (pb.UploadInputRequest(sha256="0" * 64, size_bytes=1), ""),
        "GetServerInfo": (None, ""),
        "ListTasks": (None, ""),
    }


def test_what_is_outside_of_the_pattern_does_not_exist(guarded: Guarded) -> None:
    requests = hidden_requests(guarded)
    assert sorted(requests) == sorted(methods())
    for method, (request, told) in requests.items():
        assert reason(guarded.server, method, guarded.tokens["limited"], request) == told, method
    with guarded.client("operate") as client:
        assert client.job(guarded.hidden.id).state == pb.STATE_QUEUED


def test_a_watch_of_what_the_caller_does_not_see_is_no_watch(guarded: Guarded) -> None:
    with guarded.client("operate") as operator, guarded.client("limited") as limited:
        job = operator.enqueue("other", "busybox", stop_when_unwatched=5)
        watch = limited.watch(job_ids=[job.id])
        assert isinstance(next(watch), api.JobPruned)
        eventually(lambda: operator.job(job.id).state == pb.STATE_STOPPED)
        watch.close()


def test_lists_and_watches_show_what_the_pattern_matches(guarded: Guarded) -> None:
    with guarded.client("limited") as client:
        assert [job.id for job in client.jobs(page_size=1)] == [guarded.shown.id]
        assert [each.job_id for each in client.executions(page_size=1)] == [guarded.shown.id]
        assert [task.id for task in client.tasks()] == ["team-a"]
        assert not client.job(guarded.shown.id).execution.waiting.ahead
        watch = client.watch()
        seen = []
        for event in watch:
            if isinstance(event, api.CaughtUp):
                break
            assert isinstance(event, api.JobChanged)
            seen.append(event.job.task_id)
        with guarded.client("operate") as operator:
            operator.enqueue("other", "busybox")
            last = operator.enqueue("team-b", "busybox")
        changed = next(event for event in watch if isinstance(event, api.JobChanged))
        assert (seen, changed.job.id) == (["team-a"], last.id)
        for event in client.watch(job_ids=[guarded.hidden.id]):
            assert isinstance(event, api.JobPruned)
            break
        client.stop(last.id)


def test_a_limited_token_may_not_choose_all_jobs(guarded: Guarded) -> None:
    with guarded.client("limited") as client:
        with pytest.raises(PermissionDenied, match="is limited to the tasks team-"):
            client.prune(timedelta(days=1))


# ---- streams


def end_of(events: Iterator[Any]) -> Exception | None:
    try:
        for _ in events:
            pass
    except api.Error as error:
        return error
    return None


def test_streams_of_a_revoked_token_end_at_once(guarded: Guarded) -> None:
    text = guarded.file.create("leaver", Role.VIEW)
    with guarded.client(text) as client:
        streams: Sequence[Any] = [
            client.tail(guarded.shown.execution.id),
            client.tail_job(guarded.shown.id),
            client.watch(),
        ]
        for stream in streams:
            next(stream)
        connection = HTTPConnection("127.0.0.1", guarded.server.http_port, timeout=20)
        path = f"/executions/{guarded.shown.execution.id}/logs"
        connection.request("GET", path, headers={"Authorization": f"Bearer {text}", "Accept": "text/event-stream"})
        response = connection.getresponse()
        assert response.status == 200
        guarded.file.revoke("leaver")
        for stream in streams:
            ended = end_of(stream)
            assert isinstance(ended, Unauthenticated), ended
            assert ended.reason == "TOKEN_INVALID"
        with pytest.raises(Exception, match="IncompleteRead"):
            response.read()
        connection.close()


def test_streams_end_when_their_token_expires(guarded: Guarded) -> None:
    text = guarded.file.create("short", Role.VIEW, expire_time=datetime.now(UTC) + timedelta(seconds=2))
    with guarded.client(text) as client:
        ended = end_of(client.watch())
    assert isinstance(ended, Unauthenticated)
    assert ended.reason == "TOKEN_EXPIRED"


# ---- the page


def test_a_login_keeps_the_token_where_no_script_and_no_other_site_has_it(guarded: Guarded) -> None:
    own = f"http://127.0.0.1:{guarded.server.http_port}"
    status, headers, _ = ask(guarded.server, "POST", "/login", {"token": guarded.tokens["submit"]}, Origin=own)
    assert status == 204
    cookie, *attributes = headers["set-cookie"].split("; ")
    assert sorted(each.lower() for each in attributes) == ["httponly", "path=/", "samesite=strict"]
    assert ask(guarded.server, "GET", "/jobs", Cookie=cookie)[0] == 200
    stop = f"/jobs/{guarded.shown.id}/pause"
    assert ask(guarded.server, "POST", stop, {}, Cookie=cookie)[0] == 401
    assert ask(guarded.server, "POST", stop, {}, Cookie=cookie, Origin="http://evil.example")[0] == 403
    assert ask(guarded.server, "POST", stop, {}, Cookie=cookie, Origin=own)[0] == 409
    status, headers, _ = ask(guarded.server, "POST", "/logout", {}, Cookie=cookie, Origin=own)
    assert (status, "Max-Age=0" in headers["set-cookie"]) == (204, True)


@pytest.mark.parametrize("body", [{}, {"token": 5}, [], "x", {"token": WRONG}, {"token": ""}])
def test_a_login_without_a_good_token_sets_no_cookie(guarded: Guarded, body: object) -> None:
    status, headers, _ = ask(guarded.server, "POST", "/login", body)
    assert (status in {400, 401}, "set-cookie" in headers) == (True, False)


@pytest.mark.parametrize("header", ["", "Bearer", "Basic eDp5", "bearer  ", f"Token {WRONG}", "Bearer \xff\xfe"])
def test_headers_that_hold_no_token_are_refused(guarded: Guarded, header: str) -> None:
    assert ask(guarded.server, "GET", "/jobs", Authorization=header)[0] == 401


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with browsing() as opened:
        yield opened


def test_the_page_asks_for_a_token_and_then_shows_what_it_may(guarded: Guarded, browser: Browser) -> None:
    page = browser.new_page()
    visit(page, f"http://127.0.0.1:{guarded.server.http_port}/")
    page.get_by_label("Token").fill(WRONG)
    page.get_by_role("button", name="Log in").click()
    expect(page.get_by_role("alert")).to_contain_text("the token is not valid")
    page.get_by_label("Token").fill(guarded.tokens["limited"])
    page.get_by_role("button", name="Log in").click()
    expect(page.get_by_role("link", name="team-a").first).to_be_visible()
    assert "other" not in page.locator("main").inner_text()
    assert page.evaluate("document.cookie") == ""
    visit(page, f"http://127.0.0.1:{guarded.server.http_port}/jobs/{guarded.hidden.id}")
    expect(page.get_by_role("heading", name="Not found")).to_be_visible()
    page.close()


# ---- guesses


def test_an_address_that_guesses_has_to_wait_and_good_clients_do_not(tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    data_dir.mkdir()
    file = TokenFile(data_dir)
    known, fresh = file.create("known", Role.VIEW), file.create("fresh", Role.VIEW)
    server = Server(data_dir, http_listen="127.0.0.1:0", engine="unix:///nobody", auth="tokens")
    try:
        assert reason(server, "GetServerInfo", known) == ""
        # One wrong token, however often it comes, is one guess: a page with an old cookie locks out nobody.
        assert {reason(server, "GetServerInfo", WRONG) for _ in range(15)} == {"TOKEN_INVALID"}
        told = [reason(server, "GetServerInfo", f"flt_{number}") for number in range(14)]
        assert told[:8] == ["TOKEN_INVALID"] * 8
        assert told[-1] == "TOO_MANY_ATTEMPTS"
        assert reason(server, "GetServerInfo", fresh) == "TOO_MANY_ATTEMPTS"
        status, headers, _ = ask(server, "GET", "/info", Authorization=f"Bearer {fresh}")
        assert (status, int(headers["retry-after"]) > 0) == (429, True)
        assert reason(server, "GetServerInfo", known) == ""
    finally:
        server.stop()
    assert "wrong tokens" in server.log


# ---- the file and its command


def fastlane(*arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    ran = forked.run(PROGRAM, *arguments, environment=environment(None, **more))
    return subprocess.CompletedProcess(ran.args, ran.returncode, ran.stdout.decode(), ran.stderr.decode())


def test_the_command_creates_lists_and_revokes_tokens(tmp_path: Path) -> None:
    at = ("--data-dir", str(tmp_path))
    made = fastlane("token", "create", "ci", "--role", "submit", "--task", "ci-*", "--expires", "90d", *at)
    assert (made.returncode, made.stdout[:4], len(made.stdout)) == (0, "flt_", 48)
    file = tmp_path / "tokens.json"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert made.stdout.strip() not in file.read_text()
    listed = fastlane("token", "ls", *at).stdout
    assert "ci" in listed
    assert "ci-*" in listed
    assert json.loads(fastlane("token", "ls", "-o", "json", *at).stdout)["role"] == "submit"
    again = fastlane("token", "create", "ci", "--role", "view", *at)
    assert (again.returncode, again.stderr) == (
        1,
        "fastlane: there is a token 'ci': revoke it first, or choose another name\n",
    )
    assert fastlane("token", "revoke", "ci", *at).stdout == "token ci is revoked\n"
    gone = fastlane("token", "revoke", "ci", *at)
    assert (gone.returncode, gone.stderr) == (1, "fastlane: there is no token 'ci'; see `fastlane token ls`\n")


def test_commands_take_the_token_of_a_file_or_of_the_environment(guarded: Guarded, tmp_path: Path) -> None:
    address = ("--address", guarded.server.address)
    file = tmp_path / "token"
    file.write_text(guarded.tokens["view"] + "\n")
    assert fastlane("tasks", *address, "--token-file", str(file)).returncode == 0
    assert fastlane("tasks", *address, FASTLANE_TOKEN=guarded.tokens["view"]).returncode == 0
    without = fastlane("tasks", *address)
    assert (without.returncode, "it requires a token: set FASTLANE_TOKEN or --token-file" in without.stderr) == (
        1,
        True,
    )
    missing = fastlane("tasks", *address, "--token-file", "/nope")
    assert (missing.returncode, "cannot read --token-file /nope" in missing.stderr) == (2, True)


def test_tokens_that_are_created_at_the_same_time_are_all_kept(tmp_path: Path) -> None:
    threads = [threading.Thread(target=TokenFile(tmp_path).create, args=(f"t{i}", Role.VIEW)) for i in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {token.name for token in TokenFile(tmp_path).read()} == {f"t{i}" for i in range(20)}


@pytest.mark.parametrize("name", ["", "-x", "a b", "a\n", "x" * 64, "é"])
def test_names_that_could_confuse_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(TokenRefused):
        TokenFile(tmp_path).create(name, Role.VIEW)


DAMAGES: Sequence[Callable[[Path], object]] = [
    lambda path: path.write_text("{"),
    lambda path: path.write_text('{"tokens": [{}]}'),
    lambda path: path.unlink(),
]


def test_a_damaged_file_admits_nobody_until_it_is_restored(tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    data_dir.mkdir()
    text = TokenFile(data_dir).create("a", Role.VIEW)
    path = data_dir / "tokens.json"
    content = path.read_bytes()
    server = Server(data_dir, engine="unix:///nobody", auth="tokens")
    try:
        for damage in DAMAGES:
            assert reason(server, "GetServerInfo", text) == ""
            damage(path)
            assert reason(server, "GetServerInfo", text) == "TOKEN_INVALID"
            new = path.with_suffix(".restored")
            new.write_bytes(content)
            os.replace(new, path)  # noqa: PTH105
    finally:
        server.stop()
    path.write_text("{")
    with pytest.raises(RuntimeError, match="is damaged: restore it, or delete it"):
        Server(data_dir, engine="unix:///nobody", auth="tokens")


def test_the_doctor_knows_a_server_that_requires_tokens(guarded: Guarded) -> None:
    [finding] = about_server(guarded.server.address)
    assert (finding.level, "that requires tokens responds" in finding.found) == ("ok", True)


# ---- certificates


def test_a_certificate_has_the_role_that_its_name_was_given(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    data_dir = tmp_path / "data"
    data_dir.mkdir()
    assert TokenFile(data_dir).create("viewer", Role.VIEW, certificate="viewer") == ""
    pair, viewer, nobody = authority.sign("server"), authority.sign("viewer"), authority.sign("nobody")
    tls = {"tls_cert": str(pair.cert), "tls_key": str(pair.key), "tls_client_ca": str(authority.cert)}
    server = Server(data_dir, http_listen="127.0.0.1:0", engine="unix:///nobody", auth="tokens", **tls)
    try:
        with Client(server.address, tls_ca=authority.cert, tls_cert=viewer.cert, tls_key=viewer.key) as client:
            assert list(client.jobs()) == []
            with pytest.raises(PermissionDenied, match="EnqueueJob needs the role submit; the token 'viewer' has view"):
                client.enqueue("task", "busybox")
        with Client(server.address, tls_ca=authority.cert, tls_cert=nobody.cert, tls_key=nobody.key) as client:
            with pytest.raises(Unauthenticated, match="there is none for the certificate 'nobody'"):
                client.server_info()
        for own, status in ((viewer, 200), (nobody, 401)):
            command: list[str | Path] = [
                "curl",
                "-s",
                "-o",
                "/dev/null",
                "-w",
                "%{http_code}",
                "--cacert",
                authority.cert,
            ]
            url = f"https://localhost:{server.http_port}/info"
            ran = subprocess.run([*command, "--cert", own.cert, "--key", own.key, url], capture_output=True, text=True)
            assert ran.stdout == str(status)
    finally:
        server.stop()


# ---- other machines


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"listen": "0.0.0.0:0"}, "connections are not encrypted (tls_cert), and anyone can run containers"),
        ({"http_listen": "0.0.0.0:0"}, "other machines reach 0.0.0.0:0: connections are not encrypted"),
        ({"listen": "0.0.0.0:0", "auth": "tokens"}, "0.0.0.0:0: connections are not encrypted (tls_cert); set these"),
        ({"listen": "[::]:0", "tls": True}, "[::]:0: anyone can run containers, which is root on the engine's host"),
        ({"listen": "0.0.0.0:0", "tls": True, "auth": "tokens"}, ""),
        ({"listen": "0.0.0.0:0", "tls": True, "tls_client_ca": True}, ""),
        ({"listen": "0.0.0.0:0", "insecure": "true"}, ""),
    ],
)
def test_a_server_that_other_machines_reach_is_safe_or_says_that_it_is_not(
    tmp_path: Path, settings: Mapping[str, object], said: str
) -> None:
    authority = Authority(tmp_path)
    files = {"tls_client_ca": authority.cert}
    given: dict[str, Any] = {name: files.get(name, value) for name, value in settings.items() if name != "tls"}
    if "tls" in settings:
        pair = authority.sign("server")
        given |= {"tls_cert": pair.cert, "tls_key": pair.key}
    checked = load({"data_dir": str(tmp_path / "data"), "http_listen": "off", **given}, {}, None)
    if not said:
        check_reach(checked)
        return
    with pytest.raises(CannotServe) as raised:
        check_reach(checked)
    assert said in str(raised.value)
    assert str(raised.value).endswith("or accept it with --insecure")


def test_insecure_may_be_a_flag_a_variable_or_in_the_file(tmp_path: Path) -> None:
    file = tmp_path / "settings.toml"
    file.write_text("insecure = true")
    assert load({}, {}, file).insecure
    assert load({}, {"FASTLANE_INSECURE": "true"}, None).insecure
    assert '"insecure": {\n    "value": "true"' in fastlane("config", "--insecure", "-o", "json").stdout
    assert not load({}, {"FASTLANE_INSECURE": "false"}, file=None).insecure
