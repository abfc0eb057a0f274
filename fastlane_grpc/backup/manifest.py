"""The contents of a backup, and the file that lists them. That file comes last: a backup without it is not complete."""

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any, Final

MANIFEST: Final = "backup.json"
DATABASE: Final = "fastlane.db"
TOKENS: Final = "tokens.json"
RELAY_KEY: Final = "relay-key"
# A later format may need more than this version knows.
FORMAT: Final = 1
MAX_MANIFEST_BYTES: Final = 1 << 16

_UUID = r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"
_INPUT = re.compile(r"inputs/[0-9a-f]{64}")
_RECORD = re.compile(rf"logs/\d{{4}}-\d\d-\d\d/{_UUID}/(log|system|outputs)")
# Whether the start of a pod was granted, and its number: without them a restored server would take it for a pod that
# never ran.
_RELAY = re.compile(rf"logs/\d{{4}}-\d\d-\d\d/{_UUID}/(relay|relay-pod)")


class BackupError(Exception):
    """A backup could not be taken, read or restored; says which file, why, and what to do."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """A complete backup: which instance it is of, when its database was copied, how many records it has, and their
    size in bytes."""

    instance: str
    time: datetime
    version: str
    records: int
    record_bytes: int

    def as_json(self) -> bytes:
        """Return the contents of the file."""
        fields: Mapping[str, Any] = asdict(self) | {"time": self.time.isoformat(), "format": FORMAT}
        return json.dumps(fields, indent=2).encode() + b"\n"

    @classmethod
    def of_json(cls, text: bytes) -> "Manifest":
        """Read the contents of the file. BackupError."""
        try:
            fields = json.loads(text)
            form = fields.pop("format")
            if form != FORMAT:
                raise BackupError(f"{MANIFEST} has the format {form}, of a newer fastlane; restore it with that one")
            return cls(**fields | {"time": datetime.fromisoformat(fields["time"])})
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise BackupError(f"{MANIFEST} cannot be read: {error}") from error


def is_record(name: str) -> bool:
    """Return whether a file of a backup is a record, by its name in the backup."""
    return _RECORD.fullmatch(name) is not None


def is_input(name: str) -> bool:
    """Return whether a file of a backup is the content of an input, by its name in the backup."""
    return _INPUT.fullmatch(name) is not None


def is_of_relay(name: str) -> bool:
    """Return whether a file of a backup is about the relay of an execution, by its name in the backup."""
    return _RELAY.fullmatch(name) is not None


def belongs(name: str) -> bool:
    """Return whether a backup may hold a file of this name."""
    own = {MANIFEST, DATABASE, TOKENS, RELAY_KEY}
    return name in own or is_record(name) or is_input(name) or is_of_relay(name)
