"""Names of images, by the grammar that engines and nodes use. Pure."""

import re
from dataclasses import dataclass, replace
from ipaddress import ip_address

from fastlane_grpc.backend import CannotRun
from fastlane_grpc.model import Reason

# The registry of names without one, as its names have it and as its server is called.
HUB = "docker.io"
_HUB_SERVER = f"registry-1.{HUB}"
_REGISTRY = re.compile(
    r"(?:[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?(?:\.[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?)*|\[[0-9a-fA-F:]+\])"
    r"(?::[0-9]{1,5})?"
)
_COMPONENT = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_REPOSITORY = re.compile(f"{_COMPONENT}(?:/{_COMPONENT})*")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_MOST_CHARACTERS = 255


@dataclass(frozen=True, slots=True)
class Reference:
    """The whole name of an image. `registry` is "docker.io" for a name without one; `digest` may be empty."""

    registry: str
    repository: str
    tag: str
    digest: str

    @classmethod
    def parse(cls, name: str) -> "Reference":
        """Raises CannotRun if this is not the name of an image."""
        rest, at, digest = name.partition("@")
        first, slash, others = rest.partition("/")
        # As engines do it: a first part without a dot or a port is part of the path.
        has_registry = bool(slash) and (bool({".", ":"} & {*first}) or first == "localhost" or first != first.lower())
        registry, path = (first, others) if has_registry else (HUB, rest)
        registry = HUB if registry == "index.docker.io" else registry
        path, colon, tag = path.partition(":")
        if registry == HUB and "/" not in path:
            path = f"library/{path}"
        if not (
            _REGISTRY.fullmatch(registry)
            and _REPOSITORY.fullmatch(path)
            and len(path) <= _MOST_CHARACTERS
            and (not colon or _TAG.fullmatch(tag))
            and (not at or DIGEST.fullmatch(digest))
        ):
            raise CannotRun(Reason.IMAGE_NOT_FOUND, f"{name!r} is not the name of an image")
        return cls(registry, path, tag or "latest", digest)

    def at(self, digest: str) -> "Reference":
        """Return the name of the image with this digest, whatever its tag names later."""
        return replace(self, digest=digest)

    @property
    def version(self) -> str:
        """The digest, or the tag if there is none."""
        return self.digest or self.tag

    @property
    def server(self) -> str:
        """The address of the registry's server."""
        return _HUB_SERVER if self.registry == HUB else self.registry

    @property
    def is_on_loopback(self) -> bool:
        """Whether the registry is on this machine, and therefore reached without TLS."""
        return is_loopback(self.registry.rpartition("]")[0].lstrip("[") or self.registry.partition(":")[0])

    def __str__(self) -> str:
        return f"{self.registry}/{self.repository}" + (f"@{self.digest}" if self.digest else f":{self.tag}")


def is_loopback(host: str) -> bool:
    """Whether this is the name or an address of the machine itself."""
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False
