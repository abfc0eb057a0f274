"""Credentials for registries that the operator names in the settings.

They are read anew for each pull: a file may be replaced at any time.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field

from fastlane_grpc.config import RegistrySettings
from fastlane_grpc.errors import RegistryCredentialNotFound
from fastlane_grpc.pools import matcher
from fastlane_grpc.secrets.source import Unreadable, read_file, read_output

_MAX_BYTES = 65_536
# The user by which a credential helper says that its secret is an identity token.
_TOKEN_USER = "<token>"


@dataclass(frozen=True, slots=True)
class Credential:
    """A user with a password, or an identity token, which a registry is shown."""

    username: str = ""
    password: str = field(default="", repr=False)
    identity_token: str = field(default="", repr=False)


class RegistryCredentials:
    """The credentials of the settings, in their order."""

    def __init__(self, registries: Sequence[RegistrySettings]) -> None:
        self._registries = [(each, matcher(each.tasks)) for each in registries]

    def named(self, name: str, task_id: str) -> RegistrySettings:
        """Return the credential of this name. RegistryCredentialNotFound: the task has none such, or may not use it."""
        for each, pattern in self._registries:
            if each.name == name and pattern.match(task_id):
                return each
        raise RegistryCredentialNotFound(name)

    def of_server(self, server: str, task_id: str) -> RegistrySettings | None:
        """Return the first credential for this registry that jobs of the task may use."""
        for each, pattern in self._registries:
            if each.server == server and pattern.match(task_id):
                return each
        return None


def read_credential(registry: RegistrySettings) -> Credential:
    """Return what the registry is to be shown. Raises Unreadable."""
    if registry.identity_token_file:
        return Credential(identity_token=_line(read_file(registry.identity_token_file, _MAX_BYTES), registry))
    if registry.password_file:
        return Credential(registry.username, _line(read_file(registry.password_file, _MAX_BYTES), registry))
    output = read_output(registry.command, _MAX_BYTES, f"{registry.server}\n".encode())
    if registry.username:
        return Credential(registry.username, _line(output, registry))
    return _answer_of_helper(output, registry)


def _line(content: bytes, registry: RegistrySettings) -> str:
    """Return the content without the end of its line."""
    try:
        text = content.decode().rstrip("\r\n")
    except UnicodeDecodeError:
        raise Unreadable(f"the credential {registry.name!r} is not UTF-8") from None
    if not text:
        raise Unreadable(f"the credential {registry.name!r} is empty")
    return text


def _answer_of_helper(output: bytes, registry: RegistrySettings) -> Credential:
    """Read the JSON that a credential helper of docker prints."""
    try:
        answer = json.loads(output)
        user, secret = answer["Username"], answer["Secret"]
    except (ValueError, TypeError, KeyError):
        user = secret = None
    # From None, and without the output: the error of a parser quotes what it read.
    if not isinstance(user, str) or not isinstance(secret, str) or not secret:
        raise Unreadable(
            f"the command of the credential {registry.name!r} did not print JSON with Username and Secret; "
            "set username if it prints the password alone"
        )
    return Credential(identity_token=secret) if user == _TOKEN_USER else Credential(user, secret)
