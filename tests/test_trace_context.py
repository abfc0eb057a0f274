"""The context of a trace: read as W3C Trace Context says, ignored where it is not valid, and passed on."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastlane_grpc.trace_context import TraceContext

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
PARENT = f"00-{TRACE}-{SPAN}-01"


def hexadecimal(digits: int) -> st.SearchStrategy[str]:
    return st.integers(1, 16**digits - 1).map(lambda number: f"{number:0{digits}x}")


@given(hexadecimal(32), hexadecimal(16), st.integers(0, 255))
def test_a_context_is_read_stored_and_passed_on_with_the_flags_that_are_known(
    trace_id: str, span_id: str, flags: int
) -> None:
    context = TraceContext.read([f"00-{trace_id}-{span_id}-{flags:02x}"], ["a=1, b=2"])
    assert context == TraceContext(trace_id, span_id, flags & 3, "a=1,b=2")
    assert TraceContext.from_text(context.text) == context
    assert context.envs == {"TRACEPARENT": f"00-{trace_id}-{span_id}-{flags & 3:02x}", "TRACESTATE": "a=1,b=2"}
    assert context.sampled == bool(flags & 1)


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [PARENT, PARENT],
        [""],
        [PARENT.upper()],
        [PARENT[:-1]],
        [f"{PARENT}-more"],
        [f"{PARENT}\n"],
        [f" {PARENT}"],
        [f"ff{PARENT[2:]}"],
        [f"01{PARENT[2:]}more"],
        [f"00-{'0' * 32}-{SPAN}-01"],
        [f"00-{TRACE}-{'0' * 16}-01"],
        [PARENT.replace("b7", "g7")],
        [PARENT.replace("-", "_")],
    ],
)
def test_a_parent_that_is_not_valid_is_ignored_with_its_state(headers: list[str]) -> None:
    assert TraceContext.read(headers, ["a=1"]) is None


@given(st.text(max_size=80) | st.text("0123456789abcdef-", min_size=50, max_size=60), st.text(max_size=80))
def test_whatever_is_read_is_passed_on_as_it_was_stored(parent: str, state: str) -> None:
    if context := TraceContext.read([parent], [state]):
        assert TraceContext.from_text(context.text) == context
    context = TraceContext.read([PARENT], [state])
    assert context is not None
    assert TraceContext.from_text(context.text) == context
    assert all(value.isascii() and value.isprintable() for value in context.envs.values())


def test_a_later_version_is_read_as_far_as_it_is_known() -> None:
    context = TraceContext(TRACE, SPAN, 1)
    assert TraceContext.read([f"cc-{TRACE}-{SPAN}-ff-what-comes"]) == context
    assert TraceContext.read([f"01-{TRACE}-{SPAN}-03"]) == context


@pytest.mark.parametrize(
    ("headers", "state"),
    [
        (["rojo=00f067aa0ba902b7,congo=t61"], "rojo=00f067aa0ba902b7,congo=t61"),
        (["a=1", "\tb=2 "], "a=1,b=2"),
        (["a=1,,b=2,"], "a=1,b=2"),
        (["tenant@system=x y"], "tenant@system=x y"),
        (["a=1,a=2"], ""),
        (["A=1"], ""),
        (["a=1=2"], ""),
        (["a="], ""),
        (["a=\x7f"], ""),
        (["a=ü"], ""),
        ([",".join(f"k{number}=v" for number in range(33))], ""),
        ([f"a={'x' * 256},b={'y' * 250},c=z"], f"a={'x' * 256},b={'y' * 250}"),
        ([f"a={'x' * 257}"], ""),
    ],
)
def test_a_state_is_passed_on_whole_or_not_at_all(headers: list[str], state: str) -> None:
    assert TraceContext.read([PARENT], headers) == TraceContext(TRACE, SPAN, 1, state)


def test_another_span_of_the_trace_keeps_all_else() -> None:
    context = TraceContext.read([PARENT], ["a=1"])
    assert context is not None
    assert context.at("00000000000000ff").parent == f"00-{TRACE}-00000000000000ff-01"
    assert context.at("00000000000000ff").state == "a=1"
