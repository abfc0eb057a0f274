"""The calls of the contract over real gRPC and a real store, and the details of their errors."""

import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

import grpc
from google.protobuf.message import Message
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from fastlane_grpc.api import Inputs, OutputReader, Service
from fastlane_grpc.app import Server
from fastlane_grpc.errors import HostNotFound
from fastlane_grpc.execution import UsageSampler
from fastlane_grpc.inputs import InputFiles
from fastlane_grpc.model import Execution, HostReport, Outcome, Reason, State, Stop, WaitReason, utc_now
from fastlane_grpc.record import RecordWriter
from fastlane_grpc.retention import Retention, RetentionLimits
from fastlane_grpc.rpc.server import RpcServer
from fastlane_grpc.store import StoreHealth
from fastlane_grpc.v1 import fastlane_pb2 as pb
from fastlane_grpc.v1 import fastlane_pb2_grpc as pb_grpc
from fastlane_grpc.watch import WatchHub
from tests.new_database import make_database
from tests.parts import Parts

Detail = TypeVar("Detail", bound=Message)


class NoFreeSlots:
    """A dispatcher that gives no place to anybody: what runs, the test runs."""

    slots = (8, 8)
    host_error = ""
    hosts: Sequence[HostReport] = ()

    def why_queued(self, task_id: str) -> tuple[WaitReason, str] | None:
        """What the attributes say."""
        if self.host_error:
            return WaitReason.HOST_DOWN, self.host_error
        taken, total = self.slots
        return (WaitReason.NO_FREE_SLOT, f"{taken} of {total} slots in use") if taken >= total else None

    def pool_of_task(self, task_id: str) -> str:
        """There are no pools."""
        return ""

    def why_queued_in(self, pool: str) -> tuple[WaitReason, str] | None:
        """What the attributes say."""
        return self.why_queued(pool)

    async def drain_host(self, name: str, note: str) -> HostReport:
        """There is no host."""
        raise HostNotFound(name)

    async def resume_host(self, name: str) -> HostReport:
        """There is no host."""
        raise HostNotFound(name)

    def waiting(self, execution_id: str) -> None:
        """Nothing that runs waits."""

    def wake_at(self, time: datetime | None) -> None:
        """Nothing is due."""

    def stop_unstored(self, execution_id: str, stop: Stop) -> bool:
        """Nothing has a runner."""
        return False


class RpcHarness(Parts):
    """A server from the store to gRPC, on a free port; what its jobs run, the test runs."""

    def __init__(self, path: Path, **settings: object) -> None:
        super().__init__(path, **settings)
        self.places = NoFreeSlots()
        self.store_health = StoreHealth(patience_seconds=0.1, probe_seconds=0.01)
        self.open_store(self.parts)
        self.open_logs(self.parts)
        self.open_tails(self.parts)
        self.open_watches(self.parts)
        self.open_retention(self.parts)
        self.inputs = Inputs(InputFiles(self.settings.data_dir / "inputs"), self.settings)
        self.service = Service(
            self.store,
            self.tails,
            self.places,
            self.retention,
            self.settings,
            self.watches,
            self.inputs,
            OutputReader(self.logs),
            UsageSampler([]),
        )
        self.listeners.append(self.service.job_watches.changed)
        self.server = self.rpc = RpcServer(self.service, self.settings)
        self.server.listen()
        self.channel = grpc.aio.insecure_channel(f"127.0.0.1:{self.port}")
        self.jobs = pb_grpc.JobServiceStub(self.channel)
        self.executions = pb_grpc.ExecutionServiceStub(self.channel)
        # Of the contract: the server's own have no part in this.
        self.hosts: Any = pb_grpc.HostServiceStub(self.channel)
        self.info = pb_grpc.ServerServiceStub(self.channel)

    def open_store(self, parts: Any) -> None:
        """As the app opens it, with its limits."""
        make_database(self.database)
        Server.open_store(self, parts)

    def open_retention(self, parts: Any) -> None:
        """What it deletes it deletes when it is asked."""
        self.retention = Retention(self.store, self.logs, RetentionLimits())
        parts.callback(self.retention.close)

    def open_watches(self, parts: Any) -> None:
        """As the app opens it; its task ends with the store, or when it is closed."""
        self.watches = WatchHub(self.store)
        self.listeners.append(self.watches.changed)
        parts.callback(self.supervisor.task("watches", self.watches.run, restart=True).cancel)

    async def close(self) -> None:
        await self.channel.close()
        await self.server.stop()
        self.close_parts()

    async def enqueue(self, **spec: object) -> pb.Job:
        request = pb.EnqueueJobRequest(task_id="task", spec=pb.JobSpec(**{"image": "busybox", **spec}))  # type: ignore[arg-type]
        return (await self.jobs.EnqueueJob(request)).job

    async def begin(self) -> tuple[Execution, RecordWriter]:
        """Takes the next execution to RUNNING, its record open."""
        (assignment,) = await self.store.claim_on(["local"])
        execution = assignment.execution
        self.logs.path(execution.id).mkdir(parents=True, exist_ok=True)
        writer = RecordWriter.create(self.logs.output_path(execution.id), execution_id=execution.id, capture="test")
        await self.store.starting(
            execution.id,
            container_id="c",
            handle="{}",
            image_digest="sha256:0",
            pull_time=utc_now(),
            container_time=utc_now(),
        )
        await self.store.running(execution.id, start_time=utc_now())
        return execution, writer

    async def finish(
        self, execution: Execution, writer: RecordWriter, code: int = 0, failure: Reason = Reason.EXIT_CODE
    ) -> None:
        trailer = writer.seal(code, {}, time.time_ns())
        state = State.FAILED if code else State.SUCCEEDED
        outcome = Outcome(failure if code else Reason.UNSPECIFIED, exit_code=code)
        totals = (*trailer.totals, *self.logs.seal_system(execution.id))
        room = self.logs.room(execution.id)
        await self.store.finish(execution.id, state=state, outcome=outcome, logs=totals, log_bytes=room)

    def watch(self, **request: object) -> "grpc.aio.UnaryStreamCall[object, pb.WatchJobsResponse]":
        return self.jobs.WatchJobs(pb.WatchJobsRequest(**request))  # type: ignore[arg-type,return-value]

    def stream(
        self, execution_id: str, **more: object
    ) -> "grpc.aio.UnaryStreamCall[object, pb.StreamExecutionLogsResponse]":
        return self.executions.StreamExecutionLogs(pb.StreamExecutionLogsRequest(execution_id=execution_id, **more))  # type: ignore[arg-type,return-value]


def reason(error: grpc.aio.AioRpcError) -> str:
    return info(error).reason


def info(error: grpc.aio.AioRpcError) -> error_details_pb2.ErrorInfo:
    found = detail(error, error_details_pb2.ErrorInfo)
    assert found is not None
    assert found.domain == "fastlane"
    return found


def detail(error: grpc.aio.AioRpcError, kind: "type[Detail]") -> "Detail | None":
    status = rpc_status.from_call(error)  # type: ignore[arg-type]
    assert status is not None
    assert status.code == error.code().value[0]
    for packed in status.details:
        found = kind()
        if packed.Unpack(found):  # type: ignore[arg-type]
            return found
    return None
