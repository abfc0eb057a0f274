"""What the documentation says: links lead somewhere, commands do what they are said to do, and no list that is called
whole is not."""

import os
import re
import socket
import sys
from collections.abc import Iterator
from contextlib import closing
from functools import cache
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from urllib.parse import urlsplit

import docker
import pytest
from google.protobuf.descriptor import EnumDescriptor

from fastlane_grpc.rpc.server import MIN_PING_SECONDS
from fastlane_grpc.v1 import fastlane_pb2 as pb
from tests.engine import engine_address
from tests.pages import DocPage, pages
from tests.serving import Server, clear
from tests.tools import PATH, ROOT, tool

PAGES = pages()
RUNNABLE = [page for page in PAGES if any(block.runs for block in page.blocks())]


# ---------------------------------------------------------------------------------------------------------------- links


@pytest.mark.parametrize("page", PAGES, ids=repr)
def test_every_link_leads_to_a_file_and_a_heading_that_are_there(page: DocPage) -> None:
    for link in page.links():
        address = urlsplit(link)
        if address.scheme:
            # Not followed: no test needs the world.
            assert address.scheme == "https", f"{page}: {link}"
            continue
        place = (page.path.parent / address.path).resolve() if address.path else page.path
        assert place.is_relative_to(ROOT), f"{page}: {link}"
        assert place.exists(), f"{page}: {link}"
        if address.fragment:
            assert address.fragment in anchors(place), f"{page}: {link}"


@cache
def anchors(path: Path) -> frozenset[str]:
    """Of a page. Reading one takes a moment, and hundreds of links lead to some."""
    return DocPage(path).anchors


# ------------------------------------------------------------------------------------------------------------- commands


@pytest.fixture
def listen() -> str:
    return free_address()


def free_address() -> str:
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        return f"127.0.0.1:{listener.getsockname()[1]}"


@pytest.fixture
def http_listen() -> str:
    return free_address()


@pytest.fixture
def environment(listen: str, http_listen: str, tmp_path: Path) -> dict[str, str]:
    """As a person has it who follows a page, but that the server is elsewhere."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("FASTLANE_")}
    here = {
        "FASTLANE_ADDRESS": listen,
        "FASTLANE_LISTEN": listen,
        "FASTLANE_HTTP_LISTEN": http_listen,
        "FASTLANE_DATA_DIR": str(tmp_path / "data"),
        "DOCKER_HOST": engine_address(),
    }
    return kept | here | {"PATH": f"{Path(sys.executable).parent}:{PATH}", "NO_PROXY": "127.0.0.1"}


@pytest.fixture
def clean_engine(sdk: docker.DockerClient, tmp_path: Path) -> Iterator[None]:
    yield
    clear(sdk, tmp_path / "data")


@pytest.mark.engine
@pytest.mark.timeout(300)
@pytest.mark.usefixtures("clean_engine")
@pytest.mark.parametrize("page", RUNNABLE, ids=repr)
def test_what_a_page_says_can_be_run_does_what_it_says(
    page: DocPage, tmp_path: Path, image: str, listen: str, http_listen: str, environment: dict[str, str]
) -> None:
    for program in ("curl", "grpcurl", "jq"):
        tool(program)
    blocks = [block for block in page.blocks() if block.runs]
    # Unless the page begins with one.
    server = (
        None
        if "fastlane server" in blocks[0].text
        else Server(tmp_path / "data", listen=listen, http_listen=http_listen)
    )
    replace = {
        "127.0.0.1:7020": listen,
        "http://127.0.0.1:10000": f"http://{http_listen}",
        "127.0.0.1:7021": free_address(),
        "busybox": image,
        "/var/lib/fastlane": str(tmp_path / "data"),
    }
    directory = tmp_path / "run"
    directory.mkdir()
    try:
        page.run(directory, replace, environment)
    finally:
        if server:
            server.stop()


def test_the_readme_fits_on_a_few_screens_and_its_commands_are_run() -> None:
    readme = DocPage(ROOT / "README.md")
    assert len(readme.path.read_text().splitlines()) <= 150
    assert {block.language for block in readme.blocks() if block.runs} == {"console", "sh", "python"}


def test_the_least_ping_interval_in_the_documentation_is_that_of_the_server() -> None:
    clients = " ".join((ROOT / "clients" / "README.md").read_text().split())
    documented = re.search(r"Ping each ([0-9]+) s at most", clients)
    assert documented
    # A ping may come a little early.
    assert int(documented[1]) == MIN_PING_SECONDS + 1


# ---------------------------------------------------------------------------------------------------------------- lists


def test_each_line_of_the_security_page_names_a_test_that_is_there() -> None:
    page = (ROOT / "docs" / "security.md").read_text()
    tests = "".join(path.read_text() for path in (ROOT / "tests").glob("test_*.py"))
    rows = [row.split(" | ") for row in re.findall(r"^\| (?!---)(.+) \|$", page, re.MULTILINE) if "shown by" not in row]
    assert len(rows) > 60
    for *_, shown_by in rows:
        named = re.findall(r"`(test_\w+)`", shown_by)
        assert named or shown_by.startswith("not "), shown_by
        for name in named:
            assert f"def {name}(" in tests or (ROOT / "tests" / f"{name}.py").exists(), name


def test_each_edge_case_of_retries_and_schedules_names_a_test_that_is_there() -> None:
    page = (ROOT / "docs" / "retries-and-schedules.md").read_text().partition("\n## Edge cases\n")[2]
    tests = "".join(path.read_text() for path in (ROOT / "tests").glob("test_*.py"))
    names = re.findall(r"^\| .+ \| `(test_\w+)` \|$", page, re.MULTILINE)
    assert len(names) == len(re.findall(r"^\| (?!what happens|---)", page, re.MULTILINE)) > 30
    assert [name for name in names if f"def {name}(" not in tests] == []


def test_each_edge_case_of_notifications_names_a_test_that_is_there() -> None:
    page = (ROOT / "docs" / "notifications.md").read_text().partition("\n## Edge cases\n")[2]
    tests = "".join(path.read_text() for path in (ROOT / "tests").glob("test_*.py"))
    names = re.findall(r"^\| .+ \| `(test_\w+)` \|$", page, re.MULTILINE)
    assert len(names) == len(re.findall(r"^\| (?!what happens|---)", page, re.MULTILINE)) > 20
    assert [name for name in names if f"def {name}(" not in tests] == []


@pytest.mark.parametrize(
    ("section", "enum", "prefix"),
    [
        ("Errors of a call", pb.ErrorReason.DESCRIPTOR, "ERROR_REASON_"),
        ("Why an execution ended", pb.Reason.DESCRIPTOR, "REASON_"),
        ("What an execution waits for", pb.WaitReason.DESCRIPTOR, "WAIT_REASON_"),
        ("Gaps in a log", pb.LogGap.Cause.DESCRIPTOR, "CAUSE_"),
    ],
)
def test_troubleshooting_has_an_entry_for_each_thing_that_can_go_wrong(
    section: str, enum: EnumDescriptor, prefix: str
) -> None:
    page = (ROOT / "docs" / "troubleshooting.md").read_text()
    entries = re.findall(r"^### ([A-Z_]+)$", page.partition(f"\n## {section}\n")[2].partition("\n## ")[0], re.MULTILINE)
    # The zero of most enums is never sent.
    names = [value.name.removeprefix(prefix) for value in enum.values if value.number or enum.name == "Cause"]
    assert len(entries) == len({*entries})
    assert {*entries} == {*names}


# ---------------------------------------------------------------------------------------------------------- reliability


def test_the_counts_on_the_reliability_page_are_those_of_recorded_runs() -> None:
    spec = spec_from_file_location("reliability", ROOT / ".ci" / "reliability.py")
    assert spec
    assert spec.loader
    reliability = module_from_spec(spec)
    # Its dataclasses look for their module.
    sys.modules[spec.name] = reliability
    spec.loader.exec_module(reliability)
    assert reliability.PAGE.read_text() == reliability.page(), "write it anew: python .ci/reliability.py page"
    assert {run["row"] for run in reliability.records()} <= reliability.ROWS.keys()
    for row in reliability.ROWS.values():
        files = [word for word in row.arguments if word.startswith("tests/")]
        tests = "".join((ROOT / file).read_text() for file in files)
        chosen = row.arguments[row.arguments.index("-k") + 1].split(" or ") if "-k" in row.arguments else []
        assert all(re.search(rf"def test_\w*{words}", tests) for words in chosen), chosen
        assert not row.variable or row.variable in tests
