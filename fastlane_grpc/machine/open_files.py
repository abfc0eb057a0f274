"""The process's limit on open files, divided between executions, connections and readers of logs."""

import resource
from dataclasses import dataclass
from typing import Self

# Files of the process itself: the database, standard streams, libraries, listeners, short-lived files.
OWN_FILES = 96
# Files of each execution: connections to its engine, its record, and the record's directory.
FILES_OF_AN_EXECUTION = 4
# Files of each log: the output of the execution, and the system lines.
FILES_OF_A_LOG = 2
# A limit for the sake of memory: an idle connection takes some ten kilobytes.
MOST_CONNECTIONS = 10_000


@dataclass(frozen=True, slots=True)
class OpenFiles:
    """A division of `limit` open files. Connections and readers of logs never use the files of executions.

    `max_connections` is the limit of each listener for clients."""

    limit: int
    max_connections: int
    max_open_logs: int

    @classmethod
    def of(cls, limit: int, *, max_running: int, listeners: int = 1) -> Self:
        """Divide the limit for at most `max_running` executions at a time, and for this many listeners."""
        reserved = min(OWN_FILES + FILES_OF_AN_EXECUTION * max_running, limit // 2)
        connections = max((limit - reserved) // 3, 1)
        logs = max((limit - reserved - connections) // FILES_OF_A_LOG, 1)
        return cls(limit, min(max(connections // listeners, 1), MOST_CONNECTIONS), logs)

    def max_relays(self, max_running: int) -> int:
        """Return the limit of the listener for relays, with which so many executions can run as pods at a time.

        The connection of a relay is one of the files of its execution. More are open for a while when relays connect
        again, as those that they lost are closed later.
        """
        return self.max_connections + max_running


def needed(*, max_running: int, max_streams: int) -> int:
    """Return the limit with which each stream can have its own connection and its own log."""
    return OWN_FILES + FILES_OF_AN_EXECUTION * max_running + (1 + FILES_OF_A_LOG) * max_streams


def raise_limit() -> int:
    """Raise the limit on open files as far as this process may, and return the new limit."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    return most
