"""The Docker backend's knowledge about a container: its id, the way of its capture, and the engine's epoch."""

import json
from dataclasses import dataclass

from fastlane_grpc.backend import Handle


@dataclass(frozen=True, slots=True)
class DockerHandle:
    """The contents of a handle. `epoch` is the engine's at the start; empty before the start, or if not known.

    An execution must be captured in the same way after a recovery: `capture` names the way.
    """

    container_id: str = ""
    capture: str = ""
    epoch: str = ""

    def packed(self) -> Handle:
        contents = {"container": self.container_id, "capture": self.capture, "epoch": self.epoch}
        return Handle(self.container_id, json.dumps({key: value for key, value in contents.items() if value}))


def unpacked(text: str) -> DockerHandle:
    """Return the contents of a handle's text, which is empty for an execution without a container."""
    contents = json.loads(text) if text else {}
    return DockerHandle(contents.get("container", ""), contents.get("capture", ""), contents.get("epoch", ""))
