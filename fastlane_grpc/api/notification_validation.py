"""Rules for notifications: their receivers, headers and secrets."""

import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import timedelta

from fastlane_grpc.errors import Violation
from fastlane_grpc.model import Mail, Notification, Webhook
from fastlane_grpc.networks import Networks
from fastlane_grpc.notifications import key_fault
from fastlane_grpc.text.receivers import mail_address_fault, url_fault
from fastlane_grpc.text.redaction import REDACTED, SecretNames
from fastlane_grpc.text.sanitize import control_character

MAX_NOTIFICATIONS = 16
MAX_RECEIVERS = 16
MAX_HEADERS, MAX_HEADER_NAME, MAX_HEADER_VALUE = 16, 64, 1024
MAX_SUBJECT = 200
MAX_RETRIES = 100
MIN_TIMEOUT, MAX_TIMEOUT = timedelta(seconds=1), timedelta(seconds=60)

_HEADER_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_HEADER_VALUE = re.compile(r"[ -~]*")
# Of HTTP itself, of the connection, or what says what the body is.
_RESERVED = frozenset(
    (
        *("host", "connection", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade", "expect"),
        *("content-length", "content-type", "content-encoding", "accept-encoding", "user-agent"),
    )
)
_RESERVED_PREFIXES = ("proxy-", "webhook-", "fastlane-")
_MASKED = f"contains {REDACTED} in place of a secret that was not shown; give the real one"


@dataclass(frozen=True, slots=True)
class Receivers:
    """The abilities of the server: whether it has a mail server, whether it has a key of a name, and the addresses that
    webhooks may have."""

    has_mail: bool
    has_key: Callable[[str], bool]
    networks: Networks = field(default_factory=Networks)


def notification_violations(
    notifications: Sequence[Notification], field: str, receivers: Receivers, secret_names: SecretNames
) -> Iterator[Violation]:
    if len(notifications) > MAX_NOTIFICATIONS:
        yield Violation(field, f"has {len(notifications)} entries; at most {MAX_NOTIFICATIONS} are allowed")
        return
    for number, notification in enumerate(notifications):
        path, target = f"{field}[{number}]", notification.target
        for index, state in enumerate(notification.states):
            if not state.final:
                yield Violation(f"{path}.states[{index}]", f"{state.name} is not a final state")
        if isinstance(target, Webhook):
            yield from _webhook_violations(target, f"{path}.webhook", receivers, secret_names)
        else:
            yield from _mail_violations(target, f"{path}.mail", receivers)


def _webhook_violations(
    webhook: Webhook, field: str, receivers: Receivers, secret_names: SecretNames
) -> Iterator[Violation]:
    if not webhook.url:
        yield Violation(f"{field}.url", "is required")
    elif secret_names.holds_mask(webhook.url):
        yield Violation(f"{field}.url", _MASKED)
    elif fault := url_fault(webhook.url):
        yield Violation(f"{field}.url", fault)
    elif refusal := receivers.networks.refusal_in(webhook.url):
        # What a name stands for is checked at each attempt.
        yield Violation(f"{field}.url", f"cannot be used: {refusal}")
    yield from _header_violations(webhook, field, secret_names)
    if not 0 <= webhook.max_retries <= MAX_RETRIES:
        yield Violation(
            f"{field}.max_retries", f"is {webhook.max_retries}; it must be 0 (the server's default) to {MAX_RETRIES}"
        )
    if webhook.secret and webhook.secret_name:
        yield Violation(f"{field}.secret_name", f"cannot be set together with {field}.secret")
    if webhook.secret == REDACTED:
        yield Violation(f"{field}.secret", f"{REDACTED} stands for a value that was not shown; give the real one")
    elif webhook.secret and (fault := key_fault(webhook.secret)):
        yield Violation(f"{field}.secret", fault)
    if webhook.secret_name and not receivers.has_key(webhook.secret_name):
        yield Violation(
            f"{field}.secret_name", f"the server has no key {webhook.secret_name[:100]!r}; see its webhook_secrets"
        )
    if webhook.timeout is not None and not MIN_TIMEOUT <= webhook.timeout <= MAX_TIMEOUT:
        yield Violation(f"{field}.timeout", "must be from 1 s to 60 s")


def _header_violations(webhook: Webhook, field: str, secret_names: SecretNames) -> Iterator[Violation]:
    if len(webhook.headers) > MAX_HEADERS:
        yield Violation(f"{field}.headers", f"has {len(webhook.headers)} entries; at most {MAX_HEADERS} are allowed")
        return
    for name, value in webhook.headers.items():
        path = f"{field}.headers[{json.dumps(secret_names.mask(name)[:100])}]"
        lowered = name.lower()
        if len(name) > MAX_HEADER_NAME or not _HEADER_NAME.fullmatch(name):
            yield Violation(path, f"is not a header's name of at most {MAX_HEADER_NAME} characters")
        elif lowered in _RESERVED or lowered.startswith(_RESERVED_PREFIXES):
            yield Violation(path, "is set by fastlane or by HTTP itself, and cannot be given")
        elif len(value) > MAX_HEADER_VALUE or not _HEADER_VALUE.fullmatch(value):
            yield Violation(path, f"must have a value of at most {MAX_HEADER_VALUE} printable ASCII characters")
        elif value == REDACTED or secret_names.holds_mask(value):
            yield Violation(path, _MASKED)


def _mail_violations(mail: Mail, field: str, receivers: Receivers) -> Iterator[Violation]:
    if not receivers.has_mail:
        yield Violation(field, "this server sends no mails: its setting smtp_host is empty")
    if not mail.to:
        yield Violation(f"{field}.to", "is required")
    if len(mail.to) > MAX_RECEIVERS:
        yield Violation(f"{field}.to", f"has {len(mail.to)} entries; at most {MAX_RECEIVERS} are allowed")
        return
    for index, address in enumerate(mail.to):
        if fault := mail_address_fault(address):
            yield Violation(f"{field}.to[{index}]", f"{address[:100]!r} {fault}")
        elif address in mail.to[:index]:
            yield Violation(f"{field}.to[{index}]", f"{address!r} is in the list twice")
    if len(mail.subject) > MAX_SUBJECT or control_character(mail.subject):
        yield Violation(f"{field}.subject", f"must be one line of at most {MAX_SUBJECT} characters")
