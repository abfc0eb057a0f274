"""A look at an engine from outside, for somebody who wonders why jobs do not run: it changes nothing and needs no
server."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from fastlane_grpc.clock import engine_time
from fastlane_grpc.docker.engine import EXECUTION_LABEL, INSTANCE_LABEL, Engine
from fastlane_grpc.docker.http import EngineDown, EngineRefuses
from fastlane_grpc.runner import HostDown

# An engine that has nothing to do answers in milliseconds; one that hangs is not worth more.
_ANSWER_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Found:
    """A container that some fastlane made: whose, for what, and whether it runs."""

    name: str
    instance: str
    execution_id: str
    running: bool


@dataclass(frozen=True, slots=True)
class Checkup:
    """An engine as it is. `architecture` is as Docker calls it; `cgroup_version` is "1" or "2", empty if it does not
    tell."""

    version: str
    architecture: str
    storage_driver: str
    cgroup_version: str
    limits_memory: bool
    limits_pids: bool
    warnings: Sequence[str]
    local: bool
    # How far its clock is ahead of ours, as far as the time that it took to answer lets us know.
    clock_ahead: timedelta
    containers: Sequence[Found]


def check_up(address: str) -> Checkup:
    """The engine at `address`. HostDown: it does not answer, or will not tell."""
    engine = Engine(address, answer_seconds=_ANSWER_SECONDS)
    try:
        before = datetime.now(UTC)
        facts = engine.facts()
        after = datetime.now(UTC)
        containers = [_found(each) for each in engine.of_all_instances()]
    except (EngineDown, EngineRefuses) as error:
        raise HostDown(str(error)) from error
    return Checkup(
        version=str(facts.get("ServerVersion", "")),
        architecture=str(facts["Arch"]),
        storage_driver=str(facts.get("Driver", "")),
        cgroup_version=str(facts.get("CgroupVersion", "")),
        limits_memory=bool(facts.get("MemoryLimit")),
        limits_pids=bool(facts.get("PidsLimit")),
        warnings=[str(warning) for warning in facts.get("Warnings") or ()],
        local=engine.local,
        clock_ahead=_ahead(engine_time(str(facts.get("SystemTime", ""))), before, after),
        containers=containers,
    )


def _ahead(theirs: datetime | None, before: datetime, after: datetime) -> timedelta:
    """None at all while it is between the question and the answer."""
    if theirs is None or before <= theirs <= after:
        return timedelta(0)
    return theirs - (after if theirs > after else before)


def _found(listed: Mapping[str, Any]) -> Found:
    labels = listed["Labels"]
    name = str(listed["Names"][0]).removeprefix("/")
    return Found(
        name,
        labels[INSTANCE_LABEL],
        labels.get(EXECUTION_LABEL, ""),
        listed["State"] in {"running", "paused", "restarting"},
    )
