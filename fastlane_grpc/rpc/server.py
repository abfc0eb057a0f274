"""The gRPC server: its services, its limits and its shutdown."""

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from fastlane_grpc.api import Calls, Service
from fastlane_grpc.call_log import CallLog
from fastlane_grpc.config import Settings
from fastlane_grpc.counts import Counts
from fastlane_grpc.errors import CannotServe
from fastlane_grpc.machine.address import cannot_listen
from fastlane_grpc.machine.open_files import MOST_CONNECTIONS
from fastlane_grpc.rpc import handlers, reflection
from fastlane_grpc.rpc.authentication import Authentication
from fastlane_grpc.rpc.call_logging import CallLogging
from fastlane_grpc.rpc.servicers import (
    ExecutionServicer,
    HostServicer,
    JobServicer,
    NotificationServicer,
    ServerServicer,
    TaskServicer,
)
from fastlane_grpc.rpc.tls import server_credentials
from fastlane_grpc.trust import Access, Certificates
from fastlane_grpc.v1 import fastlane_pb2 as pb

# The time that calls in flight have to end when the server stops. Log streams end at once.
_STOP_GRACE_SECONDS = 1.0
# A connection without a call is closed after the first, one without an HTTP/2 handshake after the second.
IDLE_SECONDS = 300.0
HANDSHAKE_SECONDS = 10.0
# A client that pings more often is disconnected. Clients may ping each 5 s; a ping may come a little early.
MIN_PING_SECONDS = 4.0
# The limit of one connection on calls in flight, beside all log streams that the server allows.
CALLS_BESIDE_STREAMS = 1000
# The limit of all connections on calls that wait for the loop. Each takes some 20 KB: at most 650 MB.
MAX_PENDING_CALLS = 32_768


class RpcServer:
    """A gRPC server of the contract, health and reflection on one address."""

    def __init__(
        self,
        service: Service,
        settings: Settings,
        *,
        max_connections: int = MOST_CONNECTIONS,
        idle_seconds: float = IDLE_SECONDS,
        min_ping_seconds: float = MIN_PING_SECONDS,
        counts: Counts | None = None,
        certificates: Certificates | None = None,
        access: Access | None = None,
        call_log: CallLog | None = None,
    ) -> None:
        """`certificates`: those of TLS; without them connections are not encrypted. `access`: the tokens in force;
        without it anybody may do anything. `call_log`: where calls are logged; None: nowhere."""
        counts = counts or Counts()
        self._service = service
        self._started = False
        self._health = health.aio.HealthServicer()
        self._serves: dict[str, bool] = {}
        self._server = grpc.aio.server(
            options=_options(settings, max_connections, idle_seconds, min_ping_seconds),
            interceptors=[
                *([CallLogging(call_log, mutual=bool(certificates and certificates.mutual))] if call_log else ()),
                *([Authentication(access, counts)] if access else ()),
            ],
        )
        calls = Calls(service, limited=access is not None)
        services = pb.DESCRIPTOR.services_by_name
        servicers = {
            "JobService": JobServicer(calls),
            "ExecutionService": ExecutionServicer(calls),
            "TaskService": TaskServicer(calls),
            "HostService": HostServicer(calls),
            "NotificationService": NotificationServicer(calls),
            "ServerService": ServerServicer(calls),
        }
        self._server.add_generic_rpc_handlers(
            [
                *(
                    handlers.handler(
                        services[name],
                        servicer,
                        max_request_bytes=settings.max_request_bytes,
                        counts=counts,
                        mutual=certificates is not None and certificates.mutual,
                    )
                    for name, servicer in servicers.items()
                ),
                *reflection.handlers(each.full_name for each in services.values()),
            ]
        )
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        self._address = settings.listen
        self._certificates = certificates
        self.port = 0

    def listen(self) -> None:
        """Bind the address and set `port`. Raises CannotServe. In either case `stop` releases all resources."""
        advice = "choose another with --listen"
        # Checked first: gRPC logs lines of its own about an address that it cannot bind, and gives no reason.
        if error := cannot_listen(self._address):
            raise CannotServe(f"cannot listen on {self._address}: {error.strerror or error}; {advice}") from error
        try:
            if self._certificates:
                credentials = server_credentials(self._certificates, ask_clients=True)
                self.port = self._server.add_secure_port(self._address, credentials)
            else:
                self.port = self._server.add_insecure_port(self._address)
        except RuntimeError as error:
            raise CannotServe(f"cannot listen on {self._address}: it was taken a moment ago; {advice}") from error

    async def start(self) -> None:
        """Accept calls."""
        await self.store_can_write(True)
        await self.serving("live", True)
        await self._server.start()
        self._started = True

    async def store_can_write(self, can: bool) -> None:
        """Set the health of the server as a whole.

        A server that cannot write should get no new work. A restart would not help: the server still serves logs, and
        a new process would find the same disk. Supervisors of processes therefore check `live`."""
        await self.serving("", can)
        await self.serving("server", can)

    async def serving(self, name: str, serves: bool) -> None:
        """Set the health of one name.

        `""` and `server` stand for the server and its store. `engine` stands for the engines, which logs do not need.
        `live` says only that this process answers."""
        self._serves[name] = serves
        status = health_pb2.HealthCheckResponse.SERVING if serves else health_pb2.HealthCheckResponse.NOT_SERVING
        await self._health.set(name, status)

    def is_serving(self, name: str) -> bool:
        """Return the health of one name, as `serving` set it last."""
        return self._serves.get(name, False)

    async def stop(self) -> None:
        """End all calls and release the address."""
        await self._health.enter_graceful_shutdown()
        self._service.stop_serving()
        if not self._started:
            # gRPC releases the port only of a server that was started.
            await self._server.start()
        await self._server.stop(_STOP_GRACE_SECONDS)


def _options(
    settings: Settings, max_connections: int, idle_seconds: float, min_ping_seconds: float
) -> list[tuple[str, int]]:
    # The limit of one connection, at most gRPC's largest integer.
    calls = min(settings.max_streams + CALLS_BESIDE_STREAMS, (1 << 31) - 1)
    return [
        # A second server on the same port must fail, instead of getting every other connection.
        ("grpc.so_reuseport", 0),
        # Twice the limit: `RequestParser` rejects a request that is too large with a better error.
        ("grpc.max_receive_message_length", 2 * settings.max_request_bytes),
        ("grpc.max_send_message_length", 4 << 20),
        ("grpc.max_metadata_size", 16 << 10),
        # Detects clients that vanished, and allows clients to ping on quiet streams.
        ("grpc.keepalive_time_ms", 30_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        # Without this, a connection that has no call may send one ping each two hours.
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_ping_interval_without_data_ms", int(min_ping_seconds * 1000)),
        # A connection beyond the limit is closed at once, so that executions always have open files.
        ("grpc.max_allowed_incoming_connections", max_connections),
        ("grpc.max_connection_idle_ms", int(idle_seconds * 1000)),
        ("grpc.server_handshake_timeout_ms", int(HANDSHAKE_SECONDS * 1000)),
        # Enough for all log streams and other calls. A client delays further calls until others have ended, so that
        # one connection takes bounded memory, even if it opens and resets streams without end.
        ("grpc.max_concurrent_streams", calls),
        # Otherwise a stream counts until gRPC has freed its memory, after the client has seen its end. gRPC would then
        # reject some of the client's next streams without a reason.
        ("grpc.http.overload_protection", 0),
        # gRPC rejects calls beyond the second limit without a reason, and some calls between the two. So both are the
        # same, and no single connection can reach them.
        ("grpc.server.max_pending_requests", max(MAX_PENDING_CALLS, calls)),
        ("grpc.server.max_pending_requests_hard_limit", max(MAX_PENDING_CALLS, calls)),
    ]
