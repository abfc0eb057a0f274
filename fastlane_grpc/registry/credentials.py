"""The credentials for a registry: those that the operator names, else those of `docker login` on the server's machine.

All are read anew for each pull, so that neither a login nor a rotation needs a restart.
"""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import docker.auth
import docker.errors
import docker.utils.config
import structlog

from fastlane_grpc.backend import CannotRun, PullFailed
from fastlane_grpc.config import RegistrySettings
from fastlane_grpc.errors import RegistryCredentialNotFound
from fastlane_grpc.model import Reason
from fastlane_grpc.secrets import Credential, RegistryCredentials, Unreadable, read_credential

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Credentials:
    """The authentication header for an engine, and what it holds; empty: none.

    `problem` says why credentials could not be read. `name` is that of the operator's credential.
    """

    header: str = field(default="", repr=False)
    problem: str = ""
    name: str = ""
    credential: Credential = field(default_factory=Credential, repr=False)

    def added_to(self, failure: CannotRun, done: str) -> CannotRun:
        """Return the failure, with what is known of the credentials if the registry may have refused because of them.

        Some registries report a private image as unknown. `done`: "pulled".
        """
        if failure.reason not in {Reason.IMAGE_DENIED, Reason.IMAGE_NOT_FOUND}:
            return failure
        if self.problem:
            known = f"without credentials: {self.problem}"
        elif self.name:
            known = f"with the registry credential {self.name!r}"
        else:
            return failure
        return CannotRun(failure.reason, f"{failure.detail}. It was {done} {known}")


class _Unreadable(Exception):
    """A file of credentials cannot be read. The message names the file and the fault."""


def credentials_of_job(named: RegistryCredentials, name: str, task_id: str, registry: str) -> Credentials:
    """Return the credentials with which an image of this registry is pulled for a job of the task.

    `name`: the credential that the job asks for; empty: the first one for the registry.

    Raises CannotRun, and PullFailed if the operator's credential cannot be read just now.
    """
    found = credential_of_job(named, name, task_id, registry)
    if found is None:
        return credentials_for(registry)
    try:
        credential = read_credential(found)
    except Unreadable as error:
        log.warning("a registry credential cannot be read", name=found.name, error=str(error))
        # Not the error itself, which names files of the operator.
        raise PullFailed(
            f"the registry credential {found.name!r} cannot be read; the server's log says why",
            reason=Reason.IMAGE_DENIED,
        ) from error
    return Credentials(_header(credential, registry), name=found.name, credential=credential)


def credential_of_job(named: RegistryCredentials, name: str, task_id: str, registry: str) -> RegistrySettings | None:
    """Return the operator's credential for an image of this registry and a job of the task; None: there is none.

    `name`: as for `credentials_of_job`. Raises CannotRun.
    """
    try:
        found = named.named(name, task_id) if name else named.of_server(registry, task_id)
    except RegistryCredentialNotFound as error:
        # The settings have changed since the enqueue.
        raise CannotRun(Reason.IMAGE_DENIED, str(error)) from error
    if found and found.server != registry:
        raise CannotRun(
            Reason.IMAGE_DENIED,
            f"the registry credential {name!r} is for {found.server}, and the image is in {registry}",
        )
    return found


def _header(credential: Credential, registry: str) -> str:
    shown = {"serveraddress": docker.auth.INDEX_URL if registry == docker.auth.INDEX_NAME else registry}
    if credential.identity_token:
        shown["identitytoken"] = credential.identity_token
    else:
        shown |= {"username": credential.username, "password": credential.password}
    return docker.auth.encode_header(shown).decode()


def credentials_for(registry: str) -> Credentials:
    """Return the credentials for one registry. Faults in the entries of other registries do not matter."""
    file = docker.utils.config.find_config_file()
    if file is None:
        return Credentials()
    try:
        found = _found(Path(str(file)), registry)
    except _Unreadable as error:
        return Credentials(problem=str(error))
    if not found:
        return Credentials()
    return Credentials(docker.auth.encode_header(found).decode(), credential=_credential(found))


def _credential(entry: Mapping[str, Any]) -> Credential:
    """Return what an entry of the SDK's holds. What a helper said has names in another case."""
    said = {name.lower(): str(value or "") for name, value in entry.items()}
    username, password, token = (said.get(each, "") for each in ("username", "password", "identitytoken"))
    return Credential(identity_token=token) if token else Credential(username, password)


def _found(file: Path, registry: str) -> Any:
    if file.name == ".dockercfg":
        return _found_in_older_format(file, registry)
    config = _config(file)
    entries = _entries(file, config, registry)
    helper = _helper(file, config, registry)
    if not helper:
        return docker.auth.AuthConfig({"auths": entries}).resolve_authconfig(registry)
    if shutil.which(f"docker-credential-{helper}") is None:
        if found := docker.auth.AuthConfig({"auths": entries}).resolve_authconfig(registry):
            return found
        raise _Unreadable(
            f"docker-credential-{helper}, which {file} names, is not installed, or not in the server's PATH"
        )
    try:
        return docker.auth.AuthConfig({"auths": entries, "credsStore": helper}).resolve_authconfig(registry)
    # The SDK raises the last three for a malformed answer of a helper.
    except (docker.errors.DockerException, OSError, ValueError, TypeError, KeyError) as error:
        raise _Unreadable(f"docker-credential-{helper}, which {file} names, fails: {error}") from error


def _found_in_older_format(file: Path, registry: str) -> Any:
    """Return the credentials from a file in the older format, which need not be JSON."""
    try:
        return docker.auth.load_config(str(file)).resolve_authconfig(registry)
    except (docker.errors.DockerException, OSError, ValueError, TypeError, AttributeError) as error:
        raise _Unreadable(f"{file} is not as docker login writes it: {error}") from error


def _config(file: Path) -> Mapping[str, Any]:
    try:
        config = json.loads(file.read_bytes())
    except OSError as error:
        raise _Unreadable(f"{file} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise _Unreadable(f"{file} is not JSON: {error}") from error
    if not isinstance(config, dict):
        raise _Unreadable(f"{file} is not a JSON object")
    return config


def _entries(file: Path, config: Mapping[str, Any], registry: str) -> Any:
    # Without any of the sections, the whole file is the section of credentials, as in an older format.
    sections = {"auths", "credsStore", "credHelpers"} & config.keys()
    auths = _section(file, config, "auths") if sections else config
    name = docker.auth.resolve_index_name(registry)
    entries = {key: entry for key, entry in auths.items() if docker.auth.resolve_index_name(key) == name}
    try:
        return docker.auth.parse_auth(entries, raise_on_error=True)
    except (docker.errors.DockerException, ValueError, TypeError, AttributeError) as error:
        raise _Unreadable(f"the entry of {registry} in {file} is not as docker login writes it: {error}") from error


def _helper(file: Path, config: Mapping[str, Any], registry: str) -> str:
    of_registry = docker.auth.INDEX_URL if registry == docker.auth.INDEX_NAME else registry
    helper = _section(file, config, "credHelpers").get(of_registry) or config.get("credsStore") or ""
    if not isinstance(helper, str):
        raise _Unreadable(f"the name of a credential helper in {file} is not a text")
    return helper


def _section(file: Path, config: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    section = config.get(name) or {}
    if not isinstance(section, dict):
        raise _Unreadable(f"{name!r} in {file} is not a JSON object")
    return section
