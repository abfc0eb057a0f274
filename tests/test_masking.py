"""The masking of secrets, piece by piece, against a model that looks at all of the output again for each piece."""

import base64
import os
import struct
import subprocess
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.tools import ROOT, tool

SILENCE = None
OUTPUTS = int(os.environ.get("CHAOS_OUTPUTS", "60"))
WARNINGS = ["-Wall", "-Wextra", "-Wconversion", "-Wshadow", "-Wpedantic", "-Werror"]
SANITIZERS = ["-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]


@pytest.fixture(scope="session")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    program = tmp_path_factory.mktemp("masking") / "masking"
    command = [tool("cc"), "-std=c11", "-O1", *WARNINGS, *SANITIZERS, "-o", program, ROOT / "tests/masking.c"]
    built = subprocess.run(command, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    return program


def masked(program: Path, values: Sequence[bytes], steps: Sequence[bytes | None]) -> list[bytes]:
    """What is passed on in each step."""
    given = struct.pack("<I", len(values)) + b"".join(_text(value) for value in values)
    given += b"".join(b"t" if step is SILENCE else b"d" + _text(step) for step in steps)
    environment = {"ASAN_OPTIONS": "detect_leaks=0"}
    ran = subprocess.run([program], input=given, capture_output=True, check=True, env=environment)
    passed, at = [], 0
    while at < len(ran.stdout):
        [n] = struct.unpack_from("<I", ran.stdout, at)
        passed.append(ran.stdout[at + 4 : at + 4 + n])
        at += 4 + n
    return passed


def _text(text: bytes) -> bytes:
    return struct.pack("<I", len(text)) + text


# -- a model


def forms_of(value: bytes) -> set[bytes]:
    """All that is masked of a value."""
    text = value.rstrip(b"\r\n")
    if len(text) < 4:
        return set()
    forms = {text, *(line.strip(b" \t\r") for line in text.split(b"\n"))}
    for encode in (base64.b64encode, base64.urlsafe_b64encode):
        for before in range(3):
            whole = encode(bytes(before) + text + bytes(3))
            forms.add(whole[(8 * before + 5) // 6 : 8 * (before + len(text)) // 6])
        for alone in (text, text + b"\n", value):
            line = encode(alone)
            forms |= {line, *(line[at : at + n] for n in (64, 76) for at in range(0, len(line), n))}
    for safe in ("", "!'()*", "/", "!'()*/"):
        for encoded in (quote(text, safe=safe), quote_plus(text, safe=safe)):
            lower = "".join(part.lower() if number % 2 else part for number, part in enumerate(_percent_parts(encoded)))
            forms |= {encoded.encode(), lower.encode()}
    return {form for form in forms if len(form) >= 4}


def _percent_parts(text: str) -> list[str]:
    """The text, cut before and behind each %XX, which have odd numbers."""
    parts, at = [""], 0
    while at < len(text):
        if text[at] == "%":
            parts += [text[at : at + 3], ""]
            at += 3
        else:
            parts[-1] += text[at]
            at += 1
    return parts


def model(values: Sequence[bytes], steps: Sequence[bytes | None]) -> list[bytes]:
    forms = {form for value in values for form in forms_of(value)}
    text, decided, passed, in_mask = b"", 0, [], False
    for step in steps:
        text += step or b""
        secret = bytearray(len(text))
        open_at, plain_end = len(text), len(text)
        for at in range(len(text)):
            for form in forms:
                if text.startswith(form, at):
                    secret[at : at + len(form)] = b"\1" * len(form)
                elif form.startswith(text[at:]):
                    open_at = min(open_at, at)
                    plain_end = min(plain_end, at + min(3, len(form) // 4))
        if step is SILENCE:
            open_at = len(text)
            secret[plain_end:] = b"\1" * (len(text) - plain_end)
        out = b""
        for at in range(decided, open_at):
            if not secret[at]:
                out += text[at : at + 1]
            elif not in_mask:
                out += b"***"
            in_mask = bool(secret[at])
        decided = max(decided, open_at)
        passed.append(out)
    return passed


LETTERS = st.sampled_from([bytes([byte]) for byte in b"ab+/% \nY=\xff"])
VALUES = st.lists(st.lists(LETTERS, min_size=4, max_size=14).map(b"".join), min_size=1, max_size=3)


@st.composite
def outputs(draw: st.DrawFn) -> tuple[list[bytes], list[bytes | None]]:
    """Values, and pieces of an output that has parts of their forms, cut anywhere, with silences in between."""
    values = draw(VALUES)
    forms = sorted({form for value in values for form in forms_of(value)}) or [b"none"]
    part = st.sampled_from(forms).flatmap(lambda form: st.integers(0, len(form)).map(lambda n: form[:n]))
    text = b"".join(draw(st.lists(st.sampled_from(forms) | part | LETTERS, max_size=8)))
    cuts = sorted(draw(st.lists(st.integers(0, len(text)), max_size=6)))
    steps: list[bytes | None] = []
    for begin, end in zip([0, *cuts], [*cuts, len(text)], strict=True):
        steps.append(text[begin:end])
        if draw(st.integers(0, 3)) == 0:
            steps.append(SILENCE)
    return values, [*steps, SILENCE]


@settings(max_examples=OUTPUTS, suppress_health_check=list(HealthCheck))
@given(case=outputs())
def test_masked_output_is_what_the_model_says_wherever_it_is_cut(
    program: Path, case: tuple[list[bytes], list[bytes | None]]
) -> None:
    values, steps = case
    if any(forms_of(value) for value in values):
        assert masked(program, values, steps) == model(values, steps)


SECRET = b"correct horse/battery?staple"


@pytest.mark.parametrize(
    ("printed", "kept"),
    [
        (SECRET, b"<***>"),
        (SECRET + SECRET, b"<***>"),
        (SECRET[:-1], b"<correct horse/battery?stapl>"),
        (SECRET[:9] + SECRET, b"<correct h***>"),
        (base64.b64encode(SECRET), b"<***>"),
        (base64.b64encode(SECRET + b"\n"), b"<***>"),
        (base64.urlsafe_b64encode(b"a" + SECRET), b"<YW***U=>"),
        (base64.b64encode(b"user:" + SECRET + b":rest"), b"<dXNlcjp***OnJlc3Q=>"),
        (quote(SECRET).encode(), b"<***>"),
        (quote_plus(SECRET).lower().encode(), b"<***>"),
        (b"https://me:" + quote(SECRET, safe="").encode() + b"@host/", b"<https://me:***@host/>"),
    ],
)
def test_each_form_of_a_secret_is_masked(program: Path, printed: bytes, kept: bytes) -> None:
    [passed, rest] = masked(program, [SECRET + b"\n"], [b"<" + printed + b">", SILENCE])
    assert passed + rest == kept


def test_lines_of_a_secret_are_masked_one_by_one(program: Path) -> None:
    key = b"-----BEGIN KEY-----\n  MIIEpAIBAAKCAQEA\n}\n"
    text = b"1 MIIEpAIBAAKCAQEA\n}\n2 -----BEGIN KEY-----\n" + key
    assert b"".join(masked(program, [key], [text, SILENCE])) == b"1 ***\n}\n2 ***\n***\n"


def test_base64_in_lines_is_masked(program: Path) -> None:
    secret = bytes(range(1, 200)).replace(b"\n", b"")
    mime = base64.encodebytes(secret)
    assert b"".join(masked(program, [secret], [mime, SILENCE])) == b"***\n" * mime.count(b"\n")


def test_a_beginning_is_let_go_after_a_silence_and_no_more_of_the_secret_ever(program: Path) -> None:
    passed = masked(program, [SECRET], [b"> co", SILENCE, b"rrec", SILENCE, SECRET[6:-1], SILENCE, SECRET[-1:] + b"!"])
    assert passed == [b"> ", b"co", b"", b"r***", b"", b"", b"!"]
    one_by_one: list[bytes | None] = []
    for place in range(len(SECRET)):
        one_by_one += [SECRET[place : place + 1], SILENCE]
    assert b"".join(masked(program, [SECRET], one_by_one)) == b"cor***"
