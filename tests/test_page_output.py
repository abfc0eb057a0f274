"""The modules of the page that make lines of bytes, in the browser that runs them: any output, cut anywhere."""

import base64
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from playwright.sync_api import Page

from tests.browser import browsing, tab
from tests.serving import serving

pytestmark = pytest.mark.slow

_ROWS = """async ([chunks, sealed]) => {
    const { LogOutput } = await import("/assets/log/output.js");
    const output = new LogOutput();
    output.nextNumber = 1;
    const rows = [];
    for (const [source, data] of chunks) {
        for (const row of output.push({ chunks: [{ source, data, time: "2026-01-01T00:00:00Z" }] })) rows.push(row);
    }
    for (const row of sealed ? output.push({ end: { sealed: true } }) : output.openLines()) rows.push(row);
    return rows.map((row) => [row.number, row.source, row.cut, row.runs.map(({ text, style }) => [text, style])]);
}"""
_WINDOW = """async ([most, steps]) => {
    const { LineWindow } = await import("/assets/log/line_window.js");
    const kept = new LineWindow(most, 64 * 1000);
    const seen = [];
    for (const [end, numbers] of steps) {
        const gone = kept[end](numbers.map((number) => ({ number, runs: [] })));
        seen.push([kept.rows.map((row) => row.number), gone.map((row) => row.number), kept.first, kept.last]);
    }
    return seen;
}"""
_SCAN = """async ([needle, chunks]) => {
    const { Scanner } = await import("/assets/log/search.js");
    const scanner = new Scanner(needle);
    const found = chunks.flatMap(([source, data]) => scanner.push({ chunks: [{ source, data }] }));
    return [found, scanner.next];
}"""

# What a parser of escapes may stumble over, more often than chance has it.
_PIECES = st.sampled_from(
    [
        b"\n",
        b"\r",
        b"\r\n",
        b"\b",
        b"\t",
        b"\x1b[",
        b"\x1b]",
        b"\x1b[1;31m",
        b"\x1b[0m",
        b"\x1b[38;2;1;2;3m",
        b"\x1b[K",
        b"\x1b[2K",
        b"\x1b[5G",
        b"\x1b[3C",
        b"\x1b[2D",
        b"\x1b\\",
        b"\x07",
        b"\x9b",
        "ü".encode(),
        "日本".encode(),
        "🚀".encode(),
        "e\u0301".encode(),
        b"\xff",
        b"\xe2\x82",
        "\u202e".encode(),
        b"a",
        b"some text",
        b";",
        b"m",
    ]
)
_OUTPUT = st.lists(_PIECES | st.binary(max_size=6), max_size=40).map(b"".join)
_FEW = settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])


@pytest.fixture(scope="module")
def modules(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    """A page of the server, whose modules a test calls."""
    directory: Path = tmp_path_factory.mktemp("page-output")
    with serving(directory / "data", http_listen="127.0.0.1:0", engine=f"unix://{directory}/none.sock") as server:
        with browsing() as browser, tab(browser, server) as opened:
            yield opened.open("/hosts")


def rows_of(modules: Page, *chunks: bytes, sealed: bool = True) -> Sequence[Sequence[object]]:
    encoded = [["SOURCE_STDOUT", base64.b64encode(chunk).decode()] for chunk in chunks]
    return modules.evaluate(_ROWS, [encoded, sealed])


def texts(rows: Sequence[Sequence[object]]) -> list[str]:
    return ["".join(text for text, _ in row[3]) for row in rows]  # type: ignore[attr-defined]


@_FEW
@given(output=_OUTPUT, data=st.data())
def test_chunks_may_be_cut_anywhere(modules: Page, output: bytes, data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(output)), max_size=5)))
    chunks = [output[begin:end] for begin, end in zip([0, *cuts], [*cuts, len(output)], strict=True)]
    for sealed in (True, False):
        whole, cut = rows_of(modules, output, sealed=sealed), rows_of(modules, *chunks, sealed=sealed)
        assert cut == whole


@_FEW
@given(lines=st.lists(st.text(st.characters(min_codepoint=32, max_codepoint=126)), max_size=20))
def test_plain_text_is_its_lines(modules: Page, lines: list[str]) -> None:
    rows = rows_of(modules, "".join(f"{line}\n" for line in lines).encode())
    assert texts(rows) == lines
    assert [row[0] for row in rows] == list(range(1, len(lines) + 1))


@_FEW
@example(output=b"\x1b]8;;x\x1b\\" * 3 + b"\x1bP" + b"q" * 5000)
@given(output=_OUTPUT)
def test_nothing_that_steers_a_terminal_is_left(modules: Page, output: bytes) -> None:
    for text in texts(rows_of(modules, output)):
        assert not re.search("[\x00-\x08\x0a-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]", text)


@pytest.mark.parametrize(
    ("output", "shown"),
    [
        (b"abc\rX", "Xbc"),
        (b"abc\r\x1b[KX", "X"),
        (b"abc\x1b[2K\rX", "X"),
        (b"abc\b\bX", "aXc"),
        (b"abcdef\x1b[3GX", "abXdef"),
        (b"abcdef\x1b[2DX", "abcdXf"),
        (b"a\x1b[3CX", "a   X"),
        (b"a\tb\rX", "X       b"),
        ("日本語\rX".encode(), "X本語"),
        (b"100%\r\n", "100%"),
        (b"abc\r\r\r", "abc"),
        (b"abcdef\x1b[3G\x1b[1KX", "  Xdef"),
        (b"abcdef\x1b[2G\x1b[2PX", "aXef"),
        (b"e\xcc\x81a\rX", "Xa"),
        (b"\x1b[?25l\x1b[10;20Hx\x1b[2J", "x"),
    ],
)
def test_a_line_is_rewritten_as_on_a_terminal(modules: Page, output: bytes, shown: str) -> None:
    assert texts(rows_of(modules, output)) == [shown]


def test_lines_are_numbered_by_their_ends_and_system_lines_are_not(modules: Page) -> None:
    chunks = [("STDOUT", b"one "), ("STDERR", b"err\n"), ("SYSTEM", b"started\n"), ("STDOUT", b"two\nthree")]
    encoded = [[f"SOURCE_{source}", base64.b64encode(data).decode()] for source, data in chunks]
    rows = modules.evaluate(_ROWS, [encoded, True])
    assert [(row[0], *texts([row])) for row in rows] == [(1, "err"), (None, "started"), (2, "one two"), (3, "three")]


def test_a_message_can_say_which_line_comes_next(modules: Page) -> None:
    numbers = """async () => {
        const { LogOutput } = await import("/assets/log/output.js");
        const output = new LogOutput();
        const chunk = (data) => ({ source: "SOURCE_STDOUT", data: btoa(data), time: "2026-01-01T00:00:00Z" });
        const gap = { source: "SOURCE_STDOUT", missing_bytes: "10", cause: "CAUSE_SIZE_LIMIT" };
        const begin = [{ state: {}, first_line: "7" }, { chunks: [chunk("a\\nb")] }];
        return [...begin, { gap, first_line: "30" }, { chunks: [chunk("c\\n")] }]
            .flatMap((message) => output.push(message)).map((row) => row.kind === "gap" ? "gap" : row.number);
    }"""
    # What was begun before the gap has no end, and so no number.
    assert modules.evaluate(numbers) == [7, None, "gap", 30]


@_FEW
@given(
    most=st.integers(1, 12),
    steps=st.lists(st.tuples(st.sampled_from(["append", "prepend"]), st.integers(0, 15)), max_size=12),
)
def test_a_window_is_a_bounded_part_in_order(modules: Page, most: int, steps: list[tuple[str, int]]) -> None:
    model: list[int] = []
    calls, expected = [], []
    for end, count in steps:
        if end == "append":
            begin = model[-1] + 1 if model else 0
            added = list(range(begin, begin + count))
            model, gone = [*model, *added][-most:], [*model, *added][:-most]
        else:
            stop = model[0] if model else 0
            added = list(range(stop - count, stop))
            model, gone = [*added, *model][:most], [*added, *model][most:]
        calls.append([end, added])
        expected.append([list(model), gone, model[0] if model else None, model[-1] if model else None])
    assert modules.evaluate(_WINDOW, [most, calls]) == expected


@_FEW
@given(
    lines=st.lists(st.sampled_from(["", "ab", "xaby", "AB", "a\x1b[1mb", "ü", "aab", "nothing"]), max_size=12),
    data=st.data(),
)
def test_a_scan_finds_the_lines_with_a_text(modules: Page, lines: list[str], data: st.DataObject) -> None:
    output = "".join(f"{line}\n" for line in lines).encode()
    cuts = sorted(data.draw(st.lists(st.integers(0, len(output)), max_size=4)))
    # A sequence that is cut in two may hide a match from a scan; the rows themselves are searched later.
    cuts = [cut for cut in cuts if b"\x1b" not in output[max(0, cut - 4) : cut]]
    chunks = [output[begin:end] for begin, end in zip([0, *cuts], [*cuts, len(output)], strict=True)]
    encoded = [["SOURCE_STDOUT", base64.b64encode(chunk).decode()] for chunk in chunks]
    found, after = modules.evaluate(_SCAN, ["ab", encoded])
    plain = [line.replace("\x1b[1m", "").lower() for line in lines]
    assert sorted(set(found)) == [number for number, line in enumerate(plain, 1) if "ab" in line]
    assert after == len(lines) + 1
