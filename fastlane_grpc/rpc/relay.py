"""The receiving end of relays, which copy records from the nodes of a cluster.

One call, `/fastlane.relay.v1.RelayService/Copy`, a stream in both directions. Its metadata have `fastlane-execution`,
an id, `fastlane-token`, the token of that execution's present pod alone, and until the relay has begun also
`fastlane-wants`: `secrets`, `stdin`, `inputs`, with commas between, or nothing. With it comes `fastlane-account`, the
token of the pod's service account: the other token is in the description of the pod, which more people may read.
`fastlane-outputs` is `true` if the job keeps files, and `fastlane-punches` if the relay punches out what is on the disk
of the server. `fastlane-kept-from` is the offset before which everything was punched out. Messages are bytes, and their
numbers little-endian. From the server, with the first byte:

* `S`: the file of secrets, if it is wanted.
* `I`: a piece of the standard input, if that is wanted; the pieces come in order.
* `F`: a piece of the archive of inputs, if that is wanted; the pieces come in order.
* `K`, then an offset (8 bytes), if the job keeps files: these have to be sent from there.
* `G`, then an offset (8 bytes): the start is granted, and the relay has to send from there.
* `O`, then the number of a signal (1 byte), at any time after that: an order for the recorder.
* `D`, then an offset (8 bytes), at any time after that, if the relay punches: everything before is on disk.
* `E`, last, then the size of the record (8 bytes): the whole record is on disk.

From the relay:

* an offset (8 bytes), and a piece of the record that belongs there.
* ORDER_DONE (8 bytes), the number of the last order (1 byte), and whether its recorder has it (1 byte).
* OUTPUTS_PIECE (8 bytes), an offset (8 bytes), and a piece of what the job keeps (capture/relayed_outputs.py).
* COMPLETE (8 bytes), if the record has no trailer, and yet has everything that was printed, or says itself what is
  missing: the recorder was killed, and the relay had the rest stored.
* last: the offset (8 bytes) after everything, without a piece. The recorder has ended.
* or last: NEVER_BEGAN (8 bytes), and the reason as text: no command of this pod ran, and none will.

UNAUTHENTICATED: another token, or no such pod is expected here. FAILED_PRECONDITION: its start was revoked, or its
record is sealed. INVALID_ARGUMENT: a piece that does not fit. None of these is worth another try; everything else is.
"""

import asyncio
import queue
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import grpc
import structlog

from fastlane_grpc.backend import BackendDown
from fastlane_grpc.capture.relay_calls import REVOKE, relay_calls
from fastlane_grpc.capture.relay_tokens import RelayTokens
from fastlane_grpc.capture.relayed_outputs import OutputsDamaged, RelayedOutputs
from fastlane_grpc.capture.relayed_record import (
    PieceInvalid,
    RelayedRecord,
    StartRevoked,
    check_start,
    note_unbegun,
    pod_number,
)
from fastlane_grpc.errors import CannotServe, SecretNotFound
from fastlane_grpc.inputs import ArchiveInvalid
from fastlane_grpc.machine.address import cannot_listen
from fastlane_grpc.machine.open_files import MOST_CONNECTIONS
from fastlane_grpc.rpc.tls import server_credentials
from fastlane_grpc.secrets import SecretUnusable, Unreadable
from fastlane_grpc.supervisor import one_task
from fastlane_grpc.text.sanitize import one_line
from fastlane_grpc.trust import Certificates

SERVICE = "fastlane.relay.v1.RelayService"
# Pause before a piece is stored again that the disk had no room for. The relay waits meanwhile.
STORE_AGAIN_SECONDS = 1.0
# A piece has at most 256 KiB.
MAX_MESSAGE_BYTES = 1 << 20
_STOP_GRACE_SECONDS = 1.0
# A copy is put on disk while it grows: once it has so many bytes that are not, or a second after the fewer.
SYNC_BYTES, FEW_BYTES = 8 << 20, 1 << 20
SYNC_SECONDS = 1.0
# Copies that are put on disk at a time. The others gather more bytes meanwhile, and so need fewer syncs.
_SYNC_THREADS = 4
# In the place of an offset; no record is as large.
ORDER_DONE = (1 << 64) - 1
OUTPUTS_PIECE, NEVER_BEGAN, COMPLETE = ORDER_DONE - 1, ORDER_DONE - 2, ORDER_DONE - 3
_REASON_CHARACTERS = 500
# The longest wait for the answer to an order. Without one the signal goes by the cluster.
ORDER_SECONDS = 5.0
_PIECE_BYTES = 256 << 10

log = structlog.get_logger(__name__)

Context = Any
T = TypeVar("T")


class RelayServer:
    """A gRPC server for relays on one address.

    `directory_of` returns the directory of an execution's record; None: no record of it is expected. `on_new_record` is
    called with the id of an execution when its record is there, so that its readers open it.
    """

    def __init__(
        self,
        tokens: RelayTokens,
        directory_of: Callable[[str], Awaitable[Path | None]],
        *,
        max_log_bytes: int,
        max_connections: int = MOST_CONNECTIONS,
        on_new_record: Callable[[str], None] = lambda execution_id: None,
    ) -> None:
        self._on_new_record = on_new_record
        self._tokens = tokens
        self._directory_of = directory_of
        self._max_log_bytes = max_log_bytes
        # The call in force of each execution: a relay that comes again replaces the call that it lost.
        self._calls: dict[str, asyncio.Task[Any]] = {}
        # Of its own: a disk that takes long to sync must not hold up the storing of pieces.
        self._sync_threads = ThreadPoolExecutor(_SYNC_THREADS, "record-sync")
        self._server = grpc.aio.server(
            options=[
                ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
                # The connection of a node that is gone for good would stay open.
                ("grpc.keepalive_time_ms", 30_000),
                ("grpc.keepalive_timeout_ms", 20_000),
                ("grpc.keepalive_permit_without_calls", 1),
                ("grpc.http2.min_ping_interval_without_data_ms", 5000),
                # What is no relay takes little: a relay has one connection, with one call.
                ("grpc.max_allowed_incoming_connections", max_connections),
                ("grpc.max_concurrent_streams", 16),
                ("grpc.max_metadata_size", 4 << 10),
                ("grpc.server_handshake_timeout_ms", 10_000),
                # Two servers on one port would share the relays.
                ("grpc.so_reuseport", 0),
            ]
        )
        method: grpc.RpcMethodHandler[bytes, bytes] = grpc.stream_stream_rpc_method_handler(self._copy)
        self._server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(SERVICE, {"Copy": method})])

    async def start(self, address: str, certificates: Certificates | None = None) -> int:
        """Listen, and return the port. Without certificates connections are not encrypted. Raises CannotServe."""
        if error := cannot_listen(address):
            raise CannotServe(
                f"cannot listen on {address} for relays: {error.strerror or error}; choose another with --relay-listen"
            ) from error
        if certificates is None:
            port = self._server.add_insecure_port(address)
        else:
            # A relay shows its token, and no certificate.
            port = self._server.add_secure_port(address, server_credentials(certificates, ask_clients=False))
        await self._server.start()
        return port

    async def stop(self) -> None:
        """Stop listening, and break off all calls: the relays come again."""
        await self._server.stop(_STOP_GRACE_SECONDS)
        self._sync_threads.shutdown(wait=False)

    async def _copy(self, requests: AsyncIterator[bytes], context: Context) -> None:
        metadata = dict(context.invocation_metadata())
        execution_id, token = (str(metadata.get(f"fastlane-{name}", "")) for name in ("execution", "token"))
        directory = await self._directory_of(execution_id)
        pod = pod_number(directory) if directory else ""
        # The same words whether there is such an execution or not.
        if directory is None or not pod or not self._tokens.admits(execution_id, pod, token):
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, "this is not the token of a pod that is expected")
        assert directory is not None
        await self._replace_call(execution_id)
        kept_from = str(metadata.get("fastlane-kept-from", ""))
        kept_from_bytes = int(kept_from) if kept_from.isdecimal() else 0
        record = RelayedRecord(directory, self._max_log_bytes, kept_from_bytes, pod=pod)
        outputs = RelayedOutputs(directory)
        call = _Call(context)
        syncs = _Syncs(record, call, self._sync_threads)
        try:
            # Sent before the grant: a start that is granted can be carried out, and until then it can be revoked.
            wants, account = (str(metadata.get(f"fastlane-{name}", "")) for name in ("wants", "account"))
            files = await _wanted_files(wants, account, directory)
            await to_its_end(partial(check_start, directory))
            await call.hand_over(files)
            await to_its_end(record.open)
            self._on_new_record(execution_id)
            if metadata.get("fastlane-outputs") == "true":
                await to_its_end(outputs.open)
                await call.write(b"K", outputs.position)
            await call.write(b"G", record.position)
            if metadata.get("fastlane-punches") == "true":
                syncs.start()
            is_complete = False
            with relay_calls.connected(directory, call):
                async for request in requests:
                    offset, piece = int.from_bytes(request[:8], "little"), request[8:]
                    if offset == ORDER_DONE:
                        call.answered(piece)
                    elif offset == OUTPUTS_PIECE:
                        store = partial(outputs.store, int.from_bytes(piece[:8], "little"), piece[8:])
                        await _store(store, execution_id)
                    elif offset == NEVER_BEGAN:
                        size = await to_its_end(partial(_note_unbegun, directory, record, piece))
                        call.answered(bytes([REVOKE, 1]))
                        await call.write(b"E", size)
                        return
                    elif offset == COMPLETE:
                        is_complete = True
                    elif piece:
                        await _store(partial(record.store, offset, piece), execution_id)
                        syncs.note_stored()
                    else:
                        await _finished(outputs.finish)
                        finish = partial(record.finish, offset, is_complete=is_complete)
                        await call.write(b"E", await _finished(finish))
                        return
            # A connection that breaks also ends the requests, without an error.
            await context.abort(grpc.StatusCode.UNAVAILABLE, "the relay did not say that this is everything")
        except asyncio.CancelledError:
            if not call.is_over:
                raise
            # Otherwise the relay would not be told.
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, "the record of this execution was closed")
        except _NotOfPod:
            log.warning("a caller that is not in the pod asks for what a job gets", execution_id=execution_id)
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, "this is not the account of the pod")
        except (_NotReady, BackendDown, Unreadable, SecretNotFound, SecretUnusable, ArchiveInvalid) as error:
            log.warning(
                "the files of a job are not handed over; trying again", execution_id=execution_id, why=str(error)
            )
            await context.abort(
                grpc.StatusCode.UNAVAILABLE, "the server cannot hand over the files of the job just now"
            )
        except StartRevoked as error:
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, str(error))
        except OSError as error:
            log.warning("a copy is not stored; its relay tries again", execution_id=execution_id, error=str(error))
            await context.abort(grpc.StatusCode.UNAVAILABLE, "the server cannot store the record just now")
        except OutputsDamaged:
            log.warning("what a job keeps is sent again: its copy was damaged", execution_id=execution_id)
            await context.abort(grpc.StatusCode.UNAVAILABLE, "what the job keeps was damaged, and is sent again")
        except PieceInvalid as error:
            log.warning("a relay sends what does not fit", execution_id=execution_id, error=str(error))
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        finally:
            call.has_ended()
            await syncs.end()
            record.close()
            if self._calls.get(execution_id) is asyncio.current_task():
                del self._calls[execution_id]

    async def _replace_call(self, execution_id: str) -> None:
        """Make the present call the one in force, and end the one before."""
        task = asyncio.current_task()
        assert task is not None
        earlier = self._calls.get(execution_id)
        self._calls[execution_id] = task
        if earlier is not None and earlier is not task:
            earlier.cancel()
            await asyncio.wait([earlier])


class _Syncs:
    """Puts a copy on disk while it grows, and tells its relay up to where. Lives on the loop."""

    def __init__(self, record: RelayedRecord, call: "_Call", threads: Executor) -> None:
        self._record = record
        self._call = call
        self._threads = threads
        self._task: asyncio.Task[None] | None = None
        self._told = 0
        # Whether there are bytes that a sync is worth, and so many that it does not wait for more.
        self._has_some, self._has_many = asyncio.Event(), asyncio.Event()

    def start(self) -> None:
        self.note_stored()
        self._task = one_task("record-sync", self._run())

    def note_stored(self) -> None:
        """Take note that the record may have grown."""
        unsynced_bytes = self._record.position - self._told
        if unsynced_bytes >= FEW_BYTES:
            self._has_some.set()
        if unsynced_bytes >= SYNC_BYTES:
            self._has_many.set()

    async def end(self) -> None:
        """Return when nothing is put on disk any more."""
        if self._task:
            self._task.cancel()
            await _wait_for(self._task)

    async def _run(self) -> None:
        while True:
            await self._has_some.wait()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._has_many.wait(), SYNC_SECONDS)
            self._has_some.clear()
            self._has_many.clear()
            try:
                self._told = await to_its_end(self._record.sync, self._threads)
            except (OSError, RuntimeError):
                # The record has told of it, and the node keeps the rest. Or the server ends, and its threads have.
                return
            self.note_stored()
            try:
                await self._call.write(b"D", self._told)
            except Exception:
                # The call has ended.
                return


class _NotReady(Exception):
    """The server does not know yet what the job is to get: it was restarted just now."""


class _NotOfPod(Exception):
    """The caller has the token of the relay, and is not in its pod."""


@dataclass(frozen=True, slots=True)
class _Files:
    """The file of secrets, the path of the standard input, and the archive of inputs, as far as they are wanted."""

    secrets: bytes | None = field(default=None, repr=False)
    stdin: Path | None = None
    inputs: Callable[[], Iterator[bytes]] | None = None


async def _wanted_files(wants: str, account: str, directory: Path) -> _Files:
    """Return the files that a relay has to hand over.

    Raises _NotReady, _NotOfPod, BackendDown, and what the reading of secrets raises.
    """
    wanted, known = set(wants.split(",")) - {""}, relay_calls.files(directory)
    if not wanted:
        return _Files()
    has = {"secrets": known.read_secrets, "stdin": known.stdin, "inputs": known.inputs}
    if any(each in wanted and not is_known for each, is_known in has.items()):
        raise _NotReady("the execution is not taken up again yet")
    if not await to_its_end(partial(known.is_of_pod, account)):
        raise _NotOfPod
    secrets = None
    if "secrets" in wanted and known.read_secrets:
        secrets = await to_its_end(known.read_secrets)
    return _Files(secrets, known.stdin if "stdin" in wanted else None, known.inputs if "inputs" in wanted else None)


class _Call:
    """Implements RelayCall: one call, from the side of the server. Made by its task, on the loop."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._loop = asyncio.get_running_loop()
        self._task = asyncio.current_task()
        # The record is closed: the relay is not to come again.
        self.is_over = False
        # A call sends one message at a time.
        self._writing = asyncio.Lock()
        self._answers: queue.SimpleQueue[bytes] = queue.SimpleQueue()

    async def write(self, kind: bytes, value: int | bytes) -> None:
        """Send a message; a number is an offset or a size."""
        content = value if isinstance(value, bytes) else value.to_bytes(8, "little")
        async with self._writing:
            await self._context.write(kind + content)

    async def hand_over(self, files: _Files) -> None:
        """Send the files of the job. Raises OSError and ArchiveInvalid."""
        if files.secrets is not None:
            await self.write(b"S", files.secrets)
        if files.stdin is not None:
            await self._send_stdin(files.stdin)
        if files.inputs is not None:
            await self._send_inputs(files.inputs())

    async def _send_stdin(self, stdin: Path) -> None:
        with await to_its_end(lambda: stdin.open("rb")) as content:
            while piece := await to_its_end(partial(content.read, _PIECE_BYTES)):
                await self.write(b"I", piece)

    async def _send_inputs(self, blocks: Iterator[bytes]) -> None:
        while piece := await to_its_end(partial(_gathered, blocks)):
            await self.write(b"F", piece)

    def order(self, number: int) -> bool:
        """Send an order, and wait for the answer. Called on another thread."""
        while not self._answers.empty():
            self._answers.get()
        message = self.write(b"O", bytes([number]))
        try:
            sent = asyncio.run_coroutine_threadsafe(message, self._loop)
        except RuntimeError:
            # The loop is closed.
            message.close()
            return False
        try:
            sent.result(ORDER_SECONDS)
            return self._answers.get(timeout=ORDER_SECONDS) == bytes([number, 1])
        # The call has ended, or there is no answer.
        except Exception as error:
            sent.cancel()
            log.info("an order did not reach a relay", signal=number, error=repr(error))
            return False

    def end(self) -> None:
        assert self._task is not None
        self.is_over = True
        # The loop may be closed.
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._task.cancel)

    def answered(self, answer: bytes) -> None:
        """Take the answer to an order."""
        self._answers.put(answer)

    def has_ended(self) -> None:
        """Let nobody wait for an answer any more: none comes."""
        self._answers.put(b"")


def _gathered(blocks: Iterator[bytes]) -> bytes:
    """Return the next blocks as one piece; empty at the end."""
    piece = bytearray()
    for block in blocks:
        piece += block
        if len(piece) >= _PIECE_BYTES:
            break
    return bytes(piece)


def _note_unbegun(directory: Path, record: RelayedRecord, reason: bytes) -> int:
    """Note that no command ran, and return the size of its record, which is empty. Raises PieceInvalid and OSError."""
    if record.size:
        raise PieceInvalid(f"the relay says that no command ran, after {record.size} bytes of its output")
    note_unbegun(directory, one_line(reason.decode(errors="replace"), _REASON_CHARACTERS))
    return record.finish(0)


async def _store(store: Callable[[], None], execution_id: str) -> None:
    """Store a piece, as soon as the disk has room. Raises what `store` raises, but for OSError."""
    while True:
        try:
            await to_its_end(store)
        except OSError as error:
            log.warning("a piece of a record is not stored; trying again", execution_id=execution_id, error=str(error))
            await asyncio.sleep(STORE_AGAIN_SECONDS)
        else:
            return


async def _finished(finish: Callable[[], T]) -> T:
    """Return what `finish` returns. Raises what it raises: OSError after a pause, as the relay comes again at once."""
    try:
        return await to_its_end(finish)
    except OSError:
        await asyncio.sleep(STORE_AGAIN_SECONDS)
        raise


async def to_its_end(work: Callable[[], T], threads: Executor | None = None) -> T:
    """Return what `work` returns on a thread. A call that is broken off meanwhile waits for the thread."""
    working = asyncio.get_running_loop().run_in_executor(threads, work)
    try:
        return await asyncio.shield(working)
    except asyncio.CancelledError:
        # A file that the thread opens after the end would stay open, and keep its lock.
        await _wait_for(working)
        raise


async def _wait_for(working: "asyncio.Future[Any]") -> None:
    """Wait until something is done. gRPC and the next call of the relay may both break off the waiting call."""
    while not working.done():
        with suppress(asyncio.CancelledError):
            await asyncio.wait([working])
