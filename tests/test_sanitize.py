"""Text from others as one printable line: no control bytes, no line breaks, no escape sequences, a bounded length."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastlane_grpc.model import Availability, HostReport, Outcome, Waiting, WaitReason, utc_now
from fastlane_grpc.text.sanitize import control_character, one_line, printable

# A title, the clipboard, a forged line, colours by C1, text that runs backwards, a line separator, half a character.
HOSTILE = [
    "x\n",
    "\x1b]0;PWNED\x07",
    "\x1b]52;c;aGVsbG8=\x07",
    "\x9b31m",
    "\u202egpj.exe",
    "\u2028",
    "\x7f",
    "\r",
    "\udc9b",
    "\0",
]


@given(text=st.text() | st.text(st.sampled_from("".join(HOSTILE) + "ab ")), most=st.integers(1, 50))
def test_one_line_of_anything_is_printable_and_bounded(text: str, most: int) -> None:
    line = one_line(text, most)
    assert line.isprintable()
    assert len(line) <= most
    line.encode()
    assert one_line(line, most) == line


@given(text=st.text(st.characters(min_codepoint=32, max_codepoint=126) | st.sampled_from("äöü漢字🚀")))
def test_text_that_is_printable_stays_as_it_is(text: str) -> None:
    assert printable(text) == one_line(text, len(text) + 1) == text
    assert control_character(text) == ""


@given(detail=st.text())
def test_what_the_model_tells_for_people_is_one_printable_line(detail: str) -> None:
    now = utc_now()
    host = HostReport("here", "tcp://a:1", Availability.UP, 0, 1, last_error=detail, capture_reason=detail)
    told = [
        Outcome(detail=detail).detail,
        Waiting(WaitReason.HOST_DOWN, detail, now).detail,
        host.last_error,
        host.capture_reason,
    ]
    assert all(each.isprintable() for each in told)


@pytest.mark.parametrize("text", HOSTILE)
def test_control_characters_are_found_and_named(text: str) -> None:
    assert control_character(f"ab{text}").startswith("U+")


@pytest.mark.parametrize("text", ["", "wrong mailing list", "ümläut", "a\u00a0b", "👩\u200d🚀"])
def test_notes_as_people_write_them_hold_no_control_character(text: str) -> None:
    assert control_character(text) == ""
