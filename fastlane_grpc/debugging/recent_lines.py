"""The newest warnings and errors of the server's log, kept in memory."""

from collections import deque
from collections.abc import Mapping, MutableMapping, Sequence
from typing import Any

_LEVELS = frozenset({"warning", "error", "critical"})
_MOST_LINES = 50
_MOST_CHARACTERS = 8000


class RecentLines:
    """A processor of structlog that keeps lines and changes none. The processor that formats exceptions comes first."""

    def __init__(self) -> None:
        # Appended to by any thread: a deque needs no lock for that.
        self._lines: deque[Mapping[str, str]] = deque(maxlen=_MOST_LINES)

    def __call__(self, logger: Any, method: str, line: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        if line.get("level") in _LEVELS:
            self._lines.append({name: str(value)[:_MOST_CHARACTERS] for name, value in line.items()})
        return line

    def lines(self) -> Sequence[Mapping[str, str]]:
        """Return the lines, oldest first."""
        return list(self._lines)
