"""Exit statuses of our own, and the one exception that ends a command with one. Those of a job are told by the end of
its log."""

from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    # Importing gRPC takes longer than most commands that need no server.
    from fastlane_grpc.client import Error

FAILED = 1
WRONG_USE = 2
UNAVAILABLE = 69
# Of a job that never ran, or of which nobody knows how it ended.
NO_EXIT_STATUS = 125
INTERRUPTED = 130


class Failure(click.ClickException):
    """Ends the command: the message, on stderr, says what is wrong, with which one, and what to do."""

    def __init__(self, message: str, status: int = FAILED) -> None:
        super().__init__(message)
        self.status = status


def cause(error: "Error") -> str:
    """Return the cause of an error in short. If no server responds, gRPC's own message lists all addresses; only the
    system's message at its end is returned."""
    return error.message if error.reason else error.message.rpartition(": ")[2].rstrip("]")
