"""Capture by recorder on a node of a cluster, and by a relay beside it that copies the record to the server.

The record is exact, whatever is killed. A SIGKILL to the recorder, or a node that is lost before everything was copied,
leaves a gap of unknown size.
"""

import fcntl
import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import structlog

from fastlane_grpc.backend import Image
from fastlane_grpc.capture.capture import ContainerEnd, ReadSecrets, Wait, not_kept
from fastlane_grpc.capture.handoff import CommandStatus, Delivery, packed_variables
from fastlane_grpc.capture.record_retries import retry_until_written
from fastlane_grpc.capture.recorder import capabilities_by_recorder, command_of, ulimits_by_recorder
from fastlane_grpc.capture.relay_calls import REVOKE, relay_calls
from fastlane_grpc.capture.relay_tokens import RelayTokens
from fastlane_grpc.capture.relayed_files import RelayedFiles
from fastlane_grpc.capture.relayed_outputs import SPARE_BYTES, expect, expected
from fastlane_grpc.capture.relayed_record import (
    Permission,
    close,
    decide,
    is_complete,
    is_received,
    is_unsynced,
    new_pod,
    permission,
    put_on_disk,
    unbegun,
)
from fastlane_grpc.capture.written_record import first_byte_time_in, trailer_in
from fastlane_grpc.model import Cause, Execution, LogTotals, Source
from fastlane_grpc.record import RecordSealed, RecordWriter, Trailer, open_record
from fastlane_grpc.recorder import HARD_STOP

# A relay of a pod that has ended is given up after this time without a byte. Its pauses between two tries are shorter.
SILENCE_SECONDS = 30.0
LOOK_SECONDS = 0.02
# The directory that the containers of a pod share, as each of them sees it, and the name of the volume.
SHARED, VOLUME = "/.fastlane", "fastlane"
# The container of the relay in each pod.
RELAY_CONTAINER = "relay"
# The limits of a job's processes in the description of its container, where the recorder finds them: no field of pods.
ULIMITS = "ulimits"
# The standard input of a job, as the relay and the recorder see it.
STDIN = f"{SHARED}/in/stdin"
# Capabilities by which the inputs of a job are written, and by which the job's user is taken on after that.
_INPUTS_CAPABILITIES = ("CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "SETGID", "SETUID")
_ROOT = frozenset({"", "0", "root", "0:0", "root:root"})
# The directory with the token of the pod's service account, which the relay alone sees, and its volume.
ACCOUNT, _ACCOUNT_NAME = "/.fastlane-account", "fastlane-account"
_ACCOUNT_MOUNT = {"name": _ACCOUNT_NAME, "mountPath": ACCOUNT, "readOnly": True}
_ACCOUNT_VOLUME = {
    "name": _ACCOUNT_NAME,
    "projected": {"sources": [{"serviceAccountToken": {"expirationSeconds": 600, "path": "token"}}]},
}
# The time after the job's end in which a relay may still deliver, while the server is away.
DELIVERY_SECONDS = 3600

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class JobNeeds:
    """The needs of a job: the number of variables with secrets, a standard input, inputs, and paths to keep.

    `max_output_bytes`: what these may take in sum.
    """

    variables: int = 0
    stdin: bool = False
    inputs: bool = False
    outputs: Sequence[str] = ()
    max_output_bytes: int = 0

    @property
    def gets_files(self) -> bool:
        return self.variables > 0 or self.stdin or self.inputs

    @property
    def has_files(self) -> bool:
        """Whether the job's container needs the program that writes inputs and keeps outputs."""
        return self.inputs or bool(self.outputs)


NO_NEEDS = JobNeeds()


@dataclass(frozen=True, slots=True)
class RelayKit:
    """The parts of a capture in pods: the image with the relay and the recorder, and the server's address for relays.

    `max_log_bytes`: the size limit of a record; 0: none. `authorities` returns the certificates in PEM by which relays
    know the server; empty: connections are not encrypted.
    """

    image: str
    server: str
    tokens: RelayTokens
    max_log_bytes: int
    authorities: Callable[[], str] = lambda: ""
    pod_of_account: Callable[[str], str] | None = None

    def wrap(
        self,
        body: Mapping[str, Any],
        image: Image,
        execution_id: str,
        pod: str,
        needs: JobNeeds = NO_NEEDS,
    ) -> Mapping[str, Any]:
        """Return the description of a pod whose job runs under the recorder, with a relay. Raises CannotRun."""
        spec = body["spec"]
        (job,) = spec["containers"]
        words = command_of(job.get("command"), job.get("args"), _literal(image))
        limit = ["--limit", str(self.max_log_bytes)] if self.max_log_bytes else []
        recorder = [f"{SHARED}/bin/recorder", "--execution", execution_id, *limit]
        recorder += ["--secrets", str(needs.variables)] if needs.variables else []
        recorder += ["--stdin", STDIN] if needs.stdin else []
        by_job = job.get("securityContext") or {}
        enter: Sequence[str] = ()
        if needs.inputs:
            enter, privileges, security = _entered(job, image)
        else:
            privileges, security = _privileges(by_job)
        recorder += [*ulimits_by_recorder({"Ulimits": job.get(ULIMITS, ())}).options, *privileges]
        recorder += ["--await-relay", str(DELIVERY_SECONDS)]
        # The node's own grace is for the relay.
        recorder += ["--node-grace", str(max(1, spec["terminationGracePeriodSeconds"]))]
        recorder += [word for each in _keeper(needs) for word in ("--keep", each)]
        recorder += [f"{SHARED}/box", "--"]
        mounts = [
            {"name": VOLUME, "mountPath": f"{SHARED}/bin", "subPath": "bin", "readOnly": True},
            {"name": VOLUME, "mountPath": f"{SHARED}/box", "subPath": "box"},
            *(
                [{"name": VOLUME, "mountPath": f"{SHARED}/in", "subPath": "in", "readOnly": True}]
                if needs.stdin
                else []
            ),
        ]
        wrapped = {
            **{name: value for name, value in job.items() if name not in {"args", ULIMITS}},
            "command": [*enter, *recorder, *words],
            "securityContext": security,
            "volumeMounts": [*job.get("volumeMounts", ()), *mounts],
        }
        return {
            **body,
            "spec": {
                **spec,
                "initContainers": self._helpers(execution_id, pod, needs),
                "containers": [wrapped],
                "volumes": [
                    *spec.get("volumes", ()),
                    {"name": VOLUME, "emptyDir": {}},
                    *([_ACCOUNT_VOLUME] if self._asks_account(needs) else []),
                ],
                # The relay delivers within it. A stop has a grace of its own.
                "terminationGracePeriodSeconds": DELIVERY_SECONDS,
            },
        }

    def _asks_account(self, needs: JobNeeds) -> bool:
        """Whether the relay has to show to which pod it belongs."""
        return needs.gets_files and self.pod_of_account is not None

    def is_of_pod(self, pod: str, account: str) -> bool:
        """Whether the token of a service account belongs to this pod. Raises BackendDown."""
        return self.pod_of_account is None or (account != "" and self.pod_of_account(account) == pod)

    def _helpers(self, execution_id: str, pod: str, needs: JobNeeds) -> list[Mapping[str, Any]]:
        record = f"{SHARED}/own/log"
        relay = ["/relay", "--execution", execution_id, "--server", self.server]
        relay += ["--shared", SHARED, *(["--files"] if needs.has_files else [])]
        account = self._asks_account(needs)
        relay += ["--secrets"] if needs.variables else []
        relay += ["--stdin", STDIN] if needs.stdin else []
        relay += ["--inputs"] if needs.inputs else []
        relay += ["--outputs"] if needs.outputs else []
        relay += ["--recorder", "/recorder", "--limit", str(self.max_log_bytes)]
        relay += ["--account", f"{ACCOUNT}/token"] if account else []
        mounts = [{"name": VOLUME, "mountPath": SHARED}, *([_ACCOUNT_MOUNT] if account else [])]
        relay += ["--stay", record, f"{SHARED}/box"]
        # The recorders of earlier pods read blocks that a relay would punch out.
        variables = {"FASTLANE_RELAY_TOKEN": self.tokens.token(execution_id, pod), "FASTLANE_RELAY_PUNCHES": "1"}
        if authorities := self.authorities():
            variables["FASTLANE_RELAY_CA"] = authorities
        return [
            {
                "name": RELAY_CONTAINER,
                "image": self.image,
                "command": relay,
                "volumeMounts": mounts,
                "env": [{"name": name, "value": value} for name, value in variables.items()],
                # A native sidecar: started before the job, restarted if it dies, ended after the job.
                "restartPolicy": "Always",
                # The node starts the job when this has ended: the recorder is there by then, and waits for the grant of
                # the server. No probe, as a node asks one only once a second.
                "lifecycle": {"postStart": {"exec": {"command": ["/relay", "prepared", SHARED]}}},
            },
        ]


def _privileges(security: Mapping[str, Any]) -> tuple[Sequence[str], Mapping[str, Any]]:
    """Return the options by which the recorder takes capabilities from the command, and the pod's part of them."""
    dropped = (security.get("capabilities") or {}).get("drop", ())
    # A recorder that is not root has none, and needs none: all processes of the container are its user's.
    if security.get("runAsUser"):
        return (), security
    by_recorder = capabilities_by_recorder({"CapDrop": dropped})
    if not by_recorder.options:
        return (), security
    names = {"drop": by_recorder.host_config["CapDrop"], "add": by_recorder.host_config.get("CapAdd", ())}
    return by_recorder.options, {**security, "capabilities": {name: [*each] for name, each in names.items() if each}}


def _keeper(needs: JobNeeds) -> Sequence[str]:
    """Return the program that keeps files of the container, with its arguments."""
    if not needs.outputs:
        return ()
    most_bytes = needs.max_output_bytes + SPARE_BYTES
    paths = [path.replace("$", "$$") for path in needs.outputs]
    return [f"{SHARED}/bin/relay", "pack", str(most_bytes), *paths]


def _entered(job: Mapping[str, Any], image: Image) -> tuple[Sequence[str], Sequence[str], Mapping[str, Any]]:
    """Return the words before the recorder of a container whose inputs root writes, and what `_privileges` returns.

    The recorder then is of the user that the job or its image says, with the capabilities that the job has.
    """
    security = job["securityContext"]
    user = ":".join(str(security[name]) for name in ("runAsUser", "runAsGroup") if name in security) or image.user
    dropped = (security.get("capabilities") or {}).get("drop", ())
    everything = "ALL" in dropped
    is_root = user.partition(":")[0] in _ROOT
    # What takes the others away needs SETPCAP. A recorder that is root needs it, too, and takes it away by itself.
    for_recorder = ["SETPCAP", "KILL"] if is_root else []
    needed = dict.fromkeys([*_INPUTS_CAPABILITIES, "SETPCAP", *for_recorder])
    kept = [name for name in needed if everything or name in dropped]
    by_recorder = capabilities_by_recorder({"CapDrop": dropped}).options if is_root else ()
    words = [f"{SHARED}/bin/relay", "enter"]
    words += ["--user", user] if user not in _ROOT else []
    words += ["--keep-home"] if any(each["name"] == "HOME" for each in job.get("env", ())) else []
    words += [f"--cap-drop={name}" for name in kept if name not in for_recorder]
    names = {"drop": [name for name in dropped if name not in kept], "add": kept if everything else []}
    capabilities = {name: each for name, each in names.items() if each}
    security = {name: each for name, each in security.items() if name != "capabilities"}
    security |= {"runAsUser": 0, "runAsGroup": 0} | ({"capabilities": capabilities} if capabilities else {})
    return [*words, f"{SHARED}/box"], by_recorder, security


def _literal(image: Image) -> Image:
    """Return the image with its words as a pod has to have them: in a pod, `$(NAME)` is a variable and `$$` a dollar.

    The words of the job are so already.
    """
    entrypoint, command = ([word.replace("$", "$$") for word in words] for words in (image.entrypoint, image.command))
    return replace(image, entrypoint=entrypoint, command=command)


class RelayedCapture:
    """Implements Capture over the copy of a record in `directory`. `kit` is None if no host of it is configured."""

    name = "relay"
    kill_signal = str(HARD_STOP)
    following = True
    # Only the cluster tells whether the recorder runs.
    is_running = False

    def __init__(self, directory: Path, execution_id: str, kit: RelayKit | None) -> None:
        self._directory = directory
        self._record = directory / "log"
        self._execution_id = execution_id
        self._kit = kit
        self._read_secrets: ReadSecrets = dict
        self.files = RelayedFiles(directory, self._is_of_pod)
        self._has_stdin = False
        self._cut = False

    def wrap(self, body: Mapping[str, Any], image: Image) -> Mapping[str, Any]:
        assert self._kit is not None
        # Read now to find out whether they can be. The relay gets them as they are when the start is granted.
        variables, files = len(self._read_secrets()), self.files
        needs = JobNeeds(variables, self._has_stdin, files.has_inputs, files.output_paths, files.max_output_bytes)
        pod = new_pod(self._directory)
        if needs.outputs:
            files.discard_outputs()
            expect(self._directory, needs.max_output_bytes)
        return self._kit.wrap(body, image, self._execution_id, pod, needs)

    def use_secrets(self, read: ReadSecrets) -> None:
        self._read_secrets = read
        relay_calls.offer_secrets(self._directory, lambda: packed_variables(read()), self._is_of_pod)

    def use_stdin(self, content: Path) -> None:
        self._has_stdin = True
        relay_calls.offer_stdin(self._directory, content, self._is_of_pod)

    def discard_secrets(self) -> None:
        relay_calls.withdraw(self._directory)

    def open(self, container_id: str) -> None:
        """Do nothing, as the relay comes by itself."""

    def release_start_resources(self) -> bool:
        # The first frame is written after the recorder has taken everything.
        if self._size() == 0:
            return False
        relay_calls.withdraw(self._directory)
        return True

    def revoke(self) -> CommandStatus | None:
        """Revoke the start. If it was granted, its relay can still keep the recorder from its beginning.

        None: the recorder has begun and has not told of its end, or the relay does not answer. Then only the cluster
        can tell of the command.
        """
        if self.unbegun is not None:
            return CommandStatus.NEVER_RAN
        decided = retry_until_written(partial(decide, self._directory, Permission.REVOKED))
        if decided is Permission.REVOKED:
            return CommandStatus.NEVER_RAN
        # Its pod may be gone by now, with all that the cluster could tell.
        if self.trailer() is not None:
            return CommandStatus.ENDED
        # The first frame is written when the recorder has begun. A relay with a flood to send takes long to answer.
        if self._size() > 0:
            return None
        relay_calls.order(self._directory, REVOKE)
        return CommandStatus.NEVER_RAN if self.unbegun is not None else None

    @property
    def start_granted(self) -> bool:
        return permission(self._directory) in {Permission.GRANTED, Permission.CLOSED}

    @property
    def unbegun(self) -> str | None:
        return unbegun(self._directory)

    def signal(self, number: int) -> Delivery:
        # SIGKILL is for the whole container, and for the cluster to send: no recorder can pass it on.
        sent = number != signal.SIGKILL and relay_calls.order(self._directory, number)
        return Delivery.TAKEN if sent else Delivery.NOT_SENT

    def resume(self, container_id: str | None) -> None:
        """Go on, as the relay does by itself. Of a container that is given up, some output may be missing."""
        self._cut = container_id is None

    def abandon_unwritten(self) -> None:
        """Do nothing: the disk of the node is not the server's."""

    @property
    def delivered(self) -> bool:
        if is_received(self._directory):
            return True
        # What the job keeps comes after its output, and so does again what the disk did not take.
        return expected(self._directory) is None and not is_unsynced(self._directory) and self.trailer() is not None

    def drain(self, end: ContainerEnd | None, wait: Wait) -> str:
        """Wait until the relay has delivered everything, or is silent for too long."""
        if end is None:
            return ""
        trailer = self._delivered(wait)
        self._cut = trailer is None and not is_complete(self._directory)
        totals = trailer.totals if trailer else () if self._cut else retry_until_written(lambda: self._totals(wait))
        if self._cut or (trailer is None and any(each.crc32 is None for each in totals)):
            return "some output may be missing: its recorder was killed, or not everything was copied from its node"
        return not_kept(totals)

    def seal(self, exit_code: int | None, facts: Mapping[str, object]) -> Trailer | None:
        if permission(self._directory) not in {Permission.GRANTED, Permission.CLOSED}:
            return None
        retry_until_written(partial(close, self._directory))
        trailer = self.trailer()
        if trailer is None:
            with suppress(FileNotFoundError):
                trailer = retry_until_written(lambda: self._seal_in_its_place(exit_code, facts))
        return trailer

    def trailer(self) -> Trailer | None:
        return trailer_in(self._record, self._execution_id)

    def detach(self) -> None:
        relay_calls.withdraw(self._directory)

    @property
    def first_byte_time(self) -> datetime | None:
        return first_byte_time_in(self._record)

    def _is_of_pod(self, account: str) -> bool:
        return self._kit is not None and self._kit.is_of_pod(f"fastlane-{self._execution_id}", account)

    def _delivered(self, wait: Wait) -> Trailer | None:
        """Wait until the trailer is on disk, and return it; None if all came without one, or nothing comes any more."""
        size, until = -1, 0.0
        # On disk, as the pod is deleted once the execution has ended: its node has the only other copy.
        while (trailer := self.trailer()) is None or not self._is_on_disk():
            if is_received(self._directory):
                return self.trailer()
            before, size = size, self._size()
            if size != before:
                until = time.monotonic() + SILENCE_SECONDS
            elif time.monotonic() > until:
                log.warning("a relay does not deliver", execution_id=self._execution_id, bytes=size)
                return None
            wait(LOOK_SECONDS)
        return trailer

    def _is_on_disk(self) -> bool:
        return retry_until_written(partial(put_on_disk, self._directory))

    def _size(self) -> int:
        try:
            return self._record.stat().st_size
        except FileNotFoundError:
            return 0

    def _totals(self, wait: Wait) -> Sequence[LogTotals]:
        """Return the totals of the copy of a record without a trailer that was received as a whole."""
        try:
            record = self._resume(wait)
        except (RecordSealed, FileNotFoundError):
            return ()
        try:
            return record.totals()
        finally:
            record.close()

    def _resume(self, wait: Wait) -> RecordWriter:
        """Return a writer at the end of the copy. Raises RecordSealed, OSError, and what `wait` raises."""
        lock = open_record(self._record, os.O_RDONLY)
        try:
            while not _is_locked(lock):
                # The call of a relay that has nothing to send would last as long as its pod. Once the record is closed,
                # that call is broken off, after the piece that is being stored. The next call is refused.
                if permission(self._directory) is Permission.CLOSED:
                    relay_calls.end(self._directory)
                wait(LOOK_SECONDS)
            return RecordWriter.resume(self._record)
        finally:
            os.close(lock)

    def _seal_in_its_place(self, exit_code: int | None, facts: Mapping[str, object]) -> Trailer | None:
        """Seal the copy of a record without a trailer, with gaps for what was not copied."""
        try:
            # A closed record is free a moment after the call of its relay is broken off.
            record = self._resume(time.sleep)
        except RecordSealed:
            return self.trailer()
        try:
            for source in (Source.STDOUT, Source.STDERR) if self._cut else ():
                record.gap(source, None, Cause.ENGINE, time.time_ns())
            return record.seal(exit_code, facts, time.time_ns())
        finally:
            record.close()


def _is_locked(file: int) -> bool:
    """Lock a file, unless somebody else has locked it."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


class RelayedCaptures:
    """Implements Captures for a cluster, with a kit."""

    reason = ""
    in_use = name = RelayedCapture.name

    def __init__(self, kit: RelayKit) -> None:
        self._kit = kit

    def determine(self) -> None:
        """Do nothing, as there is one way alone."""

    def for_new(self, directory: Path, execution_id: str, log_line: Callable[[str], None]) -> RelayedCapture:
        return RelayedCapture(directory, execution_id, self._kit)

    def for_existing(self, directory: Path, execution: Execution, log_line: Callable[[str], None]) -> RelayedCapture:
        return RelayedCapture(directory, execution.id, self._kit)
