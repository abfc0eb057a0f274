"""The count of faults that tests made, for the page docs/reliability.md."""

import os
from pathlib import Path


def tally(number: int = 1) -> None:
    """Count faults that were made, if the run counts them."""
    if path := os.environ.get("CHAOS_TALLY"):
        with Path(path).open("a") as file:
            file.write(f"{number}\n")
