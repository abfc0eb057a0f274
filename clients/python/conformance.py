"""The conformance driver of the Python client: see clients/conformance.md."""

import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

# Of its own accord gRPC writes about connections to stderr.
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
    """What a driver tells beside the bytes and the status."""

    job: Mapping[str, Any] | None = None
    exit_status: int | None = None
    cursor: str = ""
    gaps: list[Mapping[str, Any]] = field(default_factory=list)
    states: list[int] = field(default_factory=list)
    executions: list[str] = field(default_factory=list)
    disconnects: int = 0
    error: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Call:
    """What one line asks for, and where the output goes."""

    options: Mapping[str, str]
    args: Sequence[str]
    stdout: BinaryIO
    stderr: BinaryIO
    report: Report = field(default_factory=Report)


def main() -> None:
    for line in sys.stdin:
        operation, *words = json.loads(line)
        options = dict(word.split("=", 1) for word in words)
        args = [word.removeprefix("arg=") for word in words if word.startswith("arg=")]
        with Path(options["stdout"]).open("wb") as stdout, Path(options["stderr"]).open("wb") as stderr:
            status = run(operation, Call(options, args, stdout, stderr))
        sys.stdout.write(f"{status}\n")
        sys.stdout.flush()


def run(operation: str, call: Call) -> int:
    options, report = call.options, call.report
    try:
        timeout = float(options.get("timeout_seconds", 30))
        how = {name: options[name] for name in CONNECTION & options.keys()}
        with Client(options["address"], timeout=timeout, **how) as client:
            return OPERATIONS[operation](client, call)
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


def enqueue(client: Client, call: Call) -> int:
    task, image, request_id = call.options["task"], call.options["image"], call.options.get("request_id")
    return tell(client.enqueue(task, image, args=call.args, request_id=request_id), call.report)


def get(client: Client, call: Call) -> int:
    return tell(client.job(call.options["job"]), call.report)


def stop(client: Client, call: Call) -> int:
    return tell(client.stop(call.options["job"], call.options.get("note", "")), call.report)


def tell(job: pb.Job, report: Report) -> int:
    report.job = {"id": job.id, "execution_id": job.execution.id, "state": job.state}
    return 0


def tail(client: Client, call: Call) -> int:
    options, report = call.options, call.report
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
            written += take(event, call)
        call.stdout.flush()
        call.stderr.flush()
        report.cursor = following.cursor
        if enough and written >= enough:
            return 0
        # Of a job, the end of an execution is not that of the tail.
        if events and isinstance(events[-1], JobEnd if name == "job" else End):
            report.exit_status = events[-1].exit_status
    assert report.exit_status is not None
    return report.exit_status


def take(event: Event, call: Call) -> int:
    """Write the event, or note it; return how many bytes were written."""
    report = call.report
    match event:
        case Output():
            data = event.data or event.text.encode()
            (call.stderr if event.source == STDERR else call.stdout).write(data)
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


OPERATIONS: Mapping[str, Callable[[Client, Call], int]] = {
    "enqueue": enqueue,
    "get": get,
    "stop": stop,
    "tail": tail,
}

if __name__ == "__main__":
    main()
