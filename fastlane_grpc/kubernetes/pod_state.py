"""The state of a pod, as the API server tells it. Pure."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from fastlane_grpc.backend import (
    Container,
    Diagnosis,
    Handle,
    Interruption,
    InterruptionCause,
    RefusalKind,
    StartWait,
)
from fastlane_grpc.capture.relayed import RELAY_CONTAINER, SHARED
from fastlane_grpc.kubernetes.pod_body import CAPTURE, EXECUTION_LABEL, JOB_CONTAINER
from fastlane_grpc.model import Reason
from fastlane_grpc.text.sanitize import printable

# Reasons for which a kubelet does not start a container, and will not.
_FINAL = frozenset(
    {
        "InvalidImageName",
        "ErrImageNeverPull",
        "CreateContainerConfigError",
        "CreateContainerError",
        "RunContainerError",
        "PreCreateHookError",
    }
)
# Reasons for which it tries again by itself: a registry may come back.
_PASSING = frozenset({"ErrImagePull", "ImagePullBackOff", "RegistryUnavailable", "ImageInspectError"})
# Words of a registry or a runtime about an image that nobody gets, and their meaning.
_NO_USE = (
    (re.compile("unauthorized|denied|forbidden|authorization failed", re.IGNORECASE), Reason.IMAGE_DENIED),
    (re.compile("not found|manifest unknown|invalid reference", re.IGNORECASE), Reason.IMAGE_NOT_FOUND),
    (re.compile("no match for platform", re.IGNORECASE), Reason.IMAGE_UNUSABLE),
)
# Why a runtime does not execute a program. It then reports 128 for its exit status.
_START_ERRORS = frozenset({"StartError", "ContainerCannotRun"})
_NOT_FOUND = re.compile("executable file not found|no such file or directory|not a directory", re.IGNORECASE)
_NOT_EXECUTABLE = re.compile("permission denied|is a directory|exec format error", re.IGNORECASE)

_NOT_REACHED = "its relay has not reached the server, or was refused: check relay_address and relay_listen"

_ENDED_PHASES = frozenset({"Succeeded", "Failed"})
# The node has no trace of the container any more. The exit status that it then reports is made up.
_NO_TRACE = "ContainerStatusUnknown"
# By whom a pod is deleted whose node does not answer, or is removed.
_FOR_ITS_NODE = frozenset({"DeletionByTaintManager", "DeletionByPodGC"})


@dataclass(frozen=True, slots=True)
class PodHandle:
    """The contents of a handle: the name of the pod, and the uid that tells it from an earlier one of that name.

    An execution is captured to its end as it began, whatever is configured by then: `capture` names the way.
    """

    name: str
    uid: str
    capture: str = ""

    def packed(self) -> Handle:
        return Handle(self.uid, json.dumps({"pod": self.name, "uid": self.uid, "capture": self.capture}))

    @classmethod
    def unpacked(cls, text: str) -> "PodHandle":
        contents = json.loads(text) if text else {}
        return cls(contents.get("pod", ""), contents.get("uid", ""), contents.get("capture", ""))


def handle_of(pod: Mapping[str, Any]) -> PodHandle:
    metadata = pod["metadata"]
    return PodHandle(metadata["name"], metadata["uid"], str((metadata.get("annotations") or {}).get(CAPTURE, "")))


def execution_of(pod: Mapping[str, Any]) -> str:
    """Return the id of the execution that the pod is of; empty if it says none."""
    return str((pod["metadata"].get("labels") or {}).get(EXECUTION_LABEL, ""))


def container_of(pod: Mapping[str, Any]) -> Container:
    """Return the state of the job's container.

    A pod whose node is lost stays as it was last seen. A pod that was evicted has ended, maybe without an exit status.
    """
    state = _state(pod, "containerStatuses", JOB_CONTAINER)
    running, ended = state.get("running"), state.get("terminated")
    start_failure = _start_failure(state)
    times: Mapping[str, Any] = running or ended or {}
    never_began = start_failure is not None
    # Some versions of Kubernetes tell the phase when the node begins to end the pod, and its containers still run.
    over = ended is not None or (running is None and pod.get("status", {}).get("phase") in _ENDED_PHASES)
    waits = not over and not pod.get("spec", {}).get("schedulingGates")
    known = ended is not None and ended.get("reason") != _NO_TRACE
    sidecar = _state(pod, "initContainerStatuses", RELAY_CONTAINER)
    return Container(
        handle=handle_of(pod).packed(),
        alive=running is not None,
        ended=over and not never_began,
        exit_code=int(ended["exitCode"]) if ended and known else None,
        start_failure=start_failure,
        out_of_memory=bool(ended and ended.get("reason") == "OOMKilled"),
        stop_signal="",
        start_time=None if never_began else _time(times.get("startedAt")),
        end_time=_time(ended.get("finishedAt")) if ended else None,
        program=_program(_job(pod)),
        start_wait=_start_wait(pod, start_failure) if waits else None,
        interruption=_interruption(pod),
        delivering="running" in sidecar,
    )


def _interruption(pod: Mapping[str, Any]) -> Interruption | None:
    """Return why the cluster ends the pod, or has ended it; None if it does not."""
    status = pod.get("status", {})
    why = status.get("reason")
    words = printable(str(status.get("message") or ""))
    if why == "DeadlineExceeded":
        return Interruption(InterruptionCause.DEADLINE, words)
    conditions = status.get("conditions") or ()
    disruption = next(
        (each for each in conditions if each.get("type") == "DisruptionTarget" and each.get("status") == "True"), None
    )
    if disruption is not None:
        for_node = disruption.get("reason") in _FOR_ITS_NODE
        said = words or printable(str(disruption.get("message") or ""))
        text = ": ".join(filter(None, (printable(str(disruption.get("reason") or why or "")), said)))
        return Interruption(InterruptionCause.NODE_LOST if for_node else InterruptionCause.EVICTED, text)
    if why:
        return Interruption(InterruptionCause.EVICTED, ": ".join(filter(None, (printable(str(why)), words))))
    if pod["metadata"].get("deletionTimestamp"):
        return Interruption(InterruptionCause.EVICTED, "somebody deleted the pod")
    return None


def _start_wait(pod: Mapping[str, Any], start_failure: Diagnosis | None) -> StartWait:
    """Return what a pod without its gate waits for: a node, by the words of the scheduler, or what its node does."""
    node = str(pod.get("spec", {}).get("nodeName") or "")
    if node:
        text = start_failure.text if start_failure else _helper_trouble(pod)
        # A job that runs waits for nothing but its relay.
        runs = "running" in _state(pod, "containerStatuses", JOB_CONTAINER)
        return StartWait(node, text, _NOT_REACHED if runs or _relay_fails(pod) else "")
    conditions = pod.get("status", {}).get("conditions") or ()
    # The words about the gate stay there for a moment after it was removed: their reason is another one.
    refused = (each.get("message") for each in conditions if each.get("reason") == "Unschedulable")
    return StartWait("", printable(str(next(refused, "") or "")))


def _relay_fails(pod: Mapping[str, Any]) -> bool:
    """Whether the relay ends again and again, and so does not reach the server either."""
    waiting = _state(pod, "initContainerStatuses", RELAY_CONTAINER).get("waiting") or {}
    return waiting.get("reason") == "CrashLoopBackOff"


def _helper_trouble(pod: Mapping[str, Any]) -> str:
    """Return why the recorder and the relay are not on the node; empty if nothing is said."""
    for status in pod.get("status", {}).get("initContainerStatuses") or ():
        waiting = (status.get("state") or {}).get("waiting") or {}
        if waiting.get("reason") in _FINAL | _PASSING:
            return f"the kit image: {_diagnosis(waiting, RefusalKind.PASSING).text}"
    return ""


def _start_failure(state: Mapping[str, Any]) -> Diagnosis | None:
    """Return why the container was not started, if the kubelet or the runtime said so."""
    waiting, ended = state.get("waiting") or {}, state.get("terminated") or {}
    if ended.get("reason") in _START_ERRORS:
        # A node whose kubelet was killed may start the job before the relay has copied the recorder.
        without_recorder = f'"{SHARED}/bin/' in str(ended.get("message", ""))
        return _diagnosis(ended, RefusalKind.CUT_OFF if without_recorder else RefusalKind.FINAL)
    if waiting.get("reason") in _FINAL:
        return _diagnosis(waiting, RefusalKind.FINAL)
    if waiting.get("reason") in _PASSING:
        useless = _image_reason(waiting) is not Reason.REGISTRY_UNAVAILABLE
        return _diagnosis(waiting, RefusalKind.FINAL if useless else RefusalKind.PASSING)
    return None


def _image_reason(said: Mapping[str, Any]) -> Reason | None:
    """Return why there is no image; None if the words are about something else."""
    if said["reason"] == "ErrImageNeverPull":
        return Reason.IMAGE_NOT_PRESENT
    if said["reason"] == "InvalidImageName":
        return Reason.IMAGE_NOT_FOUND
    if said["reason"] not in _PASSING:
        return None
    message = str(said.get("message", ""))
    return next((reason for words, reason in _NO_USE if words.search(message)), Reason.REGISTRY_UNAVAILABLE)


def _diagnosis(said: Mapping[str, Any], kind: RefusalKind) -> Diagnosis:
    message = printable(str(said.get("message", "")))
    text = f"{said['reason']}: {message}" if message else str(said["reason"])
    return Diagnosis(message, text, text, kind, _command_reason(said, message), _image_reason(said))


def _command_reason(said: Mapping[str, Any], message: str) -> Reason | None:
    if said["reason"] not in _START_ERRORS | {"RunContainerError"}:
        return None
    if _NOT_FOUND.search(message):
        return Reason.COMMAND_NOT_FOUND
    return Reason.COMMAND_NOT_EXECUTABLE if _NOT_EXECUTABLE.search(message) else None


def _job(pod: Mapping[str, Any]) -> Mapping[str, Any]:
    containers = pod.get("spec", {}).get("containers") or ()
    return next((each for each in containers if each.get("name") == JOB_CONTAINER), {})


def _program(job: Mapping[str, Any]) -> str | None:
    """Return the first word of the command, behind the options of the recorder, if it runs under one."""
    words = list(job.get("command") or job.get("args") or ())
    under_recorder = "".join(words[:1]).startswith(f"{SHARED}/") and "--" in words
    return next(iter(words[words.index("--") + 1 :] if under_recorder else words), None)


def _state(pod: Mapping[str, Any], kind: str, name: str) -> Mapping[str, Any]:
    statuses = pod.get("status", {}).get(kind) or ()
    status: Mapping[str, Any] = next((each for each in statuses if each.get("name") == name), {})
    return status.get("state") or {}


def _time(text: str | None) -> datetime | None:
    return datetime.fromisoformat(text) if text else None
