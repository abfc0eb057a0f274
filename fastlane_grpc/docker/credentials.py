"""The credentials for a registry from `docker login` on the server's machine.

The files are read anew for each pull, so that a login needs no restart.
"""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import docker.auth
import docker.errors
import docker.utils.config


@dataclass(frozen=True, slots=True)
class Credentials:
    """The authentication header for the engine; empty: none. `problem` says why credentials could not be read."""

    header: str = ""
    problem: str = ""


class _Unreadable(Exception):
    """A file of credentials cannot be read. The message names the file and the fault."""


def credentials_for(registry: str) -> Credentials:
    """Return the credentials for one registry. Faults in the entries of other registries do not matter."""
    file = docker.utils.config.find_config_file()
    if file is None:
        return Credentials()
    try:
        found = _found(Path(str(file)), registry)
        return Credentials(docker.auth.encode_header(found).decode() if found else "")
    except _Unreadable as error:
        return Credentials(problem=str(error))


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
