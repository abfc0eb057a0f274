"""Conversion of notifications and deliveries between values of the model and messages of the contract."""

from collections.abc import Iterable, Sequence

from fastlane_grpc.api.pages import PageRequest
from fastlane_grpc.api.times import read_optional_duration, timestamp
from fastlane_grpc.errors import Violation
from fastlane_grpc.model import (
    Delivery,
    DeliveryState,
    Mail,
    Notification,
    NotificationEvent,
    State,
    Webhook,
)
from fastlane_grpc.store import DeliveryQuery
from fastlane_grpc.text.redaction import SecretNames
from fastlane_grpc.v1 import fastlane_pb2 as pb

# Enums of protobuf are open: a message may hold any number.
_STATES = frozenset(map(int, State))
_EVENTS = frozenset(map(int, NotificationEvent))
_DELIVERY_STATES = frozenset(map(int, DeliveryState))


def read_notifications(
    messages: Iterable[pb.Notification], field: str, violations: list[Violation]
) -> tuple[Notification, ...]:
    """Return the notifications in this field of a request. One without a target is left out."""
    read = (_read_notification(message, f"{field}[{number}]", violations) for number, message in enumerate(messages))
    return tuple(each for each in read if each is not None)


def _read_notification(message: pb.Notification, field: str, violations: list[Violation]) -> Notification | None:
    states: list[State] = []
    for index, number in enumerate(map(int, message.states)):
        if number in _STATES:
            states.append(State(number))
        else:
            violations.append(Violation(f"{field}.states[{index}]", f"{number} is not a state"))
    event = NotificationEvent.UNSPECIFIED
    if int(message.event) in _EVENTS:
        event = NotificationEvent(message.event)
    else:
        violations.append(Violation(f"{field}.event", f"{message.event} is not an event"))
    which = message.WhichOneof("target")
    if which == "webhook":
        return Notification(_read_webhook(message.webhook, f"{field}.webhook", violations), tuple(states), event)
    if which == "mail":
        return Notification(Mail(tuple(message.mail.to), message.mail.subject), tuple(states), event)
    violations.append(Violation(f"{field}", "needs a receiver: set webhook or mail"))
    return None


def _read_webhook(message: pb.Notification.Webhook, field: str, violations: list[Violation]) -> Webhook:
    return Webhook(
        message.url,
        dict(message.headers.items()),
        message.max_retries,
        message.secret,
        message.secret_name,
        read_optional_duration(message, "timeout", f"{field}.timeout", violations),
    )


def write_notification(message: pb.Notification, value: Notification) -> None:
    """Write a notification, whose secrets are masked, into an empty message."""
    message.states.extend(pb.State.ValueType(state) for state in value.states)
    message.event = pb.Notification.Event.ValueType(value.event)
    target = value.target
    if isinstance(target, Mail):
        message.mail.to.extend(target.to)
        message.mail.subject = target.subject
        return
    webhook = message.webhook
    webhook.url = target.url
    webhook.headers.update(target.headers)
    webhook.max_retries = target.max_retries
    webhook.secret, webhook.secret_name = target.secret, target.secret_name
    if target.timeout is not None:
        webhook.timeout.FromTimedelta(target.timeout)


def notifications(values: Sequence[Notification], secret_names: SecretNames) -> list[pb.Notification]:
    """Return the messages of notifications, without secrets."""
    messages = [pb.Notification() for _ in values]
    for message, value in zip(messages, values, strict=True):
        write_notification(message, value.redacted(secret_names))
    return messages


def read_delivery_query(request: pb.ListDeliveriesRequest) -> tuple[PageRequest[DeliveryQuery], list[Violation]]:
    violations: list[Violation] = []
    states: set[DeliveryState] = set()
    for index, number in enumerate(map(int, request.states)):
        if number in _DELIVERY_STATES:
            states.add(DeliveryState(number))
        else:
            violations.append(Violation(f"states[{index}]", f"{number} is not a state of a delivery"))
    query = DeliveryQuery(request.job_id, tuple(sorted(states)))
    return PageRequest(query, request.page_size, request.page_token), violations


def write_delivery(message: pb.Delivery, value: Delivery, secret_names: SecretNames) -> pb.Delivery:
    """Write a delivery into an empty message, without secrets, and return the message."""
    message.id = value.id
    message.job_id = value.job.id
    message.task_id = value.job.task_id
    message.execution_id = value.execution.id
    message.event = pb.Notification.Event.ValueType(value.event)
    message.ended_state = pb.State.ValueType(value.ended_state)
    message.receiver = secret_names.mask(value.receiver)
    message.state = pb.DeliveryState.ValueType(value.state)
    message.attempts = value.attempts
    message.detail = value.detail
    for name, time in (
        ("create_time", value.create_time),
        ("next_attempt_time", value.next_time),
        ("last_attempt_time", value.last_time),
        ("end_time", value.end_time),
    ):
        if time is not None:
            getattr(message, name).CopyFrom(timestamp(time))
    return message
