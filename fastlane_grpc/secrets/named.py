"""Secrets that the operator names in the settings, for the environment of jobs.

They are read anew for each container.
"""

from collections.abc import Mapping, Sequence

from fastlane_grpc.config import SecretSettings
from fastlane_grpc.errors import SecretNotFound
from fastlane_grpc.pools import matcher
from fastlane_grpc.secrets.source import read_file, read_output, read_variable

MAX_VALUE_BYTES = 32_768
MAX_TOTAL_BYTES = 65_536


class SecretUnusable(Exception):
    """A value that no variable can have. The message names the secret, and has nothing of the value."""


class NamedSecrets:
    """The secrets of the settings. A name NAME/FILE is a file of the directory that NAME is."""

    def __init__(self, secrets: Sequence[SecretSettings]) -> None:
        self._secrets = {each.name: (each, matcher(each.tasks)) for each in secrets}

    def check(self, name: str, task_id: str) -> SecretSettings:
        """Return where the secret is. SecretNotFound: there is none of that name, or the task may not use it."""
        table, has_file, _ = name.partition("/")
        found = self._secrets.get(table)
        if found is None or bool(has_file) != bool(found[0].directory) or not found[1].match(task_id):
            raise SecretNotFound(name)
        return found[0]

    def read(self, secret_envs: Mapping[str, str], task_id: str) -> Mapping[str, bytes]:
        """Return the value of each variable. Raises SecretNotFound, Unreadable and SecretUnusable."""
        values: dict[str, bytes] = {}
        by_secret: dict[str, bytes] = {}
        for variable, name in secret_envs.items():
            if name not in by_secret:
                by_secret[name] = self._value(name, task_id)
            values[variable] = by_secret[name]
        if sum(map(len, values.values())) > MAX_TOTAL_BYTES:
            raise SecretUnusable(f"the secrets of the job have more than {MAX_TOTAL_BYTES} bytes together")
        return values

    def _value(self, name: str, task_id: str) -> bytes:
        secret = self.check(name, task_id)
        if secret.file:
            value = read_file(secret.file, MAX_VALUE_BYTES)
        elif secret.directory:
            value = read_file(secret.directory / name.partition("/")[2], MAX_VALUE_BYTES)
        elif secret.env:
            value = read_variable(secret.env, MAX_VALUE_BYTES)
        else:
            value = read_output(secret.command, MAX_VALUE_BYTES, f"{name}\n".encode())
        if b"\0" in value:
            raise SecretUnusable(f"the secret {name!r} has a NUL byte, which no variable can have")
        return value
