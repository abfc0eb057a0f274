"""Looks at all that a server needs, from outside and without changing anything: what is wrong, and what to do about
it."""

from collections.abc import Iterator
from dataclasses import replace

from fastlane_grpc.config import KubernetesHostSettings, Settings
from fastlane_grpc.docker.diagnostics import Checkup, Found
from fastlane_grpc.doctor.disk import about_database, about_directory
from fastlane_grpc.doctor.engine import about_engine, look
from fastlane_grpc.doctor.finding import Finding, Level, ok
from fastlane_grpc.doctor.machine import about_file_size, about_inotify, about_open_files
from fastlane_grpc.doctor.server import about_http, about_server
from fastlane_grpc.doctor.tracing import about_tracing

__all__ = ["Finding", "Level", "examine"]


def examine(settings: Settings) -> Iterator[Finding]:
    """One finding after the other, as soon as it is known, of a server with these settings on this machine."""
    containers: list[Found] | None = None
    for host in settings.hosts:
        if isinstance(host, KubernetesHostSettings):
            # Imported here: most servers have no cluster.
            from fastlane_grpc.doctor.cluster import about_cluster

            findings = about_cluster(host, settings)
        else:
            checkup = look(host.engine, host.engine_cert_dir)
            if isinstance(checkup, Checkup):
                containers = [*(containers or ()), *checkup.containers]
            findings = about_engine(host.engine, checkup)
        for finding in findings:
            yield finding if len(settings.hosts) == 1 else replace(finding, check=f"{finding.check} of {host.name}")
    yield from about_directory(settings.data_dir, settings.min_free_bytes)
    yield from about_database(settings.data_dir, containers)
    yield about_inotify(settings)
    yield about_open_files(settings)
    yield about_file_size()
    yield ok("secret names", f"{settings.secret_names} (setting secret_names)")
    if settings.tracing:
        yield about_tracing()
    yield from about_server(settings.listen, encrypted=bool(settings.tls_cert))
    yield about_http(settings.http_listen, encrypted=bool(settings.tls_cert))
