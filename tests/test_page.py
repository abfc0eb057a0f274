"""The live page in a real browser: its views, and what becomes of any output in the view of a log."""

import os
import re
import tarfile
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import docker
import pytest
from playwright.sync_api import Browser, Route, expect

from fastlane_grpc import Client
from fastlane_grpc.client import JobChanged, Retry, Webhook
from fastlane_grpc.model import Cause, Source
from tests.browser import PHONE, Tab, WrittenLog, browsing, tab
from tests.serving import Server, serving, serving_on

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with browsing() as found:
        yield found


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("page") / "data"


@pytest.fixture(scope="module")
def server(data_dir: Path) -> Iterator[Server]:
    """A server whose jobs stay queued: what is in their logs is the test's."""
    with serving(data_dir, http_listen="127.0.0.1:0", engine=f"unix://{data_dir}-no-engine.sock") as found:
        yield found


@pytest.fixture
def page(browser: Browser, server: Server) -> Iterator[Tab]:
    with tab(browser, server) as opened:
        yield opened


@pytest.fixture
def log(server: Server, data_dir: Path) -> WrittenLog:
    return WrittenLog(server, data_dir)


# ---- colours, progress bars, sources


def test_colours_and_attributes_are_those_of_a_terminal(page: Tab, log: WrittenLog) -> None:
    log.write(
        b"\x1b[31mred\x1b[0m \x1b[1;4mbold\x1b[0m \x1b[2mdim\x1b[22m \x1b[7minverse\x1b[27m "
        b"\x1b[38;5;208morange\x1b[m \x1b[38;2;1;2;3mnight\x1b[39m \x1b[48:2::255:200:0mgold\x1b[49m "
        b"\x1b[93mbright\x1b[0m.\n"
    )
    view = page.open(log.path)
    page.wait_for_line("red bold dim inverse orange night gold bright.")
    span = view.locator(".line .text span")
    expect(span.filter(has_text="red")).to_have_class("c1")
    expect(span.filter(has_text="bold")).to_have_class("b u")
    expect(span.filter(has_text="dim")).to_have_class("d")
    expect(span.filter(has_text="bright")).to_have_class("c11")
    expect(span.filter(has_text="gold")).to_have_css("background-color", "rgb(255, 200, 0)")
    expect(span.filter(has_text="night")).to_have_css("color", "rgb(1, 2, 3)")
    # Inverse: the colours of the page, changed places.
    ground = view.locator(".log").evaluate("(log) => getComputedStyle(log).backgroundColor")
    expect(span.filter(has_text="inverse")).to_have_css("color", ground)


def test_colours_that_could_not_be_read_are_mended(browser: Browser, server: Server, log: WrittenLog) -> None:
    log.write(b"\x1b[38;2;10;10;10mnearly black\x1b[0m \x1b[30mblack\x1b[0m\n\x1b[38;5;231mwhite\x1b[0m\n")
    contrast = """async (texts) => {
        const { contrast } = await import("/assets/log/colours.js");
        const numbers = (colour) => colour.match(/\\d+/g).slice(0, 3).map(Number);
        const ground = numbers(getComputedStyle(document.querySelector(".log")).backgroundColor);
        const spans = [...document.querySelectorAll(".text span")];
        return spans.map((each) => contrast(numbers(getComputedStyle(each).color), ground));
    }"""
    for scheme in ("dark", "light"):
        with tab(browser, server, color_scheme=scheme) as page:
            view = page.open(log.path)
            page.wait_for_line("white")
            found = view.evaluate(contrast)
            assert len(found) == 3
            assert all(each >= 4.5 for each in found), (scheme, found)


def test_a_progress_bar_is_one_line_that_changes(page: Tab, log: WrittenLog) -> None:
    log.write(b"pulling\n 10% [#    ]\r 50% [###  ]")
    page.open(log.path)
    page.wait_for_line("50% [###  ]")
    assert page.lines() == ["pulling", " 50% [###  ]"]
    log.write(b"\r100% [#####]\rdone\x1b[K\nnext\n")
    page.wait_for_line("next")
    assert page.lines() == ["pulling", "done", "next"]


def test_stderr_is_told_apart(page: Tab, log: WrittenLog) -> None:
    log.write(b"out\n")
    log.write(b"err\n", Source.STDERR)
    view = page.open(log.path)
    page.wait_for_line("err")
    expect(view.locator(".line[data-source=stderr]")).to_have_count(1)
    expect(view.locator(".line[data-source=stderr]")).to_contain_text("stderr: err")
    border = "(line) => getComputedStyle(line).borderLeftColor"
    marks = [view.locator(f".line[data-source={source}]").evaluate(border) for source in ("stdout", "stderr")]
    assert marks[0] != marks[1]


def test_a_line_of_stderr_does_not_cut_one_of_stdout(page: Tab, log: WrittenLog) -> None:
    log.write(b"half of a li")
    log.write(b"a warning\n", Source.STDERR)
    log.write(b"ne\n")
    page.open(log.path)
    page.wait_for_line("half of a line")
    assert page.lines() == ["a warning", "half of a line"]


def test_gaps_say_how_much_is_missing_and_why(page: Tab, log: WrittenLog) -> None:
    log.write(b"before\n")
    log.gap(5 << 20, Cause.SIZE_LIMIT)
    log.write(b"after\n")
    log.gap(None, Cause.ENGINE)
    log.write(b"last\n")
    view = page.open(log.path)
    page.wait_for_line("last")
    assert view.locator(".gap").all_inner_texts() == [
        "5.0 MiB of stdout are missing here: the log exceeded its size limit",
        "An unknown part of stdout is missing here: lost before they were stored",
    ]


# ---- hostile output


def test_hostile_output_is_text_and_nothing_else(page: Tab, log: WrittenLog) -> None:
    hostile = [
        b"<script>window.attacked = 1</script><img src=x onerror='window.attacked = 2'>",
        b"<a href='javascript:window.attacked = 3'>press</a> javascript:alert(1)",
        b"\x1b]8;;javascript:window.attacked=4\x1b\\a link\x1b]8;;\x1b\\ and text",
        b"\x1b]0;a title\x07\x1b]52;c;cGFzdGU=\x07\x1b[21t\x1b[6n\x1bcreset \x1bP+q544e\x1b\\",
        b"<!--",
        b"</div></body></html>",
        b"&lt;b&gt; &amp;",
    ]
    log.write(b"\n".join(hostile) + b"\nend\n")
    view = page.open(log.path)
    page.wait_for_line("end")
    assert page.lines() == [
        "<script>window.attacked = 1</script><img src=x onerror='window.attacked = 2'>",
        "<a href='javascript:window.attacked = 3'>press</a> javascript:alert(1)",
        "a link and text",
        "reset ",
        "<!--",
        "</div></body></html>",
        "&lt;b&gt; &amp;",
        "end",
    ]
    assert view.locator(".text :is(a, img, script, b, input, iframe)").count() == 0
    assert view.evaluate("window.attacked") is None
    assert view.title() == "Queued · demo · fastlane"


def test_hostile_fields_are_text_and_nothing_else(page: Tab, server: Server) -> None:
    """Those that may hold any text: a task, an image and an id are refused with such characters."""
    hostile = "<img src=x onerror='window.hacked=1'><script>window.hacked=1</script><a href='javascript:x'>x</a>"
    with Client(server.address) as client:
        job = client.enqueue(
            "hostile",
            "none:latest",
            args=[hostile],
            envs={"A": hostile},
            labels={"a": hostile},
            working_dir=f"/{hostile}",
            notifications=[Webhook("https://example.org", headers={"a": hostile})],
        )
        client.stop(job.id, hostile)
        client.drain_host("local", hostile)
        try:
            shown = {f"/jobs/{job.id}": 7, f"/executions/{job.execution.id}": 1, "/jobs": 0, "/": 1, "/hosts": 1}
            for path, count in shown.items():
                view = page.open(path)
                view.locator(".row, .timeline, [data-host], .tools").first.wait_for()
                assert view.locator("main").inner_text().count("<script>window.hacked=1</script>") >= count, path
                assert view.locator("main :is(img, script, iframe, [onerror], a[href^=javascript])").count() == 0
                assert view.evaluate("window.hacked") is None
        finally:
            client.resume_host("local")


def test_text_that_reorders_or_hides_is_made_visible(page: Tab, log: WrittenLog) -> None:
    log.write("access = \u202e\u2066// admin\u2069 \u2028line\n".encode())
    log.write(b"nul \x00 bell \x07 del \x7f c1 \xc2\x9c broken \xff\xfe\xc3\n")
    log.write("bad \ud800".encode("utf-8", "surrogatepass") + b" cut \xe2\x82\nend\n")
    page.open(log.path)
    page.wait_for_line("end")
    assert page.lines() == [
        "access = ⟨U+202E⟩⟨U+2066⟩// admin⟨U+2069⟩ ⟨U+2028⟩line",
        "nul ␀ bell  del ␡ c1 \ufffd broken \ufffd\ufffd\ufffd",
        "bad \ufffd\ufffd\ufffd cut \ufffd",
        "end",
    ]


def test_characters_cut_by_a_chunk_are_whole(page: Tab, log: WrittenLog) -> None:
    for byte in "grün 🚀 日本 \x1b[32mok\x1b[0m\n".encode():
        log.write(bytes([byte]))
    view = page.open(log.path)
    page.wait_for_line("grün 🚀 日本 ok")
    expect(view.locator(".line .text span")).to_have_class("c2")


def test_an_unfinished_sequence_swallows_one_line_at_most(page: Tab, log: WrittenLog) -> None:
    log.write(b"a\x1b]8;;never ended\nb\x1b[38;5;\nc\x1bPdevice\nend\n")
    page.open(log.path)
    page.wait_for_line("end")
    assert page.lines() == ["a", "b", "c", "end"]


def test_ten_thousand_columns_are_shown_and_a_megabyte_is_cut(page: Tab, log: WrittenLog) -> None:
    log.write(b"x" * 10_000 + b"\n")
    log.write(b"y" * (1 << 20) + b"\nend\n")
    page.open(log.path)
    page.wait_for_line("end")
    first, second, _ = page.lines()
    assert first == "x" * 10_000
    assert second == "y" * 16_384 + " … and 1\u2009032\u2009192 more characters"


def test_a_flood_of_carriage_returns_is_one_line(page: Tab, log: WrittenLog) -> None:
    log.write(b"".join(b"%d of 100000\r" % number for number in range(100_000)) + b"\nend\n")
    page.open(log.path)
    page.wait_for_line("end")
    assert page.lines() == ["99999 of 100000", "end"]


def test_a_flood_of_styles_and_empty_lines_is_bounded(page: Tab, log: WrittenLog) -> None:
    log.write(b"".join(b"\x1b[38;5;%dm%d" % (number % 256, number % 10) for number in range(8_000)) + b"\n")
    log.write(b"\n" * 200_000 + b"end\n")
    view = page.open(log.path)
    page.wait_for_line("end")
    assert view.locator(".line").count() <= 1_000
    assert page.numbers()[-1] == 200_002
    view.goto(f"{page.base}{log.path}#L1")
    view.locator(".chosen").wait_for()
    assert view.locator(".chosen .text span").count() <= 500


# ---- following


def test_a_log_without_output_says_so(page: Tab, log: WrittenLog) -> None:
    view = page.open(log.path)
    expect(view.locator(".edge").last).to_have_text("No output yet")
    page.picture("log-empty")
    log.end()
    expect(view.locator(".edge").last).to_have_text("The log is empty")


def test_new_output_is_followed(page: Tab, log: WrittenLog) -> None:
    log.lines(1, 100)
    view = page.open(log.path)
    page.wait_for_line("line 100")
    log.lines(101, 300)
    page.wait_for_line("line 300")
    expect(view.locator(".line .text", has_text="line 300")).to_be_in_viewport()
    expect(view.locator("[data-action=follow]")).to_have_attribute("aria-pressed", "true")
    assert page.numbers() == list(range(1, 301))


def test_scrolling_up_pauses_and_says_how_much_is_new(page: Tab, log: WrittenLog) -> None:
    log.lines(1, 300)
    view = page.open(log.path)
    page.wait_for_line("line 300")
    view.locator(".log").hover()
    view.mouse.wheel(0, -1500)
    expect(view.locator("[data-action=follow]")).to_have_attribute("aria-pressed", "false")
    before = view.locator(".log").evaluate("(log) => log.scrollTop")
    log.lines(301, 342)
    expect(view.locator(".jump")).to_have_text("42 new lines")
    page.picture("log-paused")
    assert view.locator(".log").evaluate("(log) => log.scrollTop") == before
    view.locator(".jump").click()
    expect(view.locator(".line .text", has_text="line 342")).to_be_in_viewport()
    expect(view.locator(".jump")).to_be_hidden()
    log.lines(343, 343)
    expect(view.locator(".line .text", has_text="line 343")).to_be_in_viewport()


def test_a_paused_view_keeps_its_lines_through_a_flood(page: Tab, log: WrittenLog) -> None:
    log.lines(1, 900)
    view = page.open(log.path)
    page.wait_for_line("line 900")
    view.keyboard.press("g")
    expect(view.locator(".line .text").first).to_be_in_viewport()
    log.lines(901, 20_000)
    expect(view.locator(".jump")).to_have_text("19\u2009100 new lines")
    expect(view.locator(".line .text").first).to_be_in_viewport()
    assert view.locator(".line").count() <= 1_000
    # Down through all that is between, part by part, to the end of the log.
    while (last := page.numbers()[-1]) < 3_000:
        view.locator(".log").evaluate("(log) => { log.scrollTop = log.scrollHeight; }")
        view.wait_for_function(
            "(last) => Number([...document.querySelectorAll('.number[data-number]')].at(-1).dataset.number) > last",
            arg=last,
        )
        numbers = page.numbers()
        assert list(numbers) == list(range(numbers[0], numbers[-1] + 1))
    view.keyboard.press("f")
    expect(view.locator(".line .text", has_text="line 20000")).to_be_in_viewport()


def test_an_old_log_opens_at_its_end_and_grows_upwards(page: Tab, log: WrittenLog) -> None:
    log.lines(1, 5_000)
    view = page.open(log.path)
    page.wait_for_line("line 5000")
    assert page.numbers()[0] == 4_501
    expect(view.locator(".edge").first).to_have_text("4\u2009500 earlier lines")
    seen = set(page.numbers())
    view.locator(".log").focus()
    while page.numbers()[0] > 1:
        first = page.numbers()[0]
        anchor = view.locator(f".number[data-number='{first}']")
        view.keyboard.press("Home")
        expect(anchor).to_be_attached()
        view.wait_for_function(
            "(first) => Number(document.querySelector('.number[data-number]').dataset.number) < first", arg=first
        )
        numbers = page.numbers()
        assert list(numbers) == list(range(numbers[0], numbers[-1] + 1))
        seen |= set(numbers)
    assert seen == set(range(1, 5_001))
    assert view.locator(".line").count() <= 1_000


def test_older_lines_do_not_move_what_is_read(page: Tab, log: WrittenLog) -> None:
    log.lines(1, 3_000, "line {} " + "with a tail that wraps " * 12)
    view = page.open(log.path)
    page.wait_for_line("line 3000 ")
    view.keyboard.press("w")
    view.keyboard.press("w")
    view.locator(".log").evaluate("(log) => { log.scrollTop = 4000; log.dispatchEvent(new Event('scroll')); }")
    place = """() => {
        const edge = document.querySelector(".log").getBoundingClientRect().top;
        const line = [...document.querySelectorAll(".line")].find((each) => each.getBoundingClientRect().top >= edge);
        return [line.querySelector(".number").dataset.number, Math.round(line.getBoundingClientRect().top)];
    }"""
    view.locator(".log").evaluate("(log) => { log.scrollTop = 700; }")
    view.wait_for_function("() => document.querySelector('.number[data-number]').dataset.number < 2501")
    number, top = view.evaluate(place)
    # 700 pixels below what was the first line, whatever came above it.
    was = view.locator(".number[data-number='2501']").evaluate("(each) => Math.round(each.getBoundingClientRect().top)")
    edge = view.locator(".log").evaluate("(log) => Math.round(log.getBoundingClientRect().top)")
    assert abs(was - (edge + 8 - 700 + 26)) < 40, (number, top, was, edge)


# ---- lines, search, stamps, copy, download


def test_an_address_with_a_line_opens_there(page: Tab, log: WrittenLog) -> None:
    log.lines(1, 5_000)
    view = page.open(f"{log.path}#L120")
    expect(view.locator(".chosen .text")).to_have_text("line 120")
    expect(view.locator(".chosen")).to_be_in_viewport()
    view.goto(f"{page.base}{log.path}#L4000-4002")
    expect(view.locator(".chosen .text")).to_have_text(["line 4000", "line 4001", "line 4002"])
    expect(view.locator(".chosen").first).to_be_in_viewport()
    page.picture("log-lines")


def test_lines_are_chosen_by_clicks(page: Tab, log: WrittenLog) -> None:
    log.lines(1, 50)
    view = page.open(log.path)
    page.wait_for_line("line 50")
    view.locator(".number[data-number='30']").click()
    assert view.url.endswith("#L30")
    view.locator(".number[data-number='33']").click(modifiers=["Shift"])
    assert view.url.endswith("#L30-33")
    expect(view.locator(".chosen")).to_have_count(4)


def test_a_line_beyond_the_end_is_told_of(page: Tab, log: WrittenLog) -> None:
    log.lines(1, 20)
    view = page.open(f"{log.path}#L99")
    page.wait_for_line("line 20")
    expect(view.locator(".message")).to_have_text("The log has no line 99 yet.")
    log.lines(21, 2_000)
    view.goto(f"{page.base}{log.path}#L9999")
    expect(view.locator(".message")).to_have_text("The log has no line 9\u2009999 yet.")
    expect(view.locator(".line .text", has_text="line 2000")).to_be_in_viewport()
    page.picture("log-beyond")


def test_a_line_is_gone_to_also_while_a_part_of_the_log_is_loaded(page: Tab, log: WrittenLog) -> None:
    log.lines(1, 5_000)
    view = page.open(log.path)
    page.wait_for_line("line 5000")
    held: list[Route] = []

    def hold(route: Route) -> None:
        held.append(route)

    view.route("**/logs?*", hold, times=1)
    view.locator(".log").focus()
    with view.expect_request("**/logs?*"):
        view.keyboard.press("Home")
    view.evaluate("() => { location.hash = '#L120'; }")
    expect(view.locator("[aria-busy]").first).to_be_attached()
    held[0].continue_()
    expect(view.locator(".chosen .text")).to_have_text("line 120")
    expect(view.locator(".chosen")).to_be_in_viewport()


def test_search_goes_through_what_is_shown(page: Tab, log: WrittenLog) -> None:
    log.write(
        b"".join(
            b"line %d %s\n" % (n, b"an \x1b[31mEr\x1b[32mror\x1b[0m here" if n % 10 == 0 else b"")
            for n in range(1, 101)
        )
    )
    view = page.open(log.path)
    page.wait_for_line("line 100")
    view.keyboard.press("/")
    view.keyboard.type("error")
    state = view.locator(".found")
    expect(state).to_contain_text("of 10")
    view.keyboard.press("Enter")
    begin = int(state.inner_text().split()[0])
    view.keyboard.press("Enter")
    expect(state).to_have_text(f"{begin % 10 + 1} of 10")
    view.keyboard.press("Shift+Enter")
    expect(state).to_have_text(f"{begin} of 10")
    marked = "[...CSS.highlights.get('current')].map((range) => range.toString())"
    assert view.evaluate(marked) == ["Error"]
    assert view.evaluate("CSS.highlights.get('found').size") == 9
    page.picture("log-search")
    view.keyboard.press("Escape")
    expect(state).to_be_empty()
    assert not view.evaluate("CSS.highlights.has('current')")


def test_search_finds_what_is_not_loaded(page: Tab, log: WrittenLog) -> None:
    log.lines(1, 99)
    log.write(b"the needle, \x1b[1mfirst\x1b[0m\n")
    log.lines(101, 4_999)
    log.write(b"the needle, second\n")
    log.lines(5_001, 12_000)
    view = page.open(log.path)
    page.wait_for_line("line 12000")
    view.get_by_label("Search the log").fill("needle, ")
    expect(view.locator(".found")).to_have_text("Enter ↵")
    view.keyboard.press("Shift+Enter")
    page.wait_for_line("needle, second")
    expect(view.locator(".line .text", has_text="needle, second")).to_be_in_viewport()
    view.keyboard.press("Shift+Enter")
    expect(view.locator(".line .text", has_text="needle, first")).to_be_in_viewport()
    view.keyboard.press("Enter")
    expect(view.locator(".line .text", has_text="needle, second")).to_be_in_viewport()
    view.get_by_label("Search the log").fill("nowhere at all")
    view.keyboard.press("Enter")
    expect(view.locator(".found")).to_have_text("none")


def test_time_stamps_are_relative_absolute_or_off(page: Tab, log: WrittenLog) -> None:
    log.write(b"one\n", after_seconds=1)
    log.write(b"two\n", after_seconds=61.5)
    view = page.open(log.path)
    page.wait_for_line("two")
    stamps = "[...document.querySelectorAll('.line .stamp')].map((each) => each.dataset.stamp)"
    assert view.evaluate(stamps) == ["", ""]
    view.get_by_label("Time stamps").select_option("relative")
    one, two = view.evaluate(stamps)
    assert re.fullmatch(r"\+0:0\d\.\d{3}", one)
    assert re.fullmatch(r"\+1:0\d\.\d{3}", two)
    view.locator(".log").focus()
    view.keyboard.press("t")
    one, two = view.evaluate(stamps)
    assert re.fullmatch(r"\d\d:\d\d:\d\d\.\d{3}", one)
    page.open(log.path)
    page.wait_for_line("two")
    assert view.evaluate(stamps) == [one, two]


def test_long_lines_wrap_or_scroll(page: Tab, log: WrittenLog) -> None:
    log.write(b"word " * 400 + b"\n")
    view = page.open(log.path)
    page.wait_for_line("word")
    wide = "(log) => log.scrollWidth > log.clientWidth"
    assert not view.locator(".log").evaluate(wide)
    view.locator("[data-action=wrap]").click()
    expect(view.locator("[data-action=wrap]")).to_have_attribute("aria-pressed", "false")
    assert view.locator(".log").evaluate(wide)


def test_lines_are_copied_as_they_were_written(browser: Browser, server: Server, log: WrittenLog) -> None:
    log.write(b"one\ttab\n\x1b[31mtwo\x1b[0m <b>\nthree\n")
    with tab(browser, server, permissions=["clipboard-read", "clipboard-write"]) as page:
        view = page.open(log.path)
        page.wait_for_line("three")
        view.locator("[data-action=copy]").click()
        expect(view.locator("[data-action=copy]")).to_have_text("Copied")
        assert view.evaluate("navigator.clipboard.readText()") == "one\ttab\ntwo <b>\nthree\n"
        # And by hand, without numbers and time stamps.
        view.keyboard.press("t")
        view.evaluate("getSelection().selectAllChildren(document.querySelector('.lines'))")
        assert view.evaluate("getSelection().toString()").split("\n") == ["one\ttab", "two <b>", "three"]


def test_the_whole_log_is_downloaded_byte_by_byte(page: Tab, log: WrittenLog) -> None:
    data = os.urandom(100_000) + b"\n\x1b[31m"
    log.write(data)
    log.end()
    view = page.open(log.path)
    view.get_by_text("End of the log").wait_for()
    with view.expect_download() as download:
        view.locator("[data-action=download]").click()
    assert download.value.suggested_filename == f"{log.execution_id}.log"
    assert download.value.path().read_bytes() == data


# ---- interruptions


def test_a_log_goes_on_at_the_byte_after_a_restart(browser: Browser, tmp_path: Path) -> None:
    settings = {"engine": f"unix://{tmp_path}/no-engine.sock"}
    server = Server(tmp_path / "data", http_listen="127.0.0.1:0", **settings)
    try:
        log = WrittenLog(server, tmp_path / "data")
        log.lines(1, 1_500)
        log.write("half of a line, gr\u00fc".encode()[:-1])
        with tab(browser, server) as page:
            view = page.open(log.path)
            page.wait_for_line("half of a line")
            server.kill()
            expect(view.get_by_text("Reconnecting…")).to_be_visible()
            page.picture("log-reconnecting")
            log.write("\u00fcn\nafter\n".encode()[1:])
            server = Server(
                tmp_path / "data", listen=server.address, http_listen=f"127.0.0.1:{server.http_port}", **settings
            )
            page.wait_for_line("after")
            expect(view.get_by_text("Live", exact=True)).to_be_visible()
            assert page.lines() == [
                *(f"line {number}" for number in range(1_002, 1_501)),
                "half of a line, grün",
                "after",
            ]
            assert page.numbers() == list(range(1_002, 1_503))
            # What a browser itself says of a server that is away.
            page.complaints[:] = [each for each in page.complaints if "Failed to load resource" not in each]
    finally:
        server.kill()


def test_the_overview_goes_on_after_a_restart(browser: Browser, tmp_path: Path) -> None:
    settings = {"engine": f"unix://{tmp_path}/no-engine.sock"}
    server = Server(tmp_path / "data", http_listen="127.0.0.1:0", **settings)
    try:
        with tab(browser, server) as page:
            view = page.open("/")
            expect(view.get_by_text("Live", exact=True)).to_be_visible()
            server.kill()
            expect(view.get_by_text("Reconnecting…")).to_be_visible()
            server = Server(
                tmp_path / "data", listen=server.address, http_listen=f"127.0.0.1:{server.http_port}", **settings
            )
            with Client(server.address) as client:
                client.enqueue("after-restart", "none:latest")
            expect(view.locator(".row b", has_text="after-restart").first).to_be_visible()
            page.complaints[:] = [each for each in page.complaints if "Failed to load resource" not in each]
    finally:
        server.kill()


def test_a_view_opened_while_the_server_is_away_says_so_and_waits(browser: Browser, tmp_path: Path) -> None:
    settings = {"engine": f"unix://{tmp_path}/no-engine.sock"}
    server = Server(tmp_path / "data", http_listen="127.0.0.1:0", **settings)
    try:
        with Client(server.address) as client:
            client.enqueue("kept", "none:latest")
        with tab(browser, server) as page:
            view = page.open("/hosts")
            expect(view.get_by_text("Live", exact=True)).to_be_visible()
            server.kill()
            # What is shown already stays, marked as old.
            expect(view.get_by_text("Reconnecting…")).to_be_visible()
            expect(view.locator("[data-host]")).to_be_visible()
            view.get_by_label("Pages").get_by_text("Jobs").click()
            expect(view.get_by_role("alert")).to_contain_text("The server cannot be reached")
            expect(view.get_by_text("Reconnecting…")).to_be_visible()
            expect(view.locator(".empty")).to_have_count(0)
            page.picture("away")
            server = Server(
                tmp_path / "data", listen=server.address, http_listen=f"127.0.0.1:{server.http_port}", **settings
            )
            expect(view.locator(".row b", has_text="kept").first).to_be_visible()
            expect(view.get_by_role("alert")).to_have_count(0)
            expect(view.get_by_text("Live", exact=True)).to_be_visible()
            page.complaints[:] = [each for each in page.complaints if "Failed to load resource" not in each]
    finally:
        server.kill()


# ---- views


@pytest.mark.parametrize("path", ["**/assets/parts.js", "**/assets/style.css", "**/hosts"])
def test_what_the_browser_broke_off_is_loaded_again(page: Tab, server: Server, log: WrittenLog, path: str) -> None:
    page.page.route(path, lambda route: route.abort("failed"), times=1)
    view = page.open("/")
    expect(view.locator(".row b", has_text="demo").first).to_be_visible()
    expect(view.locator(".figures")).to_have_css("display", "grid")
    page.complaints[:] = [each for each in page.complaints if "ERR_FAILED" not in each]


def test_a_part_of_a_log_that_the_browser_broke_off_is_loaded_again(page: Tab, log: WrittenLog) -> None:
    log.write(b"the needle\n")
    log.lines(2, 5_000)
    view = page.open(log.path)
    page.wait_for_line("line 5000")
    broken: list[str] = []

    def break_off(route: Route) -> None:
        broken.append(route.request.url)
        route.abort("failed")

    view.route("**/logs?*", break_off, times=1)
    view.locator(".log").focus()
    view.keyboard.press("Home")
    view.wait_for_function("() => Number(document.querySelector('.number[data-number]').dataset.number) < 4501")
    view.route("**/logs?*", break_off, times=1)
    view.get_by_label("Search the log").fill("the needle")
    view.keyboard.press("Enter")
    expect(view.locator(".line .text", has_text="the needle")).to_be_in_viewport()
    view.route("**/logs?*", break_off, times=1)
    view.get_by_label("Search the log").fill("line 4000")
    view.keyboard.press("Shift+Enter")
    expect(view.locator(".line .text", has_text="line 4000")).to_be_in_viewport()
    assert len(broken) == 3
    page.complaints[:] = [each for each in page.complaints if "ERR_FAILED" not in each]


def test_the_overview_is_live(page: Tab, server: Server) -> None:
    view = page.open("/")
    expect(view.get_by_text("Live", exact=True)).to_be_visible()
    with Client(server.address) as client:
        job = client.enqueue("nightly-report", "none:latest")
        row = view.locator(f"[data-job='{job.id}']")
        expect(row).to_contain_text("nightly-report")
        expect(row.locator(".badge")).to_have_text("Queued")
        client.stop(job.id)
    expect(row).to_have_count(0)
    expect(view.locator("[data-host]")).to_contain_text("Down")


def test_views_follow_one_another_without_loading(page: Tab, server: Server, log: WrittenLog) -> None:
    view = page.open("/")
    view.evaluate("window.mark = 1")
    view.get_by_label("Pages").get_by_text("Jobs").click()
    view.locator(f"[data-job='{log.job.id}'] a").click()
    expect(view.get_by_role("heading", level=1)).to_contain_text(log.job.id[-8:])
    view.get_by_text("Show the log").click()
    expect(view.get_by_role("region", name="Output")).to_be_visible()
    view.go_back()
    expect(view.get_by_text("What it runs")).to_be_visible()
    view.get_by_label("Where this is").get_by_text("demo").click()
    expect(view.get_by_role("heading", level=1)).to_have_text("demo")
    view.get_by_label("Pages").get_by_text("Tasks").click()
    expect(view.get_by_role("heading", level=1)).to_have_text("Tasks")
    view.get_by_label("Pages").get_by_text("Hosts").click()
    expect(view.locator("[data-host]")).to_be_visible()
    assert view.evaluate("window.mark") == 1


def test_a_job_is_stopped_after_a_question(page: Tab, server: Server) -> None:
    with Client(server.address) as client:
        job = client.enqueue("demo", "none:latest", command="true", envs={"API_KEY": "very-secret", "PLAIN": "seen"})
    view = page.open(f"/jobs/{job.id}")
    expect(view.locator(".outcome")).to_contain_text("does not answer")
    expect(view.locator(".spec")).to_contain_text("seen")
    assert "very-secret" not in view.content()
    view.locator("[data-action=stop]").click()
    dialog = view.get_by_role("dialog")
    dialog.get_by_text("Cancel").click()
    expect(dialog).to_have_count(0)
    expect(view.locator("h1 .badge")).to_have_text("Queued")
    view.locator("[data-action=stop]").click()
    dialog.get_by_label("Reason").fill("not needed any more")
    page.picture("job-stop")
    dialog.get_by_role("button", name="Stop the job").click()
    expect(view.locator("h1 .badge")).to_have_text("Stopped")
    expect(view.locator(".outcome")).to_contain_text("not needed any more")


def test_a_job_is_run_again_once(page: Tab, server: Server) -> None:
    with Client(server.address) as client:
        job = client.enqueue("demo", "none:latest")
        client.stop(job.id)
    view = page.open(f"/jobs/{job.id}")
    view.locator("[data-action=retry]").click()
    view.get_by_role("button", name="Run it again").click()
    expect(view.locator("h1 .badge")).to_have_text("Queued")
    expect(view.locator(".timeline > li")).to_have_count(2)
    expect(view.locator(".timeline > li").first).to_contain_text("Run 2, attempt 1")


def test_a_schedule_shows_its_next_ticks_and_pauses(page: Tab, server: Server) -> None:
    with Client(server.address) as client:
        job = client.enqueue("nightly", "none:latest", cron="30 2 * * *")
    view = page.open(f"/jobs/{job.id}")
    expect(view.locator(".ticks li")).to_have_count(5)
    expect(view.locator(".lead")).to_contain_text("02:30")
    view.locator("[data-action=pause]").click()
    view.get_by_role("button", name="Pause the schedule").click()
    expect(view.locator(".lead .badge")).to_have_text("Paused")


def test_jobs_are_filtered_and_paged(page: Tab, server: Server) -> None:
    with Client(server.address) as client:
        jobs = [client.enqueue("many", "none:latest") for _ in range(60)]
        client.stop(jobs[0].id)
    view = page.open("/tasks/many")
    expect(view.locator(".row")).to_have_count(50)
    view.get_by_text("Older jobs").click()
    expect(view.locator(".row")).to_have_count(60)
    view.get_by_label("State").select_option("STATE_STOPPED")
    expect(view.locator(".row")).to_have_count(1)


def test_what_does_not_exist_is_said_so(page: Tab) -> None:
    view = page.open("/jobs/00000000-0000-0000-0000-000000000000")
    expect(view.get_by_role("alert")).to_contain_text("Not found")
    expect(view.get_by_role("alert")).to_contain_text("no job")
    page.complaints[:] = [each for each in page.complaints if "404" not in each]
    view = page.open("/tasks/%3Cimg%20src=x%20onerror=alert(1)%3E")
    expect(view.get_by_role("alert")).to_be_visible()
    view = page.open("/job/7")
    expect(view.get_by_role("alert")).to_contain_text("there is nothing at '/job/7'; did you mean '/jobs/7'?")
    page.picture("nothing")
    view.get_by_role("link", name="Back to the overview").click()
    expect(view.locator(".figures")).to_be_visible()
    page.complaints[:] = [each for each in page.complaints if "404" not in each and "400" not in each]


def test_a_job_that_is_gone_is_said_so(page: Tab, server: Server) -> None:
    with Client(server.address) as client:
        job = client.enqueue("gone", "none:latest")
        client.stop(job.id)
        view = page.open(f"/jobs/{job.id}")
        expect(view.get_by_text("Live", exact=True)).to_be_visible()
        expect(view.locator("h1 .badge")).to_have_text("Stopped")
        client.prune(timedelta(0), task_id="gone")
        expect(view.get_by_role("heading", name="This job was pruned")).to_be_visible()
    page.complaints[:] = [each for each in page.complaints if "404" not in each]


# ---- containers


@pytest.fixture(scope="module")
def running(sdk: docker.DockerClient, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server over a real engine."""
    directory = tmp_path_factory.mktemp("page-engine") / "data"
    with serving_on(sdk, directory, http_listen="127.0.0.1:0", max_running=4) as found:
        yield found


_UNTIL_STOPPED = 'echo building; trap "echo interrupted >&2; exit 3" TERM; while :; do sleep 0.05; done'
_BUILD = r"""
printf '\033[1m==>\033[0m Installing dependencies\n'
printf '  \033[32m+\033[0m requests \033[2m2.32.3\033[0m\n  \033[32m+\033[0m sqlite-utils \033[2m4.2\033[0m\n'
printf '\033[1m==>\033[0m Running \033[36m214\033[0m tests\n'
printf 'tests/test_api.py     \033[32m....................................\033[0m  [ 41%%]\n'
printf 'tests/test_store.py   \033[32m.................\033[31mF\033[32m..................\033[0m  [ 87%%]\n'
printf 'tests/test_cli.py     \033[32m...............\033[33ms\033[32m...\033[0m                  [100%%]\n'
printf '\033[31;1mFAILED\033[0m tests/test_store.py::test_a_full_disk_loses_nothing\n' >&2
printf 'warning: coverage fell to \033[33m94.1%%\033[0m\n' >&2
printf '\033[38;5;208mdeprecated:\033[0m \033[4mutcnow()\033[0m in store/rows.py:88\n' >&2
printf '\033[1m==>\033[0m Uploading report\n'
printf '  0%% [          ]\r 50%% [=====     ]'
"""


@pytest.mark.engine
def test_a_container_is_followed_and_stopped(browser: Browser, running: Server, image: str) -> None:
    with Client(running.address) as client, tab(browser, running) as page:
        script = f"echo kept >/report; {_UNTIL_STOPPED}"
        job = client.enqueue("build", image, args=["sh", "-c", script], outputs=["/report"])
        view = page.open(f"/executions/{job.execution.id}")
        page.wait_for_line("building")
        expect(view.locator("h1 .badge")).to_have_text("Running")
        view.locator("[data-action=stop]").click()
        view.get_by_label("Reason").fill("enough")
        view.get_by_role("button", name="Stop the execution").click()
        expect(view.locator("h1 .badge")).to_have_text("Stopped")
        expect(view.locator(".line[data-source=stderr]")).to_contain_text("interrupted")
        expect(view.locator(".detail")).to_contain_text("enough")
        expect(view.get_by_text("End of the log")).to_be_visible()
        # It is over, and looks for nothing any more.
        expect(view.locator(".connection")).to_be_empty()
        page.picture("outputs")
        with view.expect_download() as download:
            view.get_by_role("link", name="Outputs, 2.0 KiB").click()
        with tarfile.open(download.value.path()) as archive:
            assert archive.extractfile("report").read() == b"kept\n"  # type: ignore[union-attr]
        view = page.open(f"/jobs/{job.id}")
        expect(view.get_by_role("link", name="Outputs, 2.0 KiB")).to_be_visible()
        page.picture("outputs-job")


@pytest.mark.engine
def test_attempts_are_bars_of_their_phases(browser: Browser, running: Server, image: str) -> None:
    with Client(running.address) as client, tab(browser, running) as page:
        job = client.enqueue(
            "flaky", image, args=["sh", "-c", "exit 3"], retry=Retry(max_retries=2, initial_backoff=0.1)
        )
        view = page.open(f"/jobs/{job.id}")
        expect(view.locator("h1 .badge")).to_have_text("Failed")
        expect(view.locator(".outcome")).to_contain_text("exit code 3", ignore_case=True)
        bars = view.locator(".timeline > li")
        expect(bars).to_have_count(3)
        expect(bars.first.locator(".attempt")).to_have_text("Attempt 3")
        for phase in ("queued", "starting", "running"):
            expect(bars.first.locator(f"svg [data-phase={phase}]")).to_have_count(1)
        expect(bars.first).to_contain_text("Running")


# ---- for everybody

# Return each text that is seen and has too little contrast to what is behind it.
_FAINT = """async () => {
    const { contrast } = await import("/assets/log/colours.js");
    const canvas = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
    const rgba = (colour) => {
        canvas.clearRect(0, 0, 1, 1);
        canvas.fillStyle = colour;
        canvas.fillRect(0, 0, 1, 1);
        const [red, green, blue, alpha] = canvas.getImageData(0, 0, 1, 1).data;
        return [red, green, blue, alpha / 255];
    };
    const over = (top, below) => below.map((value, index) => top[index] * top[3] + value * (1 - top[3]));
    const ground = (element) => {
        const colour = rgba(getComputedStyle(element).backgroundColor);
        if (colour[3] === 1 || !element.parentElement) return colour.slice(0, 3);
        return over(colour, ground(element.parentElement));
    };
    const faint = [];
    for (const element of document.querySelectorAll("body *")) {
        const own = [...element.childNodes].some((node) => node.nodeType === Node.TEXT_NODE && node.data.trim());
        if (!own || !element.checkVisibility() || element.closest(".unseen, option, noscript")) continue;
        const behind = ground(element);
        const found = contrast(over(rgba(getComputedStyle(element).color), behind), behind);
        if (found < 4.5) faint.push([element.textContent.slice(0, 40), element.className, found]);
    }
    return faint;
}"""

# Return each control without a name, and each id that is there twice.
_UNNAMED = """() => {
    const controls = [...document.querySelectorAll("button, a[href], input, select, dialog, [role=region]")];
    const unnamed = controls.filter((each) => each.checkVisibility() && !(each.getAttribute("aria-label")
        || each.textContent.trim() || each.labels?.[0]?.textContent.trim() || each.getAttribute("aria-labelledby")));
    const ids = [...document.querySelectorAll("[id]")].map((each) => each.id);
    return [...unnamed.map((each) => each.outerHTML), ...ids.filter((id, index) => ids.indexOf(id) !== index)];
}"""


@pytest.fixture(scope="module")
def everyday(running: Server, image: str) -> dict[str, str]:
    """A server with jobs of all kinds, and the paths of its views."""
    with Client(running.address) as client:
        build = client.enqueue(
            "ci-main",
            image,
            args=["sh", "-c", _BUILD + "\n" + _UNTIL_STOPPED.partition(";")[2]],
            envs={"CI": "true", "GITHUB_TOKEN": "secret"},
            labels={"branch": "main"},
            timeout=900,
        )
        client.enqueue("thumbnails", image, args=["sh", "-c", _UNTIL_STOPPED])
        client.enqueue("send-very-specific-email", image, command="sleep 1000", start_in=3600)
        nightly = client.enqueue("nightly-report", image, command="report", cron="30 2 * * *")
        flaky = client.enqueue(
            "import-orders", image, args=["sh", "-c", "exit 4"], retry=Retry(max_retries=1, initial_backoff=0.1)
        )
        for _ in range(3):
            client.enqueue("thumbnails", image, args=["sh", "-c", "exit 0"])
        for event in client.watch(job_ids=[flaky.id]):
            if isinstance(event, JobChanged) and event.job.HasField("outcome"):
                break
    return {
        "overview": "/",
        "job": f"/jobs/{flaky.id}",
        "schedule": f"/jobs/{nightly.id}",
        "log": f"/executions/{build.execution.id}",
        "jobs": "/jobs",
        "task": "/tasks/ci-main",
        "hosts": "/hosts",
    }


@pytest.mark.engine
@pytest.mark.parametrize("look", ["light", "dark", "phone"])
def test_each_view_can_be_read_and_used_by_all(
    browser: Browser, running: Server, everyday: dict[str, str], look: str
) -> None:
    options = {"color_scheme": "dark" if look == "dark" else "light"} | ({"viewport": PHONE} if look == "phone" else {})
    with tab(browser, running, **options) as page:
        for name, path in everyday.items():
            view = page.open(path)
            if name == "log":
                page.wait_for_line(" 50% [=====     ]")
            else:
                view.locator(".row, .timeline, [data-host]").first.wait_for()
            page.picture(f"{name}-{look}")
            assert view.evaluate(_FAINT) == [], name
            assert view.evaluate(_UNNAMED) == [], name
            assert view.locator("h1").count() == 1, name
            wide = view.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
            assert wide <= 0, name


@pytest.mark.engine
def test_the_page_is_used_by_keyboard(browser: Browser, running: Server, everyday: dict[str, str]) -> None:
    focused = "(document.activeElement.getAttribute('aria-label') ?? document.activeElement.textContent).trim()"
    with tab(browser, running) as page:
        view = page.open(everyday["log"])
        page.wait_for_line("50%")
        met = []
        for _ in range(20):
            view.keyboard.press("Tab")
            met.append(view.evaluate(focused))
            if met[-1] == "Output":
                break
        order = [
            "Skip to the content",
            "fastlane",
            "Overview",
            "Stop",
            "Search the log",
            "Previous match",
            "Wrap",
            "Copy",
        ]
        assert [each for each in met if each in order] == order
        assert met[-1] == "Output"
        # What is pressed does not get lost: a dialog gives the focus back.
        view.locator("[data-action=stop]").focus()
        view.keyboard.press("Enter")
        expect(view.get_by_label("Reason")).to_be_focused()
        # Even to a button that was drawn anew meanwhile.
        view.locator("[data-action=stop]").evaluate("(button) => button.replaceWith(button.cloneNode(true))")
        with view.expect_response("**/executions/*"):
            view.keyboard.press("Escape")
        # And when the answer has drawn it once more.
        view.locator("[data-action=stop] .icon").wait_for()
        expect(view.locator("[data-action=stop]")).to_be_focused()
        view.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
        expect(view.locator("[data-action=stop]")).to_be_focused()


@pytest.mark.engine
def test_a_screen_reader_is_told_little_of_a_flood(page: Tab, log: WrittenLog) -> None:
    log.lines(1, 300)
    view = page.open(log.path)
    page.wait_for_line("line 300")
    assert view.locator(".log").get_attribute("aria-live") is None
    view.evaluate("""() => {
        window.told = [];
        new MutationObserver(() => window.told.push(document.querySelector(".log-body > [role=status]").textContent))
            .observe(document.querySelector(".log-body > [role=status]"),
                { childList: true, characterData: true, subtree: true });
    }""")
    view.keyboard.press("g")
    for number in range(20):
        log.lines(301 + number * 10, 310 + number * 10)
        expect(view.locator(".jump")).to_have_text(f"{(number + 1) * 10} new lines")
    assert len(view.evaluate("window.told")) <= 1
