"""Rules for the fields of requests. Each function yields a violation for each invalid field, which names the field."""

import json
import posixpath
import re
import signal
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime, timedelta
from itertools import islice

from fastlane_grpc.api.container_validation import (
    content_violations,
    credential_violations,
    inputs_violations,
    limits_violations,
    network_violations,
    options_violations,
    outputs_violations,
)
from fastlane_grpc.api.schedule_validation import never_ticks_violations, policy_violations
from fastlane_grpc.errors import InvalidRequest, Violation
from fastlane_grpc.model import DEFAULT_LIMITS, JobSpec
from fastlane_grpc.recorder import HARD_STOP
from fastlane_grpc.text.redaction import REDACTED, SecretNames, mask_secrets
from fastlane_grpc.text.sanitize import control_character
from fastlane_grpc.text.shell_words import split_command

MAX_VIOLATIONS = 16
MAX_WORDS = 10_000
MAX_NOTE = 256
MAX_SECRETS = 64
MAX_REQUEST_ID = 128
MAX_TAIL_LINES = 1_000_000
MAX_GRACE = timedelta(hours=1)
MAX_LABEL_FILTERS = 8
# A later start or expiry is probably a mistake, such as milliseconds in place of seconds.
MAX_AHEAD = timedelta(days=3653)
MIN_HEARTBEAT, MAX_HEARTBEAT = timedelta(seconds=1), timedelta(seconds=60)

DEFAULT_SECRET_NAMES = SecretNames()

_TASK_ID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_SECRET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}(/[A-Za-z0-9_-][A-Za-z0-9._-]{0,127})?")
_ID_PREFIX = re.compile(r"[0-9a-f-]{0,36}")
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")

# The reference of an image, as for `docker run`: [host[:port]/]path[:tag][@digest], or an image's id.
_DNS_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?"
_HOST = rf"(?:{_DNS_LABEL}(?:\.{_DNS_LABEL})*|\[[0-9A-Fa-f:]+\])(?::[0-9]+)?"
_PART = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_TAG = r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}"
_DIGEST = r"sha256:[0-9a-f]{64}"
_IMAGE = re.compile(rf"(?:{_HOST}/)?{_PART}(?:/{_PART})*(?::{_TAG})?(?:@{_DIGEST})?|{_DIGEST}")
_LABEL_NAME = re.compile(r"[!-<>-~]{1,63}")

_MASKED = f"contains {REDACTED} in place of a secret that was not shown; give the real one"

# The kernel's limit for one argument or one variable.
_MAX_WORD = (128 << 10) - 1
# A word of so many characters is within that limit, whatever they are.
_SHORT_WORD = _MAX_WORD // 4
# A command without these, and no longer than that, has only words without fault.
_FAULT_MARKS = frozenset("\0*")


def raise_if_invalid(violations: Iterable[Violation]) -> None:
    """Raise InvalidRequest with the first violations, at most MAX_VIOLATIONS, if there is one."""
    if found := list(islice(violations, MAX_VIOLATIONS)):
        raise InvalidRequest(found)


def enqueue_violations(
    task_id: str,
    spec: JobSpec,
    request_id: str,
    max_timeout: timedelta,
    now: datetime,
    secret_names: SecretNames = DEFAULT_SECRET_NAMES,
) -> Iterator[Violation]:
    # Most jobs use few of the fields: what is not set takes no call.
    if not are_ids_valid(task_id, request_id):
        yield from task_id_violations(task_id)
        yield from request_id_violations(request_id)
    for name, words in (("args", spec.args), ("entrypoint", spec.entrypoint), ("envs", spec.envs)):
        if len(words) > MAX_WORDS:
            yield Violation(f"spec.{name}", f"has {len(words)} entries; at most {MAX_WORDS} are allowed")
            return
    yield from _command_violations(spec, secret_names)
    yield from _envs_violations(spec.envs, secret_names)
    if spec.working_dir or spec.user or spec.network or spec.stop_signal:
        yield from _container_violations(spec)
    if spec.limits is not DEFAULT_LIMITS:
        yield from limits_violations(spec.limits)
    if spec.has_options:
        yield from options_violations(spec)
    if spec.inputs:
        yield from inputs_violations(spec)
    if spec.outputs:
        yield from outputs_violations(spec.outputs)
    if spec.stdin is not None:
        yield from content_violations("spec.stdin", spec.stdin)
    if spec.registry_credential:
        yield from credential_violations(spec.registry_credential)
    if spec.secret_envs:
        yield from _secret_envs_violations(spec, secret_names)
    if spec.timeout is not None and not timedelta(milliseconds=1) <= spec.timeout <= max_timeout:
        yield Violation("spec.timeout", f"must be from 1 ms to {_seconds(max_timeout)}, the server's max_timeout")
    if spec.stop_grace is not None:
        yield from grace_violations("spec.stop_grace", spec.stop_grace)
    if not -100 <= spec.priority <= 100:
        yield Violation("spec.priority", f"is {spec.priority}; it must be from -100 to 100")
    if not spec.starts_at_once or spec.expire_time is not None:
        yield from _start_violations(spec, now)
    if spec.cron or spec.retry or spec.unique or spec.history or spec.stop_when_unwatched is not None:
        yield from policy_violations(spec, now)
    if spec.labels:
        yield from _labels_violations(spec.labels, secret_names)
    if spec.metadata is not None:
        yield from _metadata_violations(spec.metadata)


def task_id_violations(task_id: str) -> Iterator[Violation]:
    if not task_id:
        yield Violation("task_id", "is required")
    elif not _TASK_ID.fullmatch(task_id):
        yield Violation("task_id", "must be 1 to 128 of A-Z a-z 0-9 . _ - and must not begin with a dot or dash")


def task_filter_violations(task_id: str, field: str = "task_id") -> Iterator[Violation]:
    """Yield the violation of a task that is filtered by. No job can be in a task of another name: a watch of it would
    wait for ever."""
    if task_id and not _TASK_ID.fullmatch(task_id):
        yield Violation(field, f"{task_id[:150]!r} is not the name of a task: 1 to 128 of A-Z a-z 0-9 . _ -")


def _start_violations(spec: JobSpec, now: datetime) -> Iterator[Violation]:
    """Yield violations of the start and expiry. A past expire_time is valid: a call repeated with its request_id must
    get the first response again."""
    if spec.start_in is not None and not timedelta() <= spec.start_in <= MAX_AHEAD:
        yield Violation("spec.start_in", f"must be from 0 s to {MAX_AHEAD.days} days")
    if spec.start_at is not None:
        if spec.start_in is not None:
            yield Violation(
                "spec.start_at", "cannot be set together with spec.start_in; set one of them, or neither to start now"
            )
        if spec.start_at > now + MAX_AHEAD:
            yield Violation("spec.start_at", f"must be at most {MAX_AHEAD.days} days from now")
        if spec.expire_time is not None and spec.expire_time < spec.start_at:
            yield Violation("spec.expire_time", "is before spec.start_at: the job could never start")
    if spec.expire_time is not None and spec.expire_time > now + MAX_AHEAD:
        yield Violation("spec.expire_time", f"must be at most {MAX_AHEAD.days} days from now")


def never_starts_violations(spec: JobSpec, now: datetime) -> Iterator[Violation]:
    """Yield the violations of a new job that could never start. A repeated call, which comes later than the first one,
    has none."""
    if spec.cron is not None:
        yield from never_ticks_violations(spec, now)
    if spec.start_in is None or spec.expire_time is None or not now <= spec.expire_time:
        return
    if spec.expire_time - now < spec.start_in:
        yield Violation("spec.expire_time", "is before now + spec.start_in: the job could never start")


def request_id_violations(request_id: str) -> Iterator[Violation]:
    if len(request_id) > MAX_REQUEST_ID:
        yield Violation("request_id", f"has {len(request_id)} characters; at most {MAX_REQUEST_ID} are allowed")


def are_ids_valid(task_id: str, request_id: str) -> bool:
    """Return whether `enqueue_violations` has nothing against these."""
    return len(request_id) <= MAX_REQUEST_ID and _TASK_ID.fullmatch(task_id) is not None


def job_id_violations(job_id: str) -> Iterator[Violation]:
    """Yield the violation of an id that a caller chose."""
    if not _UUID.fullmatch(job_id):
        yield Violation("job_id", f"{job_id[:100]!r} must be a UUID in lower case: 8-4-4-4-12 of 0-9 a-f")


def grace_violations(field: str, grace: timedelta) -> Iterator[Violation]:
    if not timedelta() <= grace <= MAX_GRACE:
        yield Violation(field, f"must be from 0 s to {_seconds(MAX_GRACE)}")


def tail_lines_violations(lines: int | None) -> Iterator[Violation]:
    if lines is not None and not 0 <= lines <= MAX_TAIL_LINES:
        yield Violation("tail_lines", f"is {lines}; it must be from 0 to {MAX_TAIL_LINES}")


def prune_violations(older_than: timedelta | None, task_id: str) -> Iterator[Violation]:
    yield from task_filter_violations(task_id)
    if older_than is None:
        yield Violation("older_than", "is required; 0 s deletes everything that is final")
    elif older_than < timedelta():
        yield Violation("older_than", "must not be less than 0 s")


def heartbeat_violations(interval: timedelta) -> Iterator[Violation]:
    if not MIN_HEARTBEAT <= interval <= MAX_HEARTBEAT:
        yield Violation("heartbeat_interval", f"must be from {_seconds(MIN_HEARTBEAT)} to {_seconds(MAX_HEARTBEAT)}")


def note_violations(note: str) -> Iterator[Violation]:
    if len(note) > MAX_NOTE:
        yield Violation("note", f"has {len(note)} characters; at most {MAX_NOTE} are allowed")
    elif control := control_character(note):
        yield Violation("note", f"holds {control}, a control character; a note is one line of text for people")


def stop_violations(note: str, grace: timedelta | None) -> Iterator[Violation]:
    yield from note_violations(note)
    if grace is not None:
        yield from grace_violations("grace", grace)


def page_violations(size: int) -> Iterator[Violation]:
    if size < 0:
        yield Violation("page_size", f"is {size}; it must be 0 (the default) or more")


def id_prefix_violations(prefix: str) -> Iterator[Violation]:
    if not _ID_PREFIX.fullmatch(prefix):
        yield Violation("id_prefix", f"{prefix[:100]!r} is not how an id begins: at most 36 of 0-9 a-f -")


def label_filter_violations(labels: Mapping[str, str]) -> Iterator[Violation]:
    if len(labels) > MAX_LABEL_FILTERS:
        yield Violation("labels", f"has {len(labels)} entries; at most {MAX_LABEL_FILTERS} are allowed")


def _command_violations(spec: JobSpec, secret_names: SecretNames) -> Iterator[Violation]:
    if not spec.image:
        yield Violation("spec.image", "is required")
    elif len(spec.image) > 512 or not _IMAGE.fullmatch(spec.image):
        yield Violation(
            "spec.image",
            f"{_shown(spec.image)} is not an image as `docker run` takes it: "
            "[registry[:port]/]name[:tag][@sha256:digest]",
        )
    try:
        words = split_command(spec.command)
    except ValueError as error:
        yield Violation("spec.command", str(error))
    else:
        if secret_names.holds_mask(spec.command):
            yield Violation("spec.command", _MASKED)
        elif len(spec.command) > _SHORT_WORD or not _FAULT_MARKS.isdisjoint(spec.command):
            faults = (_word_fault(word, secret_names) for word in words)
            yield from (Violation("spec.command", fault) for fault in faults if fault)
    for number, word in enumerate(spec.args):
        if fault := _MASKED if secret_names.is_mask(spec.args, number) else _word_fault(word, secret_names):
            yield Violation(f"spec.args[{number}]", fault)
    for number, word in enumerate(spec.entrypoint):
        if fault := _MASKED if secret_names.is_mask(spec.entrypoint, number) else _word_fault(word, secret_names):
            yield Violation(f"spec.entrypoint[{number}]", fault)
        elif not word and (number == 0 and len(spec.entrypoint) > 1):
            yield Violation(
                "spec.entrypoint[0]",
                "is empty: one empty string alone means no entrypoint, a program comes first otherwise",
            )


def _secret_envs_violations(spec: JobSpec, secret_names: SecretNames) -> Iterator[Violation]:
    if len(spec.secret_envs) > MAX_SECRETS:
        yield Violation("spec.secret_envs", f"has {len(spec.secret_envs)} entries; at most {MAX_SECRETS} are allowed")
        return
    for variable, name in spec.secret_envs.items():
        field = f"spec.secret_envs[{json.dumps(_shown_name(variable, secret_names)[:100])}]"
        if fault := _env_fault(variable, "", secret_names):
            yield Violation(field, fault)
        elif variable in spec.envs:
            yield Violation(field, "is in spec.envs as well; set the variable once")
        elif not _SECRET.fullmatch(name):
            yield Violation(field, f"{_shown(name)} is not the name of a secret, as db-password or vault/db-password")


def _envs_violations(envs: Mapping[str, str], secret_names: SecretNames) -> Iterator[Violation]:
    for name, value in envs.items():
        if fault := _env_fault(name, value, secret_names):
            yield Violation(f"spec.envs[{json.dumps(_shown_name(name, secret_names)[:100])}]", fault)


def _env_fault(name: str, value: str, secret_names: SecretNames) -> str | None:
    if not name or "=" in name or "\0" in name:
        return "is not a variable's name: it must not be empty nor hold = or NUL"
    if value == REDACTED and secret_names.hides(name):
        return f"{REDACTED} stands for a value that was not shown; give the real one"
    return _word_fault(f"{name}={value}", secret_names)


def _shown_name(name: str, secret_names: SecretNames) -> str:
    """Return the name without secrets: a caller may have sent NAME=VALUE in place of a name."""
    name, equals, value = name.partition("=")
    return f"{name}={secret_names.shown(name, value)}" if equals else name


def _container_violations(spec: JobSpec) -> Iterator[Violation]:
    if spec.working_dir and (not spec.working_dir.startswith("/") or "\0" in spec.working_dir):
        yield Violation("spec.working_dir", "must be an absolute path")
    elif _normal(spec.working_dir).startswith("/.fastlane/"):
        yield Violation("spec.working_dir", "must not be /.fastlane or below it: fastlane mounts its recorder there")
    if spec.user and not (spec.user.isprintable() and re.fullmatch(r"[^\s:]{1,64}(:[^\s:]{1,64})?", spec.user)):
        yield Violation("spec.user", "must be a name or number, with an optional :group")
    yield from network_violations(spec.network)
    if spec.stop_signal and not is_signal(spec.stop_signal):
        yield Violation("spec.stop_signal", f"{_shown(spec.stop_signal)} is not a signal, as SIGTERM or 15")
    elif spec.stop_signal.upper().removeprefix("SIG") in (str(HARD_STOP), "RTMIN+10"):
        yield Violation(
            "spec.stop_signal",
            f"signal {HARD_STOP} is reserved: fastlane sends it to kill a container without losing its output",
        )


def _normal(directory: str) -> str:
    return f"{posixpath.normpath(directory)}/".replace("//", "/")


def is_signal(text: str) -> bool:
    """Return whether the engine knows the signal: a name with or without SIG, or a number."""
    if text.isascii() and text.isdigit():
        return 1 <= int(text[:4]) <= 64
    name = text.upper().removeprefix("SIG")
    if offset := re.fullmatch(r"RTM(?:IN\+|AX-)([0-9]{1,2})", name):
        return int(offset[1]) <= 15
    return f"SIG{name}" in signal.Signals.__members__


def _labels_violations(labels: Mapping[str, str], secret_names: SecretNames) -> Iterator[Violation]:
    if len(labels) > 64:
        yield Violation("spec.labels", f"has {len(labels)} entries; at most 64 are allowed")
        return
    for name, value in labels.items():
        field = f"spec.labels[{json.dumps(mask_secrets(name)[:100])}]"
        if not _LABEL_NAME.fullmatch(name):
            yield Violation(field, "is not a label's name: it must be 1 to 63 visible ASCII characters without =")
        elif name.startswith("fastlane."):
            yield Violation(field, "names that begin with fastlane. are reserved")
        elif len(value) > 256 or "\0" in value:
            yield Violation(field, f"has a value of {len(value)} characters; at most 256 are allowed, and no NUL")
        elif secret_names.holds_mask(value):
            yield Violation(field, _MASKED)


def _metadata_violations(metadata: Mapping[str, object]) -> Iterator[Violation]:
    try:
        size = len(json.dumps(metadata, allow_nan=False, separators=(",", ":")).encode())
    except ValueError:
        yield Violation("spec.metadata", "holds a number that is infinite or not a number; JSON has no such thing")
        return
    if size > 64 << 10:
        yield Violation("spec.metadata", f"takes {size} bytes as JSON; at most {64 << 10} are allowed")


def _word_fault(word: str, secret_names: SecretNames) -> str | None:
    if "\0" in word:
        return "holds a NUL, which no command line or environment can"
    if secret_names.holds_mask(word):
        return _MASKED
    if len(word) > _SHORT_WORD and len(word.encode("utf-8", "surrogatepass")) > _MAX_WORD:
        return f"has more than {_MAX_WORD} bytes, the most that Linux takes"
    return None


def _shown(text: str) -> str:
    """Return what a caller sent, quoted and shortened, without secrets."""
    return repr(mask_secrets(text)[:100])


def _seconds(duration: timedelta) -> str:
    return f"{duration.total_seconds():g} s"
