"""The server as commands see it: its errors as failures of the command, and its ids as people write them."""

import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from itertools import islice
from typing import Any, NoReturn, TypeVar

import click

from fastlane_grpc import client as api
from fastlane_grpc.cli.arguments.option_names import with_option_names
from fastlane_grpc.cli.arguments.options import CONTEXT, TLS_OPTIONS
from fastlane_grpc.cli.display.terminal import say
from fastlane_grpc.cli.errors import UNAVAILABLE, WRONG_USE, Failure, cause
from fastlane_grpc.text.redaction import mask_secrets
from fastlane_grpc.text.sanitize import printable
from fastlane_grpc.trace_context import TraceContext

# How long the commands wait for a server that does not answer, which may just be restarting.
_RETRY_FOR = timedelta(seconds=3)
# How long the commands wait for room on a server that asks them to retry: as long as the Python client does.
_ROOM_FOR = timedelta(seconds=30)
_PAUSE_SECONDS = 1.0
_START_ONE = "start one with `fastlane server`, or set another --address"
# What may be the beginning of an id, and not all of it. All else goes to the server as it is.
_BEGINNING = re.compile(r"[0-9a-f-]{1,35}")
_CANDIDATES = 5
_LEAST_PAUSE_SECONDS = 0.1

_Listed = TypeVar("_Listed")
_Answer = TypeVar("_Answer")


def client_of(address: str) -> Callable[..., api.Client]:
    """Return a function that makes clients for the server of the running command, with options of `Client`."""
    meta = click.get_current_context().meta
    options: dict[str, Any] = {name: meta.get(f"fastlane.{name}") for name in TLS_OPTIONS}
    # What is not valid is ignored, as the specification of W3C Trace Context says.
    environ = click.get_current_context().obj or {}
    trace = TraceContext.read([environ.get("TRACEPARENT", "")], [environ.get("TRACESTATE", "")])
    if trace:
        options |= {"traceparent": trace.parent, "tracestate": trace.state}
    return partial(api.Client, address, token=_token(), token_file=meta.get("fastlane.token_file"), **options)


def _token() -> str:
    """Return the token of the environment, unless a context is used: it may be that of another server."""
    context = click.get_current_context()
    if context.meta.get(CONTEXT) is not None:
        return ""
    return str((context.obj or {}).get("FASTLANE_TOKEN", "")).strip()


@contextmanager
def connected(address: str) -> Iterator[api.Client]:
    """A client for as long as it lasts. What goes wrong with the server meanwhile is a Failure."""
    try:
        client = client_of(address)(retry_for=_RETRY_FOR)
    except (api.TlsFailed, api.Unauthenticated, api.InvalidText) as error:
        raise Failure(printable(with_option_names(str(error))), WRONG_USE) from error
    with client:
        try:
            yield client
        except api.TlsFailed as error:
            message = f"cannot connect to {address}: {with_option_names(str(error))}"
            raise Failure(printable(message), UNAVAILABLE) from error
        except api.ServerUnavailable as error:
            encrypted = click.get_current_context().meta.get("fastlane.tls_ca") is not None
            if not error.reason and (advice := api.tls_advice(address, encrypted=encrypted)):
                raise Failure(f"cannot connect to {address}: {with_option_names(advice)}", UNAVAILABLE) from error
            asked = f": {proxied}" if (proxied := proxy_text(address)) else ""
            message = f"no server responds at {address} ({cause(error)}){asked}; {_START_ONE}"
            raise Failure(printable(str(error) if error.reason else message), UNAVAILABLE) from error
        except api.Unauthenticated as error:
            hint = "it requires a token: set FASTLANE_TOKEN or --token-file; `fastlane token create` makes one"
            told = hint if error.reason == "TOKEN_REQUIRED" else with_option_names(str(error))
            raise Failure(printable(f"the server at {address} refuses the call: {told}")) from error
        except api.UnknownField as error:
            message = f"the server at {address} is older than this program and does not support this call: {error}"
            raise Failure(printable(str(error) if error.reason else message)) from error
        except api.Error as error:
            raise Failure(printable(with_option_names(str(error)))) from error


def once_it_responds(
    call: Callable[[], _Answer], address: str, wait: timedelta, pause: Callable[[float], None] = time.sleep
) -> _Answer:
    """Return the answer of `call`, which must be safe to repeat: it is, for the time `wait`, while the server does not
    respond."""
    deadline = time.monotonic() + wait.total_seconds()
    told = False
    while True:
        try:
            return call()
        except api.ServerUnavailable as error:
            left_seconds = deadline - time.monotonic()
            if left_seconds <= 0:
                raise
            if not told:
                say(f"no server responds at {address} ({cause(error)}); trying again for {left_seconds:.0f} s")
                told = True
            pause(min(_PAUSE_SECONDS, left_seconds))


def once_there_is_room(call: Callable[[], _Answer], pause: Callable[[float], None] = time.sleep) -> _Answer:
    """Return what `call` answers. While the server has no room and asks to come back later, `call` is made again."""
    begin = time.monotonic()
    told = False
    while True:
        try:
            return call()
        except api.Exhausted as error:
            left_seconds = begin + _ROOM_FOR.total_seconds() - time.monotonic()
            if error.retry_seconds is None or error.retry_seconds > left_seconds:
                raise
            if not told:
                say(f"the server has no room for this ({cause(error)}); trying again for {left_seconds:.0f} s")
                told = True
            pause(max(error.retry_seconds, _LEAST_PAUSE_SECONDS))


def proxy_text(address: str) -> str:
    """Which proxy is asked for the way to a server, and why; empty if none is. Its password is not shown."""
    found = api.proxy(address, click.get_current_context().obj)
    if found is None:
        return ""
    url, variable = found
    host = address.rpartition(":")[0].strip("[]")
    return f"the proxy {mask_secrets(url)} was used (variable {variable}); set no_proxy={host} to bypass it"


# ---------------------------------------------------------------------------------------------------------------- ids


@dataclass(frozen=True, slots=True)
class Named:
    """The job or the execution that an id, or a prefix of one, belongs to. The other field is empty."""

    job_id: str = ""
    execution_id: str = ""


class NothingBegins(Failure):
    """No id begins so."""


def job_id(client: api.Client, text: str) -> str:
    """The id that begins so; a whole one is not looked up."""
    if not _BEGINNING.fullmatch(text):
        return text
    return _only(text, "job", [job.id for job in _first(client.jobs(id_prefix=text, page_size=_CANDIDATES + 1))], [])


def execution_id(client: api.Client, text: str) -> str:
    """The id that begins so; a whole one is not looked up."""
    if not _BEGINNING.fullmatch(text):
        return text
    executions = _first(client.executions(id_prefix=text, page_size=_CANDIDATES + 1))
    return _only(text, "execution", [], [execution.id for execution in executions])


def either_id(client: api.Client, text: str) -> Named | None:
    """Return the job or the execution of an id or a prefix; None for a whole id, which only the server can look up. The
    ids of a job and of its first execution have a common prefix: then the job is returned."""
    if not _BEGINNING.fullmatch(text):
        return None
    jobs = [job.id for job in _first(client.jobs(id_prefix=text, page_size=_CANDIDATES + 1))]
    executions = _first(client.executions(id_prefix=text, page_size=_CANDIDATES + 1))
    if len(jobs) == 1 and all(execution.job_id == jobs[0] for execution in executions):
        return Named(job_id=jobs[0])
    found = _only(text, "job or execution", jobs, [execution.id for execution in executions])
    return Named(job_id=found) if jobs else Named(execution_id=found)


def _first(found: Iterator[_Listed]) -> Sequence[_Listed]:
    return list(islice(found, _CANDIDATES + 1))


def _only(text: str, what: str, jobs: Sequence[str], executions: Sequence[str]) -> str:
    found = [*jobs, *executions]
    if not found:
        raise NothingBegins(f"no {what} has an id that begins with {text!r}")
    if len(found) > 1:
        _ambiguous(text, [*(f"job {each}" for each in jobs), *(f"execution {each}" for each in executions)])
    return found[0]


def _ambiguous(text: str, candidates: Sequence[str]) -> NoReturn:
    shown = [f"  {candidate}" for candidate in candidates[:_CANDIDATES]]
    more = ["  and more"] if len(candidates) > _CANDIDATES else []
    raise Failure("\n".join([f"several ids begin with {text!r}; give more characters:", *shown, *more]))
