"""What the tests of both Python clients have in common: a log, how it is cut, and what came of it."""

import socket
from datetime import timedelta
from typing import Any

from hypothesis import strategies as st

from fastlane_grpc.client import Backoff, Disconnected, Event, Gap, Output, Reconnected
from tests.scripted_server import CUTS, Cut, Log, Piece, ScriptedServer

QUICK = Backoff(first_seconds=0.001, longest_seconds=0.01)
HELLO = Log([Piece(1, b"hello\n"), Piece(2, b"oh\n"), Piece(1, b"world\n"), Piece(3, b"it ended\n")])


# Text that is not UTF-8, as the command line has it of bytes; and by field each call that takes text.
RAW = "caf\udce9"
NOT_TEXT: list[tuple[str, str, tuple[Any, ...], dict[str, Any]]] = [
    ("task_id", "enqueue", (RAW, "i"), {}),
    ("spec.image", "enqueue", ("t", RAW), {}),
    ("spec.command", "enqueue", ("t", "i", RAW), {}),
    ("spec.args[1]", "enqueue", ("t", "i"), {"args": ["a", RAW]}),
    ('spec.envs["A"]', "enqueue", ("t", "i"), {"envs": {"A": RAW}}),
    ('spec.envs["caf\\udce9"]', "enqueue", ("t", "i"), {"envs": {RAW: "a"}}),
    ('spec.labels["l"]', "enqueue", ("t", "i"), {"labels": {"l": RAW}}),
    ("spec.entrypoint[0]", "enqueue", ("t", "i"), {"entrypoint": [RAW]}),
    ("spec.user", "enqueue", ("t", "i"), {"user": RAW}),
    ('spec.metadata["a"][1]', "enqueue", ("t", "i"), {"metadata": {"a": [1, RAW]}}),
    ("request_id", "enqueue", ("t", "i"), {"request_id": RAW}),
    ("job_id", "job", (RAW,), {}),
    ("job_id", "stop", (RAW,), {}),
    ("note", "stop", ("j", RAW), {}),
    ("execution_id", "execution", (RAW,), {}),
    ("note", "stop_execution", ("e", RAW), {}),
    ("task_id", "task", (RAW,), {}),
    ("task_id", "prune", (timedelta(days=1),), {"task_id": RAW}),
    ("task_id", "jobs", (), {"task_id": RAW}),
    ('labels["a"]', "jobs", (), {"labels": {"a": RAW}}),
    ("host", "executions", (), {"host": RAW}),
    ("execution_id", "tail", (RAW,), {}),
    ("cursor", "tail", ("e", RAW), {}),
]


def forget(server: ScriptedServer) -> None:
    server.logs.clear()
    server.cuts.clear()
    server.refusals.clear()
    server.requests.clear()
    server.authorizations.clear()
    for kept in (server.jobs, server.executions, server.tasks, server.hosts, server.prunings):
        kept.clear()
    server.empty_pages = False
    server._events.clear()


def unused_address() -> str:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{taken.getsockname()[1]}"


def data_of(events: list[Event], source: int) -> bytes:
    return b"".join(event.data for event in events if isinstance(event, Output) and event.source == source)


def gaps_of(events: list[Event]) -> list[Gap]:
    return [event for event in events if isinstance(event, Gap)]


pieces = st.lists(
    st.one_of(
        st.builds(Piece, source=st.sampled_from([1, 2, 3]), data=st.binary(min_size=1, max_size=60)),
        st.builds(Piece, source=st.sampled_from([1, 2, 3]), missing=st.sampled_from([-1, 1, 1000])),
    ),
    max_size=12,
)
cuts = st.lists(st.builds(Cut, after_messages=st.integers(0, 6), how=st.sampled_from(CUTS)), max_size=8)


def assert_notices_alternate(events: list[Event]) -> None:
    away = False
    for event in events:
        assert not (away and not isinstance(event, Disconnected | Reconnected)), "nothing arrives while it is away"
        assert not (isinstance(event, Reconnected) and not away)
        away = isinstance(event, Disconnected)
    assert not away


def endless(server: ScriptedServer) -> None:
    server.logs["e"] = Log(HELLO.pieces, heartbeats_before_end=1_000_000)
