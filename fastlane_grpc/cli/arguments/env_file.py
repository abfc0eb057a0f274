"""Files of environment variables, in the format of `docker run --env-file`."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from fastlane_grpc.cli.arguments.encoding import is_utf8
from fastlane_grpc.cli.errors import WRONG_USE, Failure

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*")
# No request is larger.
_MAX_BYTES = 4 << 20


def read_env_file(path: Path, environ: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Yield each variable of the file, in order.

    A line is NAME=VALUE, the value taken as it is, or NAME alone, which is the variable of that name here. Blank lines
    and lines that begin with # are left out. Raises Failure that names file and line, and repeats no value."""
    for number, line in enumerate(_lines(path), 1):
        if not line or line.startswith("#"):
            continue
        where = f"line {number} of --env-file {path}"
        name, equals, value = line.partition("=")
        if not name:
            raise Failure(f"{where} has no name before the =", WRONG_USE)
        if any(character.isspace() for character in name):
            # The line is not repeated: it may be a secret, or the rest of one that has several lines.
            raise Failure(f"{where} has a space before the =; expected NAME=VALUE or NAME", WRONG_USE)
        if not equals and not _NAME.fullmatch(name):
            raise Failure(f"{where} has no = and is not the name of a variable; expected NAME=VALUE", WRONG_USE)
        if not equals and name not in environ:
            raise Failure(
                f"{where} has no =, and no variable of this environment has its name; expected NAME=VALUE",
                WRONG_USE,
            )
        value = value if equals else environ[name]
        if not is_utf8(value):
            raise Failure(f"{where}: the value of {name!r} in this environment is not UTF-8", WRONG_USE)
        yield name, value


def _lines(path: Path) -> Iterator[str]:
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise Failure(f"cannot read --env-file {path}: {error.strerror}", WRONG_USE) from error
    if len(data) > _MAX_BYTES:
        raise Failure(f"--env-file {path} is larger than {_MAX_BYTES >> 20} MiB, the maximum for a job", WRONG_USE)
    for number, line in enumerate(data.removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1):
        try:
            yield line.removesuffix(b"\r").decode().lstrip()
        except UnicodeDecodeError:
            raise Failure(f"line {number} of --env-file {path} is not UTF-8", WRONG_USE) from None
