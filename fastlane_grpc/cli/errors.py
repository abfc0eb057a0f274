"""Exit statuses of our own, and the one exception that ends a command with one. Those of a job are told by the end of
its log."""

import click

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
