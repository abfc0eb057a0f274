"""The files of the page: their types, their tags, and what a browser is told to allow them."""

import re
from collections.abc import AsyncIterator
from importlib.resources import files
from pathlib import Path

import pytest

from fastlane_grpc.http.page_files import page_files
from tests.http_harness import HttpHarness

BROWSER = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"
PAGE = files("fastlane_grpc.http") / "page"
ID = "00000000-0000-0000-0000-000000000000"


@pytest.fixture
async def harness(tmp_path: Path) -> AsyncIterator[HttpHarness]:
    harness = HttpHarness(tmp_path)
    await harness.start()
    yield harness
    await harness.close()


@pytest.mark.parametrize("path", ["/", "/tasks", "/tasks/a", f"/jobs/{ID}", f"/executions/{ID}", "/jobs", "/hosts"])
async def test_a_browser_gets_the_page_where_others_get_json(harness: HttpHarness, path: str) -> None:
    page = await harness.ask("GET", path, accept=BROWSER)
    assert (page.status, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert page.headers["vary"] == "Accept"
    if path != "/":
        other = await harness.ask("GET", path, accept="*/*")
        assert other.headers["content-type"] in {"application/json", "application/problem+json"}


@pytest.mark.parametrize(
    ("path", "status"),
    [("/nothing/here", 404), ("/job/7", 404), (f"/executions/{ID}/logs", 404), ("/jobs/7/stop", 405)],
)
async def test_a_browser_gets_the_page_where_nothing_is(harness: HttpHarness, path: str, status: int) -> None:
    for verb in ("GET", "HEAD"):
        page = await harness.ask(verb, path, accept=BROWSER)
        assert (page.status, page.headers["content-type"]) == (status, "text/html; charset=utf-8")
        assert "content-security-policy" in page.headers
        assert ("allow" in page.headers) == (status == 405)
    page = await harness.ask("GET", path, accept=BROWSER, if_none_match="*")
    assert (page.status, page.body) == (status, (await harness.ask("GET", "/", accept=BROWSER)).body)
    for accept in ("*/*", "application/json", "text/html;q=0.5, application/json"):
        other = await harness.ask("GET", path, accept=accept)
        assert (other.status, other.headers["content-type"]) == (status, "application/problem+json")
    posted = await harness.ask("POST", "/nothing/here", {}, accept=BROWSER)
    assert (posted.status, posted.headers["content-type"]) == (404, "application/problem+json")


async def test_the_page_may_load_and_run_nothing_from_elsewhere(harness: HttpHarness) -> None:
    page = await harness.ask("GET", "/", accept=BROWSER)
    policy = dict(each.split(" ", 1) for each in page.headers["content-security-policy"].split("; "))
    assert policy["default-src"] == policy["frame-ancestors"] == policy["base-uri"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert policy["require-trusted-types-for"] == "'script'"
    assert policy["trusted-types"] == "'none'"
    assert page.headers["x-content-type-options"] == "nosniff"
    assert page.headers["referrer-policy"] == "no-referrer"
    assert b"http:" not in page.body
    assert b"https:" not in page.body


async def test_every_asset_has_its_type_and_a_tag_that_is_asked_for(harness: HttpHarness) -> None:
    types = {"js": "text/javascript; charset=utf-8", "css": "text/css; charset=utf-8", "svg": "image/svg+xml"}
    loaded = {"app.js", "start.js", "style.css", "log.css", "icon.svg"}
    followed: set[str] = set()
    while missing := loaded - followed:
        name = missing.pop()
        followed.add(name)
        asset = await harness.ask("GET", f"/assets/{name}")
        assert (asset.status, asset.headers["content-type"]) == (200, types[name.rpartition(".")[2]]), name
        again = await harness.ask("GET", f"/assets/{name}", if_none_match=asset.headers["etag"])
        assert (again.status, again.body) == (304, b""), name
        folder = name.rpartition("/")[0]
        for relative in re.findall(r'from "(\.[^"]+)"', asset.body.decode()):
            loaded.add(str((Path("/") / folder / relative).resolve())[1:])
    # All that is there is loaded: nothing in the folder is dead.
    assert loaded | {"index.html"} == page_files().keys()


@pytest.mark.parametrize(
    "name", ["../page_files.py", "..%2fpage_files.py", "%2e%2e/server.py", "nothing.js", "", "log/"]
)
async def test_nothing_but_assets_is_served(harness: HttpHarness, name: str) -> None:
    assert (await harness.ask("GET", f"/assets/{name}")).status == 404


async def test_head_of_the_page_has_its_headers_alone(harness: HttpHarness) -> None:
    head, whole = await harness.ask("HEAD", "/"), await harness.ask("GET", "/")
    assert head.body == b""
    assert {**head.headers, "date": ""} == {**whole.headers, "date": ""}


def test_no_module_of_the_page_makes_html_or_code_of_text() -> None:
    forbidden = re.compile(
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function|DOMParser"
        r"|createContextualFragment|srcdoc|cssText|javascript:|setTimeout\(\s*[\"'`]|setAttribute\(\s*[\"'](style|on)"
    )
    for path in Path(str(PAGE)).rglob("*.js"):
        assert not forbidden.search(path.read_text()), path.name
    assert not re.search(r"<script(?![^>]* src=)|<style| style=| on[a-z]+=", Path(str(PAGE / "index.html")).read_text())
