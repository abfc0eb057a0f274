"""The limit on open files of this process, and its division between executions, connections and logs that are read."""

import resource
from dataclasses import dataclass
from typing import Self

# Of the process itself: the database, standard streams, libraries, listeners, and those of its own that come and go.
OWN_FILES = 96
# Of each execution: connections to its engine, its record, and the directory in which that lies.
FILES_OF_AN_EXECUTION = 4
# What an execution printed, and fastlane's own lines about it.
FILES_OF_A_LOG = 2
# Where the limit on open files allows more, memory does not: a connection with nothing on it takes some ten kilobytes.
MOST_CONNECTIONS = 10_000


@dataclass(frozen=True, slots=True)
class OpenFiles:
    """The division of `limit` open files. The files of executions are never lent to connections or to readers of
    logs."""

    limit: int
    max_connections: int
    max_open_logs: int

    @classmethod
    def of(cls, limit: int, *, max_running: int) -> Self:
        """The division where `max_running` executions may run at a time."""
        reserved = min(OWN_FILES + FILES_OF_AN_EXECUTION * max_running, limit // 2)
        connections = max((limit - reserved) // 3, 1)
        logs = max((limit - reserved - connections) // FILES_OF_A_LOG, 1)
        return cls(limit, min(connections, MOST_CONNECTIONS), logs)


def needed(*, max_running: int, max_streams: int) -> int:
    """The limit with which every stream may have a connection and a log to itself."""
    return OWN_FILES + FILES_OF_AN_EXECUTION * max_running + (1 + FILES_OF_A_LOG) * max_streams


def raise_limit() -> int:
    """Raises the limit on open files as far as this process may, and returns it."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    return most
