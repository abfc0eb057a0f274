"""Durations and addresses on the command line: one way to write them for all options."""

from datetime import timedelta

import click
import pytest

from fastlane_grpc.cli.arguments.options import ADDRESS, AGE, DELAY, DURATION, GRACE, MOMENT
from fastlane_grpc.text.values import read_address
from tests.commands import fastlane


@pytest.mark.parametrize("kind", [DELAY, DURATION, GRACE, AGE])
@pytest.mark.parametrize(
    ("text", "duration"),
    [
        ("2d", timedelta(days=2)),
        ("1d12h", timedelta(days=1.5)),
        ("1h30m", timedelta(minutes=90)),
        ("90s", timedelta(seconds=90)),
        ("000000000000001s", timedelta(seconds=1)),
        ("8639913600s", timedelta(days=99_999)),
    ],
)
def test_a_duration_is_written_the_same_way_for_every_option(
    kind: click.ParamType[object], text: str, duration: timedelta
) -> None:
    assert kind.convert(text, None, None) == duration


@pytest.mark.parametrize("kind", [DELAY, DURATION, GRACE, AGE, MOMENT])
@pytest.mark.parametrize("text", ["100000d", "99999d1s", "999999999999999999999s", f"{'9' * 5000}h"])
def test_a_duration_that_is_too_long_is_told_as_too_long(kind: click.ParamType[object], text: str) -> None:
    with pytest.raises(click.BadParameter, match="is too long; at most 99999d are allowed"):
        kind.convert(text, None, None)


def test_a_delay_may_be_none_at_all() -> None:
    assert DELAY.convert("0s", None, None) == timedelta(0)


@pytest.mark.parametrize("address", ["http://127.0.0.1:7620", "https://host", "grpc://host:1/"])
def test_an_address_with_a_scheme_is_refused_by_its_form(address: str) -> None:
    scheme = address.partition("://")[0]
    said = f"{address!r} must be HOST:PORT, without {scheme}://"
    with pytest.raises(click.BadParameter) as caught:
        ADDRESS.convert(address, None, None)
    assert caught.value.message == said
    with pytest.raises(ValueError, match="without"):
        read_address(address)


def test_an_address_with_a_scheme_is_wrong_use() -> None:
    ran = fastlane(None, "jobs", FASTLANE_ADDRESS="http://127.0.0.1:7620")
    said = "'http://127.0.0.1:7620' must be"
    assert ran.returncode == 2
    assert f"{said} HOST:PORT, without http://" in ran.stderr.decode()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("enqueue --keep /dist:dist", "'/dist:dist' must be a path, as /src/dist"),
        ("enqueue --keep dist", "'dist' must be a path, as /src/dist"),
        ("run --output dist", "'dist' must be PATH or PATH:TARGET"),
        ("run --input /etc", "'/etc' must be SOURCE:PATH"),
        ("run --secret-env PASSWORD", "'PASSWORD' must be NAME=SECRET"),
    ],
)
def test_a_path_or_a_secret_in_the_wrong_form_is_wrong_use(words: str, said: str) -> None:
    ran = fastlane(None, *words.split(), "busybox")
    assert ran.returncode == 2
    assert said in ran.stderr.decode()
