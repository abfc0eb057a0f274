"""The conformance suite itself: it covers each language that is named, and the page of its results is up to date."""

import inspect

import pytest

from tests.conformance import matrix
from tests.conformance.languages import LANGUAGES, Language
from tests.conformance.results import recorded
from tests.tools import ROOT


def test_the_page_of_the_results_is_what_was_recorded() -> None:
    assert (ROOT / "docs" / "client-conformance.md").read_text() == matrix.page(), "run `make conformance`"


@pytest.mark.parametrize("language", LANGUAGES, ids=lambda language: language.name)
def test_the_record_of_a_language_has_each_promise_and_no_other(language: Language) -> None:
    results = recorded(language)
    assert {name.partition("[")[0] for name in results} == {*matrix.promises()}, "run `make conformance`"
    assert {*results.values()} == {"passed"}


@pytest.mark.parametrize("language", LANGUAGES, ids=lambda language: language.name)
def test_each_language_on_the_page_has_a_test_file(language: object) -> None:
    name = inspect.getattr_static(language, "name")
    text = (ROOT / "tests" / f"test_conformance_{name.lower()}.py").read_text()
    assert f"    language = {name.upper()}\n" in text


def test_a_driver_is_described_on_less_than_a_screen_and_a_half() -> None:
    assert len((ROOT / "clients" / "conformance.md").read_text().splitlines()) <= 75
