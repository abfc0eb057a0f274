"""Text from the command line and the environment that is not UTF-8: refused in one line that names it, before anything
else is done."""

import os
from collections.abc import Sequence

from fastlane_grpc.cli.errors import WRONG_USE, Failure
from fastlane_grpc.text.redaction import REDACTED, SecretNames

_SECRET_NAMES = SecretNames()


def check_arguments(arguments: Sequence[str]) -> None:
    """Raise Failure that names the first argument that is not UTF-8. Python makes lone surrogates of its bytes."""
    for number, argument in enumerate(arguments, 1):
        if not is_utf8(argument):
            before = arguments[number - 2] if number > 1 else ""
            after = f" (after {escaped(before)})" if before.startswith("-") else ""
            raise Failure(f"argument {number}{after} is not UTF-8: '{escaped(argument)}'", WRONG_USE)


def is_utf8(text: str) -> bool:
    return text.isascii() or not any("\ud800" <= character <= "\udfff" for character in text)


def escaped(text: str) -> str:
    """The text with each byte that is not UTF-8 as `\\xe9`, and without a secret: it may be `NAME=VALUE` of a
    variable."""
    shown = os.fsencode(text).decode("utf-8", "backslashreplace")
    name, equals, value = shown.partition("=")
    if not equals:
        return shown
    return f"{name}={_SECRET_NAMES.shown(name.lstrip('-'), value) if name else REDACTED}"
