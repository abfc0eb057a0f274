"""The page with a log of a gigabyte: how long it takes to show the end, and what its tab holds meanwhile.

The log is written as a recorder writes it; no container prints a gigabyte here."""

import shutil
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from playwright.sync_api import Browser, CDPSession, Page, sync_playwright

from bench.ratio import Limit
from bench.readers import no_engine, record
from bench.server import Running
from fastlane_grpc.model import Source

LOG_BYTES = 1_000_000_000
LINE = b"2026-01-01 12:00:00 \x1b[32mINFO\x1b[0m  worker 17 took the next part of the work, and did it in 12.5 ms\n"
PIECE_LINES = 600
OPEN_SECONDS = 2.0
TAB_MEGABYTES = 200.0
# How often the reader scrolls to the top of what is loaded, which loads more.
SCROLLS = 15


def rows(stage: Path, rounds: int) -> Iterator[Limit | str]:
    browser_path = shutil.which("chromium")
    if browser_path is None:
        yield "the end of a log of 1 GB in the page: not measured, there is no chromium"
        return
    with no_engine(stage) as running, sync_playwright() as playwright:
        execution_id, last = _gigabyte(running)
        browser = playwright.chromium.launch(executable_path=browser_path)
        try:
            address = f"http://127.0.0.1:{running.http_port}/executions/{execution_id}"
            measured = [_look(browser, address, last) for _ in range(rounds)]
        finally:
            browser.close()
    yield Limit("the end of a log of 1 GB in the page", "s", [each.seconds for each in measured], OPEN_SECONDS)
    yield Limit("  its tab at its most, with scrolling up", "MB", [each.most for each in measured], TAB_MEGABYTES)
    last_one = measured[-1]
    yield (
        f"  in MB: at its end {last_one.opened:.0f}, with garbage collected {last_one.collected:.0f}, "
        f"an empty tab {last_one.empty:.0f}, all tabs of the browser at their most {last_one.all_tabs:.0f}"
    )


@dataclass(frozen=True)
class Look:
    """A log in a tab of its own: the seconds until its end is seen, and megabytes.

    Those of the tab are of the process that draws it. A browser keeps others, of empty tabs and for the next one."""

    seconds: float
    empty: float
    opened: float
    most: float
    collected: float
    all_tabs: float


def _gigabyte(running: Running) -> tuple[str, int]:
    """Write the log, and return the execution and the number of its last line."""
    execution_id, writer = record(running)
    piece, lines = LINE * PIECE_LINES, 0
    with closing(writer):
        while lines * len(LINE) < LOG_BYTES:
            writer.write([(Source.STDOUT, piece)], time.time_ns())
            lines += PIECE_LINES
    return execution_id, lines


def _look(browser: Browser, address: str, last: int) -> Look:
    """Open the log in a tab of its own, and scroll up."""
    system = browser.new_browser_cdp_session()
    context = browser.new_context()
    page = context.new_page()
    empty = _megabytes({_renderer(system, page)})
    begin = time.perf_counter()
    page.goto(address)
    page.locator(f".number[data-number='{last}']").wait_for()
    seconds = time.perf_counter() - begin
    tab = {_renderer(system, page)}
    steps, all_tabs = [_megabytes(tab)], [_megabytes({*_renderers(system)})]
    for _ in range(SCROLLS):
        _scroll_up(page)
        steps.append(_megabytes(tab))
        all_tabs.append(_megabytes({*_renderers(system)}))
    context.new_cdp_session(page).send("HeapProfiler.collectGarbage")
    collected = _megabytes(tab)
    context.close()
    return Look(seconds, empty, steps[0], max(steps), collected, max(all_tabs))


def _scroll_up(page: Page) -> None:
    """Scroll to the top of what is loaded, until an older part is there."""
    number = "Number(document.querySelector('.number[data-number]').dataset.number)"
    first = page.evaluate(number)
    page.locator(".log").focus()
    while page.evaluate(number) >= first:
        page.keyboard.press("Home")
        page.wait_for_timeout(20)


def _renderer(system: CDPSession, page: Page) -> int:
    """Return the process that draws the page: it uses the most CPU time while a script keeps the page busy."""
    before = _renderers(system)
    page.evaluate("() => { const end = performance.now() + 200; while (performance.now() < end); }")
    after = _renderers(system)
    return max(after, key=lambda process: after[process] - before.get(process, 0))


def _renderers(system: CDPSession) -> dict[int, float]:
    """Return the processes that draw pages, and the seconds for which they computed."""
    found = system.send("SystemInfo.getProcessInfo")["processInfo"]
    return {each["id"]: each["cpuTime"] for each in found if each["type"] == "renderer"}


def _megabytes(processes: set[int]) -> float:
    """The memory of processes, shared pages by their part."""
    return sum(
        int(line.split()[1]) / 1000
        for process in processes
        for line in Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
        if line.startswith("Pss:")
    )
