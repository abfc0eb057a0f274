"""Makes the faults of one row of docs/reliability.md, and records what came of it.

    make chaos ROW=server-killed ROUNDS=300     a row, so many rounds; each run has a new seed
    python .ci/reliability.py page              only write the page anew

A run is added to docs/reliability.json whatever came of it: the number of faults that the tests made, counted by them,
and whether all tests passed. The table of the page is made of that file."""

import json
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
RECORDS = ROOT / "docs" / "reliability.json"
PAGE = ROOT / "docs" / "reliability.md"
BEGIN, END = "<!-- made of reliability.json -->\n", "<!-- end -->\n"


@dataclass(frozen=True, slots=True)
class Row:
    """One kind of fault. `variable` is set to the number of rounds; without it the tests run once, and each counts.

    `arguments` of pytest choose the tests. Rows whose name begins with "pods-" run beside a cluster."""

    promise: str
    fault: str
    unit: str
    arguments: Sequence[str]
    variable: str = ""
    more: Mapping[str, str] = field(default_factory=dict)


ROWS: Mapping[str, Row] = {
    "server-killed": Row(
        "each job runs once and ends as it would have; its followers have each byte once, in order",
        "SIGKILL of the server at random moments, under jobs that flood, are quiet, end meanwhile, and attack it",
        "kills",
        ("tests/test_exact.py", "-k", "a_server_that_is_killed"),
        "CHAOS_ROUNDS",
    ),
    "server-killed-states": Row(
        "no acknowledged job is lost, no start is sent twice, nothing is left on the engine",
        "the same with jobs in every state, by recorder and by attach",
        "kills",
        ("tests/test_crash.py", "-k", "at_random"),
        "CHAOS_ROUNDS",
    ),
    "server-killed-schedules": Row(
        "each tick runs once or is counted as skipped; each retry follows its attempt",
        "the same under schedules and retries, in a day that passes in minutes",
        "kills",
        ("tests/test_runs_killed.py",),
        "CHAOS_ROUNDS",
    ),
    "server-killed-http": Row(
        "readers by HTTP, `curl` among them, have each byte",
        "the same under event streams, lines of JSON, and the script of the documentation",
        "kills",
        ("tests/test_http_logs_exact.py", "-k", "killed"),
        "CHAOS_ROUNDS",
    ),
    "server-upgraded": Row(
        "no client sees an error; followers have each byte; jobs that are enqueued meanwhile run once",
        "SIGTERM, and the next server, one after another",
        "upgrades",
        ("tests/test_handover.py", "-k", "of_upgrades"),
        "CHAOS_ROUNDS",
    ),
    "engine-killed": Row(
        "no byte is lost and nothing runs twice, also where the engine dies around a start",
        "SIGKILL of the engine, and of engine and server together",
        "kills",
        ("tests/test_exact.py", "-k", "an_engine_that_is_killed"),
        "CHAOS_ROUNDS",
    ),
    "engine-frozen": Row(
        "stops, timeouts and kills are carried out; other hosts go on",
        "SIGSTOP of an engine, also behind TLS and ssh",
        "tests",
        ("tests/test_execution_engine_frozen.py", "tests/test_engine_remote.py", "tests/test_hosts.py"),
    ),
    "pods-server-killed": Row(
        "each pod runs once, counted by the pods themselves; followers have each byte",
        "SIGKILL of the server at random moments, under pods that flood, are slow, and end meanwhile",
        "kills",
        ("tests/test_kubernetes_server.py", "-k", "killed_at_random"),
        "CHAOS_ROUNDS",
    ),
    "pods-faults": Row(
        "no byte of a job in a pod is lost, and nothing runs twice",
        "SIGKILL of kubelet and containerd, of relays and of the API server, and a node cut off, in floods on pods",
        "faults",
        ("tests/test_kubernetes_faults.py", "-k", "no_byte_is_missing"),
        "CHAOS_ROUNDS",
    ),
    "pods-room": Row(
        "no byte is missing, and no gap is told, though nodes keep only what is not on the server's disk",
        "SIGKILL of the server, of relays and of recorders, in floods whose copied blocks are punched out",
        "kills",
        ("tests/test_relay_punch.py", "-k", "whatever_is_killed"),
        "CHAOS_ROUNDS",
    ),
    "connections-cut": Row(
        "a log that is read over cut connections is whole",
        "connections cut after any number of bytes, up to eight planned for each log",
        "cuts",
        ("tests/test_readers.py", "-k", "cut_at_random_points_is_read_whole"),
        "CHAOS_CUT_LOGS",
    ),
    "disk-full": Row(
        "jobs wait or are refused; what was stored stays; all goes on when there is room",
        "disks without room, and without inodes, at every step",
        "tests",
        (
            *("tests/test_full_disk.py", "tests/test_runs_full_disk.py", "tests/test_execution_disk.py"),
            *("tests/test_record_disk.py", "tests/test_inodes.py"),
        ),
    ),
    "disk-read-only": Row(
        "calls, health and log say why nothing is stored; containers go on; after a repair nothing is lost or doubled",
        "an error of the file system, for which the kernel makes it read-only, and its repair",
        "tests",
        ("tests/test_disk_read_only.py",),
    ),
    "damage": Row(
        "damage is found and told; a reader gets a gap and no wrong byte",
        "changed, cut, missing and foreign records, databases and backups, chosen at random",
        "tests",
        ("tests/test_backup_damage.py", "tests/test_record_properties.py", "tests/test_store_loss.py"),
    ),
    "soak": Row(
        "from a third of the time on memory grows by less than 24 MiB, and threads and descriptors by a few",
        "jobs, schedules, lists, watches and connections without a pause, pruned after seconds; `ROUNDS` are seconds",
        "jobs",
        ("tests/test_soak.py",),
        "CHAOS_SECONDS",
    ),
    "two-servers": Row(
        "the second server on a directory is refused; two on one engine leave each other alone",
        "two servers at a time",
        "tests",
        ("tests/test_limits.py", "-k", "two_servers or second_server"),
    ),
}


def run(name: str, rounds: int) -> int:
    """Run a row, record what came of it, and write the page anew. Return pytest's exit code."""
    row, seed = ROWS[name], os.environ.get("CHAOS_SEED") or str(random.randrange(1 << 31))
    with tempfile.NamedTemporaryFile() as tally:
        environment = os.environ | {"CHAOS_SEED": seed, "CHAOS_TALLY": tally.name, **row.more}
        if row.variable:
            environment[row.variable] = str(rounds)
        command = [sys.executable, "-m", "pytest", "-q", "-o", "timeout=7200"]
        command += ["--hypothesis-profile=others", f"--hypothesis-seed={seed}"]
        start = time.monotonic()
        command += row.arguments
        ran = subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, check=False)
        print(ran.stdout[-4000:] if ran.returncode == 0 else ran.stdout)
        counted = sum(map(int, Path(tally.name).read_text().split()))
    passed = re.search(r"([0-9]+) passed", ran.stdout)
    revision = subprocess.check_output(["git", "rev-parse", "--short=10", "HEAD"], cwd=ROOT, text=True)
    record = {
        "row": name,
        "date": datetime.now(UTC).date().isoformat(),
        "commit": revision.strip(),
        "seed": seed,
        "count": counted if row.variable else int(passed[1]) if passed else 0,
        "seconds": round(time.monotonic() - start),
        "passed": ran.returncode == 0,
    }
    write_records([*records(), record])
    PAGE.write_text(page())
    return ran.returncode


def records() -> list[dict[str, Any]]:
    """Return all runs, oldest first."""
    found: list[dict[str, Any]] = json.loads(RECORDS.read_text())
    return found


def write_records(runs: Sequence[Mapping[str, object]]) -> None:
    """Write all runs, one in a line."""
    RECORDS.write_text("[\n" + ",\n".join(f"  {json.dumps(each)}" for each in runs) + "\n]\n")


def page() -> str:
    """Return the page with the table that the recorded runs make."""
    before, _, rest = PAGE.read_text().partition(BEGIN)
    return before + BEGIN + "\n" + "\n".join(_table(records())) + "\n\n" + END + rest.partition(END)[2]


def _table(runs: Sequence[Mapping[str, Any]]) -> Sequence[str]:
    lines = ["| promise | what is done | `ROW` | count | runs | last run |", "|---|---|---|---|---|---|"]
    for name, row in ROWS.items():
        own = [each for each in runs if each["row"] == name]
        good = [each for each in own if each["passed"]]
        failed = f", {len(own) - len(good)} failed" if len(good) < len(own) else ""
        last = f"{good[-1]['date']}, seed {good[-1]['seed']}" if good else "none"
        count = sum(each["count"] for each in good)
        total = f"{_grouped(count)} {row.unit}"
        lines.append(f"| {row.promise} | {row.fault} | `{name}` | {total} | {len(own)}{failed} | {last} |")
    return lines


def _grouped(number: int) -> str:
    return f"{number:,}".replace(",", " ")


if __name__ == "__main__":
    if sys.argv[1:] == ["page"]:
        PAGE.write_text(page())
        sys.exit(0)
    if len(sys.argv) != 4 or sys.argv[1] != "run" or sys.argv[2] not in ROWS:
        sys.exit(f"usage: make chaos ROW=NAME ROUNDS=NUMBER; the names: {', '.join(ROWS)}")
    sys.exit(run(sys.argv[2], int(sys.argv[3])))
