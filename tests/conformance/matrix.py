"""The page of the results, docs/client-conformance.md: `python -m tests.conformance.matrix` writes it to stdout.

A cell is a test that CI runs; none may be skipped or fail there."""

import inspect
import sys

from tests.conformance.languages import LANGUAGES
from tests.conformance.suite import Suite

HEAD = """# Conformance of the clients

What every client promises, tested against a real server through a relay that breaks connections,
and against a scripted one. CI runs each line for each language. [How the suite
works](../clients/conformance.md). Made by `python -m tests.conformance.matrix`.

"""


def page() -> str:
    names = [name for name, value in vars(Suite).items() if name.startswith("test_") and inspect.isfunction(value)]
    rows = [
        ["", *(language.name for language in LANGUAGES)],
        ["---", *(":-:" for _ in LANGUAGES)],
        *([_sentence(name), *("✓" for _ in LANGUAGES)] for name in names),
    ]
    return HEAD + "".join(f"| {' | '.join(row)} |\n" for row in rows)


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
