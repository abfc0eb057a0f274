"""Executions and their pods, as tests of the Kubernetes backend need them."""

from collections.abc import Mapping
from typing import Any

from fastlane_grpc.backend import Image
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
