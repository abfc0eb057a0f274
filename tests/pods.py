"""Executions and their pods, as tests of the Kubernetes backend need them."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fastlane_grpc.backend import Image
from fastlane_grpc.capture.capture import ContainerEnd, ReadSecrets, Wait
from fastlane_grpc.capture.container_files import NoFiles
from fastlane_grpc.capture.handoff import Delivery
from fastlane_grpc.model import Assignment, Execution, JobSpec, State, Times, new_id, utc_now

NO_IMAGE = Image("", "", (), ())


class Bare:
    """A way of capture that leaves the pod as it is."""

    name = "none"

    def wrap(self, body: Mapping[str, Any], image: Image) -> Mapping[str, Any]:
        return body


def assignment(image: str, *args: str, **more: Any) -> Assignment:
    """Return a claimed execution of a job."""
    now = utc_now()
    execution = Execution(new_id(), new_id(), "t", State.PREPARING, Times(now, now), now, host="k8s")
    return Assignment(execution, JobSpec(**{"image": image, "args": args, **more}))


class NoCapture:
    """Implements Capture: the output of a pod is dropped, and whether its command ran is not known. No files."""

    name = "none"
    kill_signal = "SIGKILL"
    following = True
    is_running = False
    delivered = True
    start_granted = True
    unbegun = None
    first_byte_time = None
    files = NoFiles("nothing is captured")

    def wrap(self, body: Mapping[str, Any], image: Image) -> Mapping[str, Any]:
        return body

    def use_secrets(self, read: ReadSecrets) -> None:
        """Do nothing."""

    def use_stdin(self, content: Path) -> None:
        """Do nothing."""

    def discard_secrets(self) -> None:
        """Do nothing."""

    def open(self, container_id: str) -> None:
        """Do nothing."""

    def release_start_resources(self) -> bool:
        return True

    def revoke(self) -> None:
        """Tell nothing."""

    def signal(self, number: int) -> Delivery:
        return Delivery.NOT_SENT

    def resume(self, container_id: str | None) -> None:
        """Do nothing."""

    def abandon_unwritten(self) -> None:
        """Do nothing."""

    def drain(self, end: ContainerEnd | None, wait: Wait) -> str:
        return ""

    def seal(self, exit_code: int | None, facts: Mapping[str, object]) -> None:
        """Seal nothing."""

    def trailer(self) -> None:
        """Return no trailer."""

    def detach(self) -> None:
        """Do nothing."""


class NoCaptures:
    """Implements Captures with NoCapture."""

    reason = ""
    in_use = "none"

    def determine(self) -> None:
        """Do nothing."""

    def for_new(self, directory: Path, execution_id: str, log_line: Callable[[str], None]) -> NoCapture:
        return NoCapture()

    def for_existing(self, directory: Path, execution: Execution, log_line: Callable[[str], None]) -> NoCapture:
        return NoCapture()
