"""The results of the suite, a file for each language, as a run recorded them: `make conformance`. A run whose results
are others fails."""

import fcntl
import json
from collections.abc import Generator, Mapping
from pathlib import Path

import pytest

from tests.conformance.languages import Language

DIRECTORY = Path(__file__).parent / "results"


def recorded(language: Language) -> Mapping[str, str]:
    """Return the outcome of each test, by its name and parameters."""
    results: Mapping[str, str] = json.loads(_file(language).read_text()) if _file(language).exists() else {}
    return results


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Record the result of a test of the suite, or fail the test if it is not the recorded one."""
    report = yield
    language = getattr(getattr(item, "cls", None), "language", None)
    if not isinstance(language, Language) or (report.when != "call" and report.passed):
        return report
    if item.config.getoption("record_conformance"):
        _record(language, item.name, report.outcome)
    elif report.passed and recorded(language).get(item.name) != "passed":
        report.outcome = "failed"
        report.longrepr = (
            f"{item.nodeid} passed, which is not on record: run `make conformance` and commit what it makes"
        )
    return report


def _record(language: Language, name: str, outcome: str) -> None:
    DIRECTORY.mkdir(exist_ok=True)
    with Path(__file__).open() as held:
        # Tests of a language may run in several processes.
        fcntl.flock(held, fcntl.LOCK_EX)
        results = {**recorded(language), name: outcome}
        _file(language).write_text(json.dumps(results, indent=2, sort_keys=True) + "\n")


def _file(language: Language) -> Path:
    return DIRECTORY / f"{language.name.lower()}.json"
