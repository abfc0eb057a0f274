"""The page of the results, docs/client-conformance.md: `python -m tests.conformance.matrix` writes it to stdout.

A cell is what the last recorded run gave."""

import inspect
import sys
from collections.abc import Sequence

from tests.conformance.languages import LANGUAGES, Language
from tests.conformance.results import recorded
from tests.conformance.suite import Suite

HEAD = """# Conformance of the clients

What every client promises, tested against a real server through a relay that breaks connections,
and against a scripted one. [How the suite works](../clients/conformance.md).

The marks are the results of a run, which `make conformance` recorded: ✓ passed, ✗ failed, – not
run. CI runs each line for each language, and fails if a result differs from this page.

"""


def promises() -> Sequence[str]:
    """Return the names of the suite's tests."""
    return [name for name, value in vars(Suite).items() if name.startswith("test_") and inspect.isfunction(value)]


def page() -> str:
    rows = [
        ["", *(language.name for language in LANGUAGES)],
        ["---", *(":-:" for _ in LANGUAGES)],
        *([_sentence(name), *(_mark(language, name) for language in LANGUAGES)] for name in promises()),
        ["tests that passed", *(_count(language) for language in LANGUAGES)],
    ]
    return HEAD + "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _mark(language: Language, promise: str) -> str:
    outcomes = {outcome for name, outcome in recorded(language).items() if name.partition("[")[0] == promise}
    if not outcomes:
        return "–"
    return "✓" if outcomes == {"passed"} else "✗"


def _count(language: Language) -> str:
    outcomes = recorded(language).values()
    return f"{sum(outcome == 'passed' for outcome in outcomes)} of {len(outcomes)}"


def _sentence(name: str) -> str:
    return (
        name.removeprefix("test_")
        .replace("_", " ")
        .replace("utf 8", "UTF-8")
        .replace("16 mib", "16 MiB")
        .replace("goaway", "GOAWAY")
        .replace(" ok ", " OK ")
    )


if __name__ == "__main__":
    sys.stdout.write(page())
