"""The gRPC server: which services it has, its limits, and how it ends."""

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from fastlane_grpc.api import Calls, Service
from fastlane_grpc.config import Settings
from fastlane_grpc.errors import CannotServe
from fastlane_grpc.machine.address import cannot_listen
from fastlane_grpc.machine.open_files import MOST_CONNECTIONS
from fastlane_grpc.rpc import handlers, reflection
from fastlane_grpc.rpc.servicers import ExecutionServicer, HostServicer, JobServicer, ServerServicer, TaskServicer
from fastlane_grpc.v1 import fastlane_pb2 as pb

# Calls that are in flight when the server stops have so long to end. Log streams end by themselves, at once.
_STOP_GRACE_SECONDS = 1.0
# A connection without a call is closed after so long; one that does not begin to speak HTTP/2, after so long.
IDLE_SECONDS = 300.0
HANDSHAKE_SECONDS = 10.0
# Calls in flight on one connection, beside as many log streams as the server allows.
CALLS_BESIDE_STREAMS = 1000
# Calls of all connections that the loop has not come to yet. Each takes some 20 KB: at worst 650 MB.
MAX_PENDING_CALLS = 32_768


class RpcServer:
    """Serves the contract, health and reflection on one address."""

    def __init__(
        self,
        service: Service,
        settings: Settings,
        *,
        max_connections: int = MOST_CONNECTIONS,
        idle_seconds: float = IDLE_SECONDS,
    ) -> None:
        self._service = service
        self._started = False
        self._health = health.aio.HealthServicer()
        self._server = grpc.aio.server(options=_options(settings, max_connections, idle_seconds))
        calls = Calls(service)
        services = pb.DESCRIPTOR.services_by_name
        servicers = {
            "JobService": JobServicer(calls),
            "ExecutionService": ExecutionServicer(calls),
            "TaskService": TaskServicer(calls),
            "HostService": HostServicer(calls),
            "ServerService": ServerServicer(calls),
        }
        most = settings.max_request_bytes
        self._server.add_generic_rpc_handlers(
            [
                *(
                    handlers.handler(services[name], servicer, max_request_bytes=most)
                    for name, servicer in servicers.items()
                ),
                *reflection.handlers(each.full_name for each in services.values()),
            ]
        )
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        self._address = settings.listen
        self.port = 0

    def listen(self) -> None:
        """Take the address; `port` is known from then on. Raises CannotServe. Whatever comes of it, `stop` gives all
        back."""
        advice = "choose another with --listen"
        # Asked first, as gRPC writes lines of its own about an address that it cannot have, and does not say why.
        if error := cannot_listen(self._address):
            raise CannotServe(f"cannot listen on {self._address}: {error.strerror or error}; {advice}") from error
        try:
            self.port = self._server.add_insecure_port(self._address)
        except RuntimeError as error:
            raise CannotServe(f"cannot listen on {self._address}: it was taken a moment ago; {advice}") from error

    async def start(self) -> None:
        await self.store_can_write(True)
        await self.serving("live", True)
        await self._server.start()
        self._started = True

    async def store_can_write(self, can: bool) -> None:
        """What health says of the server as a whole. That it cannot write is a reason to send work elsewhere, and none
        to restart it: it goes on serving logs, and a new process would find the same disk. So who restarts what does
        not answer asks for `live`."""
        await self.serving("", can)
        await self.serving("server", can)

    async def serving(self, name: str, serves: bool) -> None:
        """`""` and `server` follow the server and its store; `engine` follows the engine, without which logs are served
        as well; `live` says that this process answers, and no more."""
        status = health_pb2.HealthCheckResponse.SERVING if serves else health_pb2.HealthCheckResponse.NOT_SERVING
        await self._health.set(name, status)

    async def stop(self) -> None:
        await self._health.enter_graceful_shutdown()
        self._service.stop_serving()
        if not self._started:
            # gRPC gives back what it has open, the port among it, only of a server that was started.
            await self._server.start()
        await self._server.stop(_STOP_GRACE_SECONDS)


def _options(settings: Settings, max_connections: int, idle_seconds: float) -> list[tuple[str, int]]:
    # Of one connection. gRPC takes no larger number.
    calls = min(settings.max_streams + CALLS_BESIDE_STREAMS, (1 << 31) - 1)
    return [
        # A second server on the same port has to fail, not to take every other connection.
        ("grpc.so_reuseport", 0),
        # Up to twice as much is let in: what is too large is then refused by us, who can say so.
        ("grpc.max_receive_message_length", 2 * settings.max_request_bytes),
        ("grpc.max_send_message_length", 4 << 20),
        ("grpc.max_metadata_size", 16 << 10),
        # Finds out about clients that vanished without a word, and lets clients ping quiet streams to the same end.
        ("grpc.keepalive_time_ms", 30_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
        # One more is closed as soon as it is accepted: connections never take the open files that executions need.
        ("grpc.max_allowed_incoming_connections", max_connections),
        ("grpc.max_connection_idle_ms", int(idle_seconds * 1000)),
        ("grpc.server_handshake_timeout_ms", int(HANDSHAKE_SECONDS * 1000)),
        # Enough for all log streams and other calls beside them; a client keeps what is beyond until others have ended.
        # So one connection takes a bounded amount of memory, also where streams are opened and reset without end.
        ("grpc.max_concurrent_streams", calls),
        # Else a stream counts until gRPC has freed its memory, which is after the client has heard of its end, and of
        # those that the client then opens some are refused without a reason.
        ("grpc.http.overload_protection", 0),
        # What is beyond the second gRPC refuses without a reason, and between the two some of it: so the two are one,
        # and out of reach of one connection.
        ("grpc.server.max_pending_requests", max(MAX_PENDING_CALLS, calls)),
        ("grpc.server.max_pending_requests_hard_limit", max(MAX_PENDING_CALLS, calls)),
    ]
