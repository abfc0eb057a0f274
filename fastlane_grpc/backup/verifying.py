"""Verifies a data directory or a backup: the database, and every record against it. Nothing is changed."""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from hashlib import file_digest
from pathlib import Path

from fastlane_grpc.backup.manifest import DATABASE, BackupError
from fastlane_grpc.backup.taking import input_names, record_names
from fastlane_grpc.errors import StoreFailed
from fastlane_grpc.logs import Logs
from fastlane_grpc.model import Execution, LogTotals, Outputs, Source
from fastlane_grpc.record import Gap, Position, RecordReader
from fastlane_grpc.store.offline import executions_with_logs, faults_of, inputs_of_jobs, kept

# Files without an execution are looked for in the database together.
_AT_ONCE = 500


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that is wrong: which file or execution, and what."""

    subject: str
    detail: str


@dataclass(slots=True)
class Verification:
    """The faults, and what was read: records, and their bytes of output."""

    faults: list[Fault] = field(default_factory=list)
    records: int = 0
    output_bytes: int = 0


def verify(directory: Path) -> Verification:
    """Verify a directory, which a server may serve meanwhile. BackupError: there is nothing to verify."""
    database = directory / DATABASE
    if not database.is_file():
        raise BackupError(f"there is no {database}: name a data directory or a backup that is a directory")
    found = Verification()
    try:
        found.faults += [Fault(str(database), fault) for fault in faults_of(database)]
        # What the database knows later is no fault: directories are read first.
        names = list(record_names(directory))
        _verify_records(found, directory, database)
        found.faults += _orphans(database, names)
        found.faults += _faults_of_inputs(directory, database)
    except StoreFailed as error:
        found.faults.append(Fault(str(database), str(error)))
    return found


def _faults_of_inputs(directory: Path, database: Path) -> Iterator[Fault]:
    """Compare each content of an input with its checksum, and look for those that jobs name."""
    for name in input_names(directory):
        with suppress(FileNotFoundError):  # no job uses it any more
            try:
                with (directory / name).open("rb") as content:
                    correct = file_digest(content, "sha256").hexdigest() == Path(name).name
            except OSError as error:
                yield Fault(str(directory / name), f"cannot be read: {error.strerror}")
                continue
            if not correct:
                yield Fault(str(directory / name), "has another content than the one of its checksum")
    for checksum, job_id in inputs_of_jobs(database):
        if not (directory / "inputs" / checksum).exists():
            yield Fault(f"job {job_id}", f"the content {checksum} of an input is missing")


def _verify_records(found: Verification, directory: Path, database: Path) -> None:
    logs = Logs(directory / "logs")
    suspects = []
    for execution in executions_with_logs(database):
        if execution.state.final and (faults := _faults_of_logs(found, logs, execution)):
            suspects.append((execution.id, faults))
    # A log that was pruned while it was read is no fault.
    still = kept(database, [execution_id for execution_id, _ in suspects])
    found.faults += [
        Fault(f"execution {execution_id}", fault)
        for execution_id, faults in suspects
        if execution_id in still
        for fault in faults
    ]


def _faults_of_logs(found: Verification, logs: Logs, execution: Execution) -> list[str]:
    """Compare the records of an execution that ended with the totals in the database."""
    output = [each for each in execution.logs if each.source is not Source.SYSTEM]
    system = [each for each in execution.logs if each.source is Source.SYSTEM]
    faults = _faults_of_record(found, logs.output_path(execution.id), execution.id, output)
    faults += _faults_of_record(found, logs.system_path(execution.id), execution.id, system)
    return faults + _faults_of_outputs(logs.outputs_path(execution.id), execution.outputs)


def _faults_of_outputs(path: Path, outputs: Outputs | None) -> list[str]:
    if outputs is None or not outputs.size_bytes:
        return []
    try:
        with path.open("rb") as archive:
            correct = file_digest(archive, "sha256").hexdigest() == outputs.sha256
    except FileNotFoundError:
        return [f"{path} is missing"]
    except OSError as error:
        return [f"{path} cannot be read: {error.strerror}"]
    return [] if correct else [f"{path} is damaged: it has another checksum than it had"]


def _faults_of_record(found: Verification, path: Path, execution_id: str, expected: list[LogTotals]) -> list[str]:
    try:
        record = RecordReader(path)
    except FileNotFoundError:
        return [f"{path} is missing"] if expected else []
    except OSError as error:
        return [f"{path} cannot be read: {error.strerror}"]
    try:
        found.records += 1
        if not record.is_of(execution_id):
            return [f"{path} is the record of another execution"]
        return _faults_of_totals(found, path, record, expected)
    except OSError as error:
        return [f"{path} cannot be read: {error.strerror}"]
    finally:
        record.close()


def _faults_of_totals(found: Verification, path: Path, record: RecordReader, expected: list[LogTotals]) -> list[str]:
    """Read the whole record, whose reader checks each frame, and compare what it holds."""
    position, missing, unknown = Position.BEGIN, dict.fromkeys(Source, 0), set()
    while True:
        segment = record.read(position)
        for entry in segment.entries:
            if not isinstance(entry, Gap):
                found.output_bytes += len(entry.data)
            elif entry.missing_bytes is None:
                unknown.add(entry.source)
            else:
                missing[entry.source] += entry.missing_bytes
        if segment.trailer or segment.next == position:
            break
        position = segment.next
    faults = []
    reached = position.offsets if segment.trailer is None else segment.next.offsets
    for total in expected:
        source, name = total.source, total.source.name.lower()
        if reached[source] < total.bytes:
            faults.append(f"{path} ends after {reached[source]} of {total.bytes} bytes of {name}")
        elif missing[source] > total.missing_bytes:
            lost = missing[source] - total.missing_bytes
            faults.append(f"{path} is damaged: {lost} of {total.bytes} bytes of {name} cannot be read")
        elif source in unknown and total.crc32 is not None:
            faults.append(f"{path} is damaged: an unknown number of bytes of {name} is missing")
    return faults


def _orphans(database: Path, names: list[str]) -> Iterator[Fault]:
    """Yield the records of executions that the database does not know, or whose log it takes for pruned."""
    ids = sorted({name.split("/")[2] for name in names})
    for first in range(0, len(ids), _AT_ONCE):
        these = ids[first : first + _AT_ONCE]
        for execution_id in sorted(set(these) - kept(database, these)):
            [name, *_] = [name for name in names if execution_id in name]
            yield Fault(str(Path(name).parent), "the database knows no execution with this log")
