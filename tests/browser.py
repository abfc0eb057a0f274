"""A real browser for tests of the page, and logs to show in it."""

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from playwright.sync_api import Browser, ConsoleMessage, Error, Page, expect, sync_playwright

from fastlane_grpc import Client
from fastlane_grpc.logs import Logs
from fastlane_grpc.model import Cause, Source
from fastlane_grpc.record import RecordWriter
from fastlane_grpc.v1 import fastlane_pb2 as pb
from tests.serving import Server
from tests.tools import tool

# Where screenshots are kept; nowhere, if it is not set.
SCREENSHOTS = os.environ.get("FASTLANE_SCREENSHOTS", "")
# Waits end with what they wait for; a machine may be busy.
WAIT_MS = 30_000
PHONE = {"width": 360, "height": 740}
DESK = {"width": 1280, "height": 800}


@contextmanager
def browsing() -> Iterator[Browser]:
    """A browser without a window."""
    program = tool("chromium")
    expect.set_options(timeout=WAIT_MS)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program)
        try:
            yield browser
        finally:
            browser.close()


def visit(page: Page, address: str) -> None:
    """Load an address, again where a container that starts beside the test has changed the network of this machine."""
    deadline = time.monotonic() + WAIT_MS / 1000
    while True:
        try:
            page.goto(address)
        except Error as error:
            if "ERR_NETWORK_CHANGED" not in error.message or time.monotonic() > deadline:
                raise
        else:
            return


@dataclass
class Tab:
    """A page of the browser, and what it complained of."""

    page: Page
    base: str
    complaints: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.page.set_default_timeout(WAIT_MS)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("console", self._hear)

    def _hear(self, said: ConsoleMessage) -> None:
        # Each container that starts changes the network of this machine; the page asks again.
        if said.type == "error" and "ERR_NETWORK_CHANGED" not in said.text:
            self.complaints.append(said.text)

    def open(self, path: str) -> Page:
        visit(self.page, self.base + path)
        # Where a file did not arrive, the page loads itself again: a test begins when all is there.
        expect(self.page.locator("html")).to_have_attribute("data-started", "true")
        expect(self.page.locator(".bar")).to_have_css("display", "flex")
        return self.page

    def lines(self) -> Sequence[str]:
        """The text of all lines that are in the page."""
        return self.page.evaluate("[...document.querySelectorAll('.line .text')].map((line) => line.textContent)")

    def numbers(self) -> Sequence[int]:
        """The numbers of all lines that are in the page."""
        found = (
            "[...document.querySelectorAll('.line .number[data-number]')].map((each) => Number(each.dataset.number))"
        )
        return self.page.evaluate(found)

    def wait_for_line(self, text: str) -> None:
        self.page.locator(".line .text", has_text=text).last.wait_for()

    def picture(self, name: str) -> None:
        """Keep a screenshot, if the tests were told where."""
        if SCREENSHOTS:
            directory = Path(SCREENSHOTS)
            directory.mkdir(parents=True, exist_ok=True)
            self.page.screenshot(path=directory / f"{name}.png", animations="disabled")


@contextmanager
def tab(browser: Browser, server: Server, **options: object) -> Iterator[Tab]:
    """A page in a profile of its own. Whatever is wrong in the page fails the test."""
    context = browser.new_context(**{"viewport": DESK, "reduced_motion": "reduce", **options})  # type: ignore[arg-type]
    try:
        opened = Tab(context.new_page(), f"http://127.0.0.1:{server.http_port}")
        yield opened
        assert not opened.complaints
    finally:
        context.close()


class WrittenLog:
    """The log of a job that is queued for ever, written by the test as a recorder would."""

    def __init__(self, server: Server, data_dir: Path, task: str = "demo") -> None:
        with Client(server.address) as client:
            self.job: pb.Job = client.enqueue(task, "none:latest", command="true")
        self.execution_id = self.job.execution.id
        self._server = server
        self._path = Logs(data_dir / "logs").output_path(self.execution_id)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._writer = RecordWriter.create(self._path, execution_id=self.execution_id, capture="test")
        self._time_ns = time.time_ns()

    @property
    def path(self) -> str:
        return f"/executions/{self.execution_id}"

    def write(self, data: bytes, source: Source = Source.STDOUT, *, after_seconds: float = 0.001) -> None:
        self._time_ns += int(after_seconds * 1e9)
        self._writer.write([(source, data)], self._time_ns)

    def lines(self, first: int, last: int, form: str = "line {}") -> None:
        """Write numbered lines."""
        self.write("".join(f"{form.format(number)}\n" for number in range(first, last + 1)).encode())

    def gap(self, missing_bytes: int | None, cause: Cause) -> None:
        self._writer.gap(Source.STDOUT, missing_bytes, cause, self._time_ns)

    def end(self) -> None:
        """Seal the log: its job is stopped."""
        self._writer.close()
        with Client(self._server.address) as client:
            client.stop(self.job.id)
