"""The addresses to serve on: free, or taken by a server that answers, and what that says of its hosts."""

import errno
import json
import ssl
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC
from http.client import HTTPConnection, HTTPException, HTTPSConnection

from fastlane_grpc import client as api
from fastlane_grpc.doctor.finding import Finding, fail, ok, warn
from fastlane_grpc.machine.address import cannot_listen
from fastlane_grpc.v1 import fastlane_pb2 as pb

_ANSWER_SECONDS = 5.0


def about_server(listen: str, *, encrypted: bool = False) -> Iterator[Finding]:
    """Yield findings about the address. `encrypted`: its server speaks TLS, and is not asked for more than that."""
    refusal = cannot_listen(listen)
    if refusal is None:
        yield ok("address", f"{listen} is free: no server is running")
        return
    if refusal.errno != errno.EADDRINUSE:
        yield fail("address", f"cannot listen on {listen}: {refusal.strerror}", "choose another address with --listen")
        return
    if encrypted:
        if api.tls_advice(_reachable(listen), encrypted=False):
            yield ok("address", f"a server that speaks TLS responds on {listen}")
        else:
            yield fail("address", f"{listen} is in use, and no server there speaks TLS", "see `ss -ltnp`")
        return
    with api.Client(_reachable(listen), timeout=_ANSWER_SECONDS, retry_for=0) as client:
        try:
            info = client.server_info()
        except api.Unauthenticated:
            yield ok("address", f"a fastlane server that requires tokens responds on {listen}")
            return
        except api.Error as error:
            advice = "stop the program that uses it (see `ss -ltnp`), or choose another address with --listen"
            yield fail("address", f"{listen} is in use, and no fastlane server responds there: {error}", advice)
            return
        yield ok(
            "address",
            f"fastlane {info.version} serves on {listen} since {info.start_time.ToDatetime(UTC):%Y-%m-%d %H:%M:%S} UTC",
        )
        try:
            hosts = client.hosts()
        except api.Error as error:
            yield warn(
                "hosts", f"the server does not list them: {error}", "upgrade the server to the version of this program"
            )
            return
    yield from map(_host, hosts)


def about_http(listen: str, *, encrypted: bool = False) -> Finding:
    """Return whether the address of HTTP is free, or taken by a server that answers."""
    check = "HTTP address"
    if not listen:
        return ok(check, "HTTP is off (setting http_listen)")
    refusal = cannot_listen(listen)
    if refusal is None:
        return ok(check, f"{listen} is free: no server is running")
    advice = "choose another address with --http-listen, or turn HTTP off with --http-listen off"
    if refusal.errno != errno.EADDRINUSE:
        return fail(check, f"cannot listen on {listen}: {refusal.strerror}", advice)
    try:
        ready = _readiness(_reachable(listen), encrypted=encrypted)
    except (OSError, HTTPException, ValueError) as error:
        return fail(
            check,
            f"{listen} is in use, and no fastlane server responds there: {error or type(error).__name__}",
            f"stop the program that uses it (see `ss -ltnp`), or {advice}",
        )
    if not ready:
        return warn(check, f"fastlane answers on {listen}, and cannot store jobs", "see the findings about its disk")
    return ok(check, f"fastlane answers on {listen}")


def _readiness(address: str, *, encrypted: bool) -> bool:
    """Return whether the server at this address is ready. OSError, HTTPException, ValueError: none answers there."""
    # It is this machine's own server: whose certificate it has does not matter.
    connecting = (
        HTTPSConnection(address, timeout=_ANSWER_SECONDS, context=_unchecked())
        if encrypted
        else HTTPConnection(address, timeout=_ANSWER_SECONDS)
    )
    with closing(connecting) as connection:
        # The server answers to this name on every address, unless it is told otherwise.
        connection.request("GET", "/readyz", headers={"Host": "localhost"})
        told = json.loads(connection.getresponse().read(1 << 16))
    if not isinstance(told, dict) or "live" not in told:
        raise ValueError("the answer is not fastlane's")
    return bool(told.get("ok"))


def _unchecked() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def _host(host: pb.EngineHost) -> Finding:
    check = f"host {host.name}"
    if host.availability == pb.EngineHost.AVAILABILITY_DRAINED:
        note = f": {host.drain_note}" if host.drain_note else ""
        return warn(
            check, f"drained, it takes no executions{note}", f"`fastlane hosts resume {host.name}` puts the host back"
        )
    if host.availability != pb.EngineHost.AVAILABILITY_UP:
        why = host.last_error or host.capture_reason or "it does not respond"
        return fail(
            check,
            f"takes no executions: {why}",
            f"check the engine at {host.address}; the server retries by itself",
        )
    running = f"{host.running} of {host.max_running} slots in use"
    if host.capture == pb.EngineHost.CAPTURE_RECORDER:
        return ok(
            check, f"{running}, captured by the recorder" + (f"; {host.capture_reason}" if host.capture_reason else "")
        )
    if host.capture == pb.EngineHost.CAPTURE_RELAY:
        return ok(check, f"{running}, captured by the recorder and a relay")
    if host.capture == pb.EngineHost.CAPTURE_KUBELET:
        return warn(
            check,
            f"{running}, captured by the log of the kubelet",
            "output may have gaps, and stderr counts as stdout; docs/kubernetes.md says what the relay needs",
        )
    advice = (
        "output may have gaps when the server or the engine is killed; docs/log-streams.md says what the recorder needs"
    )
    return warn(check, f"{running}, captured by attach: {host.capture_reason or 'reason unknown'}", advice)


def _reachable(listen: str) -> str:
    """Return the address at which this machine reaches a server that listens on all interfaces."""
    host, _, port = listen.rpartition(":")
    return f"{ {'0.0.0.0': '127.0.0.1', '[::]': '[::1]'}.get(host, host) }:{port}"
