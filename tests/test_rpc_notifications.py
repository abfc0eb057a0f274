"""The calls about notifications, over gRPC: what they take, what they answer, and what they refuse."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2

from fastlane_grpc.app import Server
from fastlane_grpc.client import AsyncClient, Client, InvalidRequest, Mail, NotFound, Webhook
from fastlane_grpc.config import HostSettings, Settings
from fastlane_grpc.v1 import fastlane_pb2 as pb
from fastlane_grpc.v1 import fastlane_pb2_grpc as pb_grpc
from tests.calls import detail, info
from tests.notified import FAST, WHSEC
from tests.receivers import HttpReceiver, answer_with
from tests.test_job_spec import paths

TO = "ops@example.org"


@pytest.fixture(scope="module")
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Server]:
    """One whose engine is not there: what it is told to stop ends at once."""
    directory = tmp_path_factory.mktemp("notifications")
    keys = directory / "keys"
    keys.write_text(f"team={WHSEC}\n")
    settings = Settings(
        data_dir=directory / "data",
        listen="127.0.0.1:0",
        http_listen="",
        hosts=(HostSettings("here", f"unix://{directory}/no-engine"),),
        webhook_secrets=keys,
        notify_retries=1,
        notify_backoff=FAST,
        smtp_host="127.0.0.1",
        smtp_port=1,
        smtp_from="fastlane@example.org",
    )
    async with Server(settings) as server:
        yield server


@pytest.fixture
async def channel(server: Server) -> AsyncIterator[grpc.aio.Channel]:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        yield channel


@pytest.fixture
def jobs(channel: grpc.aio.Channel) -> Any:
    return pb_grpc.JobServiceStub(channel)


@pytest.fixture
def notifications(channel: grpc.aio.Channel) -> Any:
    return pb_grpc.NotificationServiceStub(channel)


@pytest.fixture
async def client(server: Server) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(f"127.0.0.1:{server.port}") as client:
        yield client


def request(*notifications: pb.Notification, task_id: str = "t", **options: Any) -> pb.EnqueueJobRequest:
    spec = pb.JobSpec(image="busybox", notifications=notifications)
    return pb.EnqueueJobRequest(task_id=task_id, spec=spec, **options)


def hook(url: str = "https://example.org/hook", **webhook: Any) -> pb.Notification:
    return pb.Notification(webhook=pb.Notification.Webhook(url=url, **webhook))


def mail(*to: str, **options: Any) -> pb.Notification:
    return pb.Notification(mail=pb.Notification.Mail(to=to, **options))


async def refused(call: Any) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await call
    return error.value


def violations(error: grpc.aio.AioRpcError) -> list[Any]:
    bad_request = detail(error, error_details_pb2.BadRequest)
    assert bad_request
    return list(bad_request.field_violations)


async def failed(client: AsyncClient, job_id: str) -> pb.Delivery:
    """The delivery about this job, once it is given up."""
    while True:
        async for delivery in client.deliveries(job_id=job_id, states=[pb.DELIVERY_STATE_FAILED]):
            return delivery


# ------------------------------------------------------------------------------------------------------------- requests


async def test_every_field_of_a_notification_is_kept_and_secrets_are_masked(jobs: Any) -> None:
    full = pb.Notification(
        states=[pb.STATE_FAILED, pb.STATE_LOST],
        event=pb.Notification.EVENT_ATTEMPT_ENDED,
        webhook=pb.Notification.Webhook(
            url="https://user:hunter2@example.org/hook?token=hunter2",
            headers={"X-Api-Key": "hunter2", "Authorization": "Basic hunter2", "X-Team": "mail"},
            max_retries=3,
            secret=WHSEC,
        ),
    )
    full.webhook.timeout.FromSeconds(7)
    named = hook(secret_name="team")
    by_mail = mail(TO, "b@example.org", subject="Oh no")
    kept = (await jobs.EnqueueJob(request(full, named, by_mail))).job
    shown = pb.Notification()
    shown.CopyFrom(full)
    shown.webhook.url = "https://user:***@example.org/hook?token=***"
    shown.webhook.headers.update({"X-Api-Key": "***", "Authorization": "***"})
    shown.webhook.secret = "***"
    assert list(kept.spec.notifications) == [shown, named, by_mail]
    assert list((await jobs.GetJob(pb.GetJobRequest(job_id=kept.id))).job.spec.notifications) == [shown, named, by_mail]
    given = {path for each in (full, named, by_mail) for path in set_paths(each)}
    assert given == set(paths(pb.Notification.DESCRIPTOR)), "every field is tried here"


def set_paths(message: Any, above: str = "") -> set[str]:
    found: set[str] = set()
    for field, value in message.ListFields():
        name = f"{above}{field.name}"
        nested = field.message_type is not None and field.message_type.file is pb.DESCRIPTOR and not field.is_repeated
        found |= set_paths(value, f"{name}.") if nested else {name}
    return found


async def test_a_repeated_request_is_the_same_without_its_secrets(jobs: Any) -> None:
    first = await jobs.EnqueueJob(request(hook(secret=WHSEC), request_id="same"))
    again = await jobs.EnqueueJob(request(hook(secret="whsec_" + "B" * 32), request_id="same"))
    assert (again.existing, again.job.id) == (True, first.job.id)
    error = await refused(jobs.EnqueueJob(request(hook("https://other.example.org"), request_id="same")))
    assert info(error).reason == "REQUEST_ID_REUSED"


@pytest.mark.parametrize(
    ("notification", "field", "words"),
    [
        (pb.Notification(), "", "needs a receiver"),
        (hook(""), ".webhook.url", "is required"),
        (hook("ftp://example.org"), ".webhook.url", "must be an http:// or https:// URL"),
        (hook("http://exa mple.org"), ".webhook.url", "is not a URL"),
        (hook("http://example.org:99999"), ".webhook.url", "its host or port is wrong"),
        (hook("http://2130706433/"), ".webhook.url", "must not have a number as its host"),
        (hook("http://0xa9.0xfe.0xa9.0xfe/"), ".webhook.url", "must not have a number as its host"),
        (hook("http://0xa9fea9fe./"), ".webhook.url", "must not have a number as its host"),
        (hook("http://169.254.169.254/latest"), ".webhook.url", "169.254.169.254 is never allowed"),
        (hook("http://u@[::ffff:169.254.169.254]:80/"), ".webhook.url", "is never allowed"),
        (hook("http://0.0.0.0/"), ".webhook.url", "0.0.0.0 is never allowed"),
        (hook("https://10.0.0.1/"), ".webhook.url", "10.0.0.1 is not in webhook_networks (public,loopback)"),
        (hook("http://[::1%25eth0]/"), ".webhook.url", "host"),
        (hook("http://example.org/#a"), ".webhook.url", "fragment"),
        (hook("http://example.org/" + "x" * 2048), ".webhook.url", "at most 2048"),
        (hook("http://u:***@example.org/"), ".webhook.url", "in place of a secret"),
        (hook("http://example.org/\r\nX: y"), ".webhook.url", "is not a URL"),
        (hook(headers={"Host": "x"}), '.webhook.headers["Host"]', "cannot be given"),
        (hook(headers={"webhook-ID": "x"}), '.webhook.headers["webhook-ID"]', "cannot be given"),
        (hook(headers={"Proxy-Authorization": "x"}), '.webhook.headers["Proxy-Authorization"]', "cannot be given"),
        (hook(headers={"Transfer-Encoding": "x"}), '.webhook.headers["Transfer-Encoding"]', "cannot be given"),
        (hook(headers={"a b": "x"}), '.webhook.headers["a b"]', "is not a header's name"),
        (hook(headers={"a": "x\r\nb: c"}), '.webhook.headers["a"]', "printable ASCII"),
        (hook(headers={"a": "x" * 1025}), '.webhook.headers["a"]', "at most 1024"),
        (hook(headers={"X-Token": "***"}), '.webhook.headers["X-Token"]', "in place of a secret"),
        (hook(headers={f"a{number}": "" for number in range(17)}), ".webhook.headers", "at most 16"),
        (hook(max_retries=101), ".webhook.max_retries", "is 101"),
        (hook(max_retries=-1), ".webhook.max_retries", "is -1"),
        (hook(secret="hunter2"), ".webhook.secret", "must be whsec_ and the base64 of 24 to 64 bytes"),
        (hook(secret="***"), ".webhook.secret", "stands for a value that was not shown"),
        (hook(secret=WHSEC, secret_name="team"), ".webhook.secret_name", "cannot be set together"),
        (hook(secret_name="other"), ".webhook.secret_name", "the server has no key 'other'"),
        (pb.Notification(webhook=hook().webhook, states=[pb.STATE_RUNNING]), ".states[0]", "is not a final state"),
        (pb.Notification(webhook=hook().webhook, states=[99]), ".states[0]", "99 is not a state"),  # type: ignore[list-item]
        (pb.Notification(webhook=hook().webhook, event=9), ".event", "9 is not an event"),  # type: ignore[arg-type]
        (mail(), ".mail.to", "is required"),
        (mail("nobody"), ".mail.to[0]", "is not a mail address"),
        (mail(TO, TO), ".mail.to[1]", "is in the list twice"),
        (mail("a@b\r\nBcc: x@y"), ".mail.to[0]", "is not a mail address"),
        (mail('"a b"@example.org'), ".mail.to[0]", "is not a mail address"),
        (mail("<a@example.org>"), ".mail.to[0]", "is not a mail address"),
        (mail(*(f"a{number}@b" for number in range(17))), ".mail.to", "at most 16"),
        (mail(TO, subject="a\r\nBcc: x@y"), ".mail.subject", "must be one line"),
        (mail(TO, subject="x" * 201), ".mail.subject", "at most 200"),
    ],
)
async def test_a_notification_that_cannot_be_is_refused_by_its_field(
    jobs: Any, notification: pb.Notification, field: str, words: str
) -> None:
    error = await refused(jobs.EnqueueJob(request(hook(), notification)))
    found = {each.field: each.description for each in violations(error)}
    assert words in found[f"spec.notifications[1]{field}"]
    assert "hunter2" not in str(found)


async def test_too_many_notifications_are_refused(jobs: Any) -> None:
    error = await refused(jobs.EnqueueJob(request(*[hook()] * 17)))
    assert [each.field for each in violations(error)] == ["spec.notifications"]


async def test_a_server_without_mail_refuses_mails(tmp_path: Path) -> None:
    hosts = (HostSettings("here", f"unix://{tmp_path}/no-engine"),)
    async with (
        Server(Settings(data_dir=tmp_path, listen="127.0.0.1:0", http_listen="", hosts=hosts)) as server,
        AsyncClient(f"127.0.0.1:{server.port}") as client,
    ):
        with pytest.raises(InvalidRequest, match="its setting smtp_host is empty"):
            await client.enqueue("t", "busybox", notifications=[Mail(TO)])


# ----------------------------------------------------------------------------------------------------------- deliveries


async def test_a_dead_letter_is_listed_and_delivered_once_more(client: AsyncClient) -> None:
    async with HttpReceiver(answer_with(b"HTTP/1.1 500 Oops\r\n\r\n")) as receiver:
        job = await client.enqueue("t", "busybox", notifications=[Webhook(receiver.url, secret_name="team")])
        await client.stop(job.id)
        dead = await failed(client, job.id)
        assert (dead.task_id, dead.execution_id) == ("t", job.execution.id)
        assert (dead.event, dead.ended_state) == (pb.Notification.EVENT_RUN_ENDED, pb.STATE_STOPPED)
        assert (dead.receiver, dead.attempts, dead.detail) == (receiver.url, 2, "HTTP 500")
        assert dead.HasField("end_time")
        assert not dead.HasField("next_attempt_time")
        receiver.answer = answer_with(b"HTTP/1.1 200 OK\r\n\r\n")
        again = await client.redeliver(dead.id)
        assert (again.id, again.state, again.attempts) == (dead.id, pb.DELIVERY_STATE_PENDING, 0)
        posts = await receiver.received(3)
        assert {post.id for post in posts} == {dead.id}


async def test_deliveries_are_paged_newest_first_and_filtered(client: AsyncClient, notifications: Any) -> None:
    targets = [Webhook(f"http://127.0.0.1:1/{number}") for number in range(5)]
    job = await client.enqueue("paged", "busybox", notifications=targets)
    await client.stop(job.id)
    while len(found := [each async for each in client.deliveries(job_id=job.id)]) < 5:
        pass
    assert [each.receiver[-1] for each in found] == ["4", "3", "2", "1", "0"]
    paged = [each.id async for each in client.deliveries(job_id=job.id, page_size=2)]
    assert paged == [each.id for each in found]
    assert not [each async for each in client.deliveries(job_id=job.id, states=[pb.DELIVERY_STATE_DELIVERED])]
    page = await notifications.ListDeliveries(pb.ListDeliveriesRequest(page_size=1))
    other = pb.ListDeliveriesRequest(page_size=1, job_id=job.id, page_token=page.next_page_token)
    assert info(await refused(notifications.ListDeliveries(other))).reason == "PAGE_TOKEN_INVALID"
    wrong = pb.ListDeliveriesRequest(states=[9], page_size=-1)  # type: ignore[list-item]
    assert {each.field for each in violations(await refused(notifications.ListDeliveries(wrong)))} == {
        "states[0]",
        "page_size",
    }


async def test_an_unknown_delivery_cannot_be_delivered(client: AsyncClient, notifications: Any) -> None:
    error = await refused(notifications.RedeliverNotification(pb.RedeliverNotificationRequest(delivery_id="x")))
    assert (error.code(), info(error).reason) == (grpc.StatusCode.NOT_FOUND, "DELIVERY_NOT_FOUND")
    assert info(error).metadata["delivery_id"] == "x"
    with pytest.raises(NotFound):
        await client.redeliver("x")
    error = await refused(notifications.RedeliverNotification(pb.RedeliverNotificationRequest()))
    assert [each.field for each in violations(error)] == ["delivery_id"]


# ---------------------------------------------------------------------------------------------------------------- tasks


async def test_a_task_has_notifications_for_jobs_without_any(client: AsyncClient) -> None:
    async with HttpReceiver() as receiver:
        task = await client.update_task("told", notifications=[Webhook(receiver.url, secret=WHSEC)])
        assert [each.webhook.secret for each in task.notifications] == ["***"]
        # What is not set stays as it is.
        task = await client.update_task("told", max_running=3)
        assert (task.max_running, len(task.notifications)) == (3, 1)
        job = await client.enqueue("told", "busybox")
        await client.stop(job.id)
        [post] = await receiver.received(1)
        assert post.json["data"]["job"]["id"] == job.id
        task = await client.update_task("told", notifications=[])
        assert not task.notifications
    with pytest.raises(InvalidRequest, match=r"notifications\.items\[0\]\.mail\.to\[0\]"):
        await client.update_task("told", notifications=[Mail("nobody")])


# -------------------------------------------------------------------------------------------------------------- clients


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (Mail(TO), "notifications must be a list"),
        ("x", "notifications must be a list"),
        (["x"], r"notifications\[0\] must be a Webhook or a Mail; a value of type str was given"),
    ],
)
def test_an_argument_of_another_type_is_named(server: Server, given: Any, words: str) -> None:
    with Client(f"127.0.0.1:{server.port}") as client, pytest.raises(TypeError, match=words):
        client.enqueue("t", "busybox", notifications=given)


def test_a_secret_is_not_in_the_text_of_a_webhook() -> None:
    assert "hunter2" not in repr(Webhook("http://a", secret="hunter2", headers={"a": "hunter2"}))
