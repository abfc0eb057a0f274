"""Reader of what an image says of itself in its registry: its digest, its architecture and the command that it runs.

Each part is checked against its digest.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from fastlane_grpc.backend import CannotRun, Image
from fastlane_grpc.model import Reason
from fastlane_grpc.registry.client import RegistryClient
from fastlane_grpc.registry.reference import DIGEST, Reference
from fastlane_grpc.text.sanitize import one_line

# The longest command of an image, which is kept in memory. The API server takes no larger pod than that by far.
MAX_COMMAND_BYTES = 256 << 10
# Of a name that an image has for its system or its architecture, so much is repeated.
_TOLD_CHARACTERS = 40
_MAX_USER_CHARACTERS = 200


class _Unusable(Exception):
    """The image is not as images are. The message says what is wrong."""


async def read_image(client: RegistryClient, reference: Reference, architectures: Sequence[str]) -> Image:
    """Return the image of Linux for these architectures, as Docker names them.

    Its digest is that of all architectures together. `architecture` is empty if the image has several of them.
    Raises CannotRun, also if the image runs another command on each architecture.
    """
    try:
        return await _read(client, reference, architectures)
    except _Unusable as error:
        raise CannotRun(Reason.IMAGE_UNUSABLE, f"{reference} cannot be used here: {error}") from error


async def _read(client: RegistryClient, reference: Reference, architectures: Sequence[str]) -> Image:
    content = await client.manifest(reference.version)
    if reference.digest:
        _check(content, reference.digest)
    digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
    manifest = _object(content)
    if "manifests" not in manifest:
        return await _one(client, manifest, digest)
    found = []
    for each in _chosen(manifest["manifests"], architectures):
        content = await client.manifest(each)
        _check(content, each)
        found.append(await _one(client, _object(content), digest))
    if len(found) == 1:
        return found[0]
    if len({(image.entrypoint, image.command, image.user) for image in found}) > 1:
        raise CannotRun(
            Reason.REFUSED_BY_ENGINE,
            f"{reference} has another command or user on each of {', '.join(each.architecture for each in found)}, and "
            "which of them its node is, is not known: set `entrypoint` in the job, and `user` if it has inputs, or "
            "kubernetes.io/arch in the node selector of the host",
        )
    return Image(digest, "", found[0].entrypoint, found[0].command, found[0].user)


def _chosen(entries: Any, architectures: Sequence[str]) -> Sequence[str]:
    """Return the digest of the manifest for each architecture that the image has."""
    found: dict[str, str] = {}
    others = set()
    for each in _list(entries):
        platform = each.get("platform") if isinstance(each, dict) else None
        system, architecture = (str((platform or {}).get(name, "")) for name in ("os", "architecture"))
        if system == "linux" and architecture in architectures:
            # The first one is the preferred variant of an architecture.
            found.setdefault(architecture, _digest(each))
        # Signatures and the like are for no platform.
        elif system not in {"", "unknown"}:
            others.add(one_line(f"{system}/{architecture}", _TOLD_CHARACTERS))
    if not found:
        has = f", only for {', '.join(sorted(others)[:8])}" if others else ""
        raise _Unusable(f"it is not for linux/{' or linux/'.join(architectures)}{has}")
    return list(found.values())


async def _one(client: RegistryClient, manifest: Mapping[str, Any], digest: str) -> Image:
    """Return the image of a manifest of one architecture."""
    config_digest = _digest(manifest.get("config"))
    content = await client.blob(config_digest)
    _check(content, config_digest)
    config = _object(content)
    if config.get("os") != "linux":
        raise _Unusable(f"it is not for Linux, but for {one_line(str(config.get('os')), _TOLD_CHARACTERS)}")
    settings = config.get("config") or {}
    if not isinstance(settings, dict):
        raise _Unusable("its configuration is not as images have it")
    entrypoint, command = (_words(settings.get(name)) for name in ("Entrypoint", "Cmd"))
    if sum(len(word) for word in (*entrypoint, *command)) > MAX_COMMAND_BYTES:
        raise _Unusable(f"its command has more than {MAX_COMMAND_BYTES} characters")
    user = settings.get("User") or ""
    if not isinstance(user, str) or len(user) > _MAX_USER_CHARACTERS:
        raise _Unusable("its user is not as images have it")
    architecture = one_line(str(config.get("architecture", "")), _TOLD_CHARACTERS)
    return Image(digest, architecture, entrypoint, command, user)


def _words(value: Any) -> tuple[str, ...]:
    words = _list(value or [])
    if not all(isinstance(word, str) and "\0" not in word for word in words):
        raise _Unusable("its command is not a list of words")
    return tuple(words)


def _digest(descriptor: Any) -> str:
    digest = descriptor.get("digest") if isinstance(descriptor, dict) else None
    if not isinstance(digest, str) or not DIGEST.fullmatch(digest):
        raise _Unusable("its manifest is not one of Docker or OCI, or has digests other than SHA-256")
    return digest


def _check(content: bytes, digest: str) -> None:
    if f"sha256:{hashlib.sha256(content).hexdigest()}" != digest:
        raise _Unusable(f"the registry sends something else than {digest}")


def _object(content: bytes) -> Mapping[str, Any]:
    try:
        value = json.loads(content)
    # Nested deeper than the parser goes, it raises RecursionError.
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise _Unusable("the registry sends what is no JSON object")
    return value


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise _Unusable("its manifest or configuration is not as images have it")
    return value
