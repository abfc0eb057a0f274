"""The conformance driver of the Python client: see clients/conformance.md."""

import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# Of its own accord gRPC writes about connections to stderr, which is the job's.
os.environ["GRPC_VERBOSITY"] = "NONE"

from fastlane_grpc.client import (
    STDERR,
    STDOUT,
    Client,
    Disconnected,
    End,
    Error,
    Event,
    ExecutionStart,
    Gap,
    InvalidRequest,
    JobEnd,
    Output,
    StateChange,
)
from fastlane_grpc.v1 import fastlane_pb2 as pb

FAILED = 70
CONNECTION = {"tls_ca", "tls_cert", "tls_key", "token", "token_file"}


@dataclass
class Report:
    """What a driver tells beside the bytes and the exit status."""

    job: Mapping[str, Any] | None = None
    exit_status: int | None = None
    cursor: str = ""
    gaps: list[Mapping[str, Any]] = field(default_factory=list)
    states: list[int] = field(default_factory=list)
    executions: list[str] = field(default_factory=list)
    disconnects: int = 0
    error: Mapping[str, Any] | None = None


def main(operation: str, *words: str) -> int:
    options = dict(word.split("=", 1) for word in words)
    args = [word.removeprefix("arg=") for word in words if word.startswith("arg=")]
    report = Report()
    try:
        timeout = float(options.get("timeout_seconds", 30))
        how = {name: options[name] for name in CONNECTION & options.keys()}
        with Client(options["address"], timeout=timeout, **how) as client:
            return OPERATIONS[operation](client, options, args, report)
    except Error as error:
        violations = error.violations if isinstance(error, InvalidRequest) else ()
        report.error = {
            "code": error.code.value[0],
            "reason": error.reason,
            "message": error.message,
            "violations": violations,
            "metadata": dict(error.metadata),
        }
        return FAILED
    finally:
        Path(options["report"]).write_text(json.dumps(vars(report)))


def enqueue(client: Client, options: Mapping[str, str], args: Sequence[str], report: Report) -> int:
    request_id = options.get("request_id")
    return tell(client.enqueue(options["task"], options["image"], args=args, request_id=request_id), report)


def get(client: Client, options: Mapping[str, str], args: Sequence[str], report: Report) -> int:
    return tell(client.job(options["job"]), report)


def stop(client: Client, options: Mapping[str, str], args: Sequence[str], report: Report) -> int:
    return tell(client.stop(options["job"], options.get("note", "")), report)


def tell(job: pb.Job, report: Report) -> int:
    report.job = {"id": job.id, "execution_id": job.execution.id, "state": job.state}
    return 0


def tail(client: Client, options: Mapping[str, str], args: Sequence[str], report: Report) -> int:
    heartbeat = float(options.get("heartbeat_seconds", 10))
    enough = int(options.get("stop_after_bytes", 0))
    follow, name = (client.tail_job, "job") if "job" in options else (client.tail, "execution")
    following = follow(
        options[name],
        options.get("cursor", ""),
        [STDOUT, STDERR],
        text=options.get("text") == "true",
        heartbeat=heartbeat,
    )
    written = 0
    for events in following.batches():
        for event in events:
            written += take(event, report)
        sys.stdout.buffer.flush()
        sys.stderr.buffer.flush()
        report.cursor = following.cursor
        if enough and written >= enough:
            return 0
        # Of a job, the end of an execution is not that of the tail.
        if events and isinstance(events[-1], JobEnd if name == "job" else End):
            report.exit_status = events[-1].exit_status
    assert report.exit_status is not None
    return report.exit_status


def take(event: Event, report: Report) -> int:
    """Write the event, or note it; return how many bytes were written."""
    match event:
        case Output():
            data = event.data or event.text.encode()
            (sys.stderr if event.source == STDERR else sys.stdout).buffer.write(data)
            return len(data)
        case Gap():
            gap = {"source": event.source, "offset": event.offset, "missing_bytes": event.missing_bytes}
            report.gaps.append({**gap, "cause": event.cause})
        case StateChange():
            if report.states[-1:] != [event.state]:
                report.states.append(event.state)
        case ExecutionStart():
            report.executions.append(event.execution.id)
        case Disconnected():
            report.disconnects += 1
    return 0


OPERATIONS: Mapping[str, Callable[[Client, Mapping[str, str], Sequence[str], Report], int]] = {
    "enqueue": enqueue,
    "get": get,
    "stop": stop,
    "tail": tail,
}

if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
