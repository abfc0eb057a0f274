"""Diagnostics of an engine for `fastlane doctor`: facts and containers, without a server. Changes nothing."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from fastlane_grpc.clock import engine_time
from fastlane_grpc.docker.engine import EXECUTION_LABEL, INSTANCE_LABEL, Engine
from fastlane_grpc.docker.engine_errors import EngineDown, EngineRefuses
from fastlane_grpc.runner import HostDown

# The longest wait for an answer. An idle engine answers in milliseconds.
_ANSWER_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Found:
    """A container of a fastlane instance."""

    name: str
    instance: str
    execution_id: str
    running: bool


@dataclass(frozen=True, slots=True)
class Checkup:
    """The state of an engine. `architecture` is Docker's name; `cgroup_version` is "1", "2", or empty if unknown."""

    version: str
    architecture: str
    storage_driver: str
    cgroup_version: str
    limits_memory: bool
    limits_pids: bool
    warnings: Sequence[str]
    local: bool
    # How far the engine's clock is ahead of this machine's, up to the time that the answer took.
    clock_ahead: timedelta
    containers: Sequence[Found]


def check_up(address: str, certificates: Path | None) -> Checkup:
    """Return the state of the engine at `address`. Raises HostDown if it does not answer or refuses."""
    engine = Engine(address, certificates=certificates, answer_seconds=_ANSWER_SECONDS)
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
    """Return the difference of the clocks; zero if the engine's time lies between the request and the answer."""
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
