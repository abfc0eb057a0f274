"""Pools: the first pattern that matches the whole name of a task, in a time that no name can make long."""

import fnmatch
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastlane_grpc.pools import NO_POOL, Pool, Pools, read_pattern

NAMES = st.text("ab.-", min_size=1, max_size=12)
GLOBS = st.text("ab.-*?", min_size=1, max_size=8)


@given(st.lists(st.lists(GLOBS, min_size=1, max_size=3), max_size=4), NAMES)
def test_the_first_pool_with_a_glob_that_matches_the_whole_name_is_the_task_s(
    patterns: list[list[str]], name: str
) -> None:
    pools = Pools([Pool(str(place), read_pattern(",".join(globs)), ()) for place, globs in enumerate(patterns)])
    expected = (
        str(place) for place, globs in enumerate(patterns) if any(fnmatch.fnmatchcase(name, each) for each in globs)
    )
    assert pools.of_task(name) == next(expected, NO_POOL)


def test_no_name_takes_long_to_match() -> None:
    pools = Pools([Pool("hostile", read_pattern(",".join(["*a" * 60 + "b"] * 8)), ())])
    begin = time.perf_counter()
    for length in range(100, 128):
        assert pools.of_task("a" * length) == NO_POOL
    assert time.perf_counter() - begin < 1


def test_hosts_that_no_pool_names_take_the_tasks_that_match_none() -> None:
    pools = Pools([Pool("mail", "mail*", ("a",)), Pool("sms", "sms", ("b", "a"))], ["a", "b", "c"])
    assert [pools.of_host(host) for host in "abc"] == [("mail", "sms"), ("sms",), (NO_POOL,)]
    assert [pools.hosts_of(pool) for pool in ("mail", "sms", NO_POOL)] == [("a",), ("b", "a"), ("c",)]
    assert Pools(hosts=["a", "b"]).hosts_of(NO_POOL) == ("a", "b")


@pytest.mark.parametrize("text", ["", "a,", "a b", "[ab]", "a.*$", "{a,b}", "x" * 129, ",".join("a" * 501)])
def test_a_pattern_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"must be names of tasks|must not have more than 1000 characters"):
        read_pattern(text)
