"""The two Python clients are one interface: what one can do the other can, by the same names and with the same
arguments."""

import asyncio
import inspect
import re

import pytest

from fastlane_grpc.client import AsyncClient, Client
from fastlane_grpc.client.async_tail import AsyncTail
from fastlane_grpc.client.async_watch import AsyncWatch
from fastlane_grpc.client.tail import Tail
from fastlane_grpc.client.watch import Watch


def public(kind: type) -> dict[str, object]:
    return {name: inspect.getattr_static(kind, name) for name in dir(kind) if not name.startswith("_")}


def blocking(signature: object) -> str:
    """A signature as it would be without asyncio."""
    return re.sub(
        r"\bAsync(?=Iterator|Tail|Watch)|\basync_(?=tail\.|watch\.)|(?<=grpc\.)aio\._base_channel\.", "", str(signature)
    )


@pytest.mark.parametrize(("sync", "asynchronous"), [(Client, AsyncClient), (Tail, AsyncTail), (Watch, AsyncWatch)])
def test_both_have_the_same_public_names(sync: type, asynchronous: type) -> None:
    assert public(sync).keys() == public(asynchronous).keys()


@pytest.mark.parametrize(
    "name", ["__init__", *(name for name, value in public(Client).items() if inspect.isfunction(value))]
)
def test_both_take_the_same_arguments_and_answer_the_same(name: str) -> None:
    sync, asynchronous = getattr(Client, name), getattr(AsyncClient, name)
    assert blocking(inspect.signature(asynchronous)) == str(inspect.signature(sync))
    assert not inspect.iscoroutinefunction(sync)
    assert asyncio.iscoroutinefunction(asynchronous) or name in {
        "__init__",
        "jobs",
        "executions",
        "outputs",
        "deliveries",
        "audit_entries",
        "tasks",
        "tail",
        "watch",
        "tail_job",
        "enqueue_many",
    }


def test_both_describe_a_call_in_the_same_words() -> None:
    for name, value in public(Client).items():
        if inspect.isfunction(value):
            assert inspect.getdoc(value), name
            assert inspect.getdoc(getattr(AsyncClient, name)), name
