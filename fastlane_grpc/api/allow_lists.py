"""The choice of what jobs may use: networks and volumes of their hosts, secrets of the operator."""

from collections.abc import Iterator

from fastlane_grpc.config import Settings
from fastlane_grpc.errors import Refusal, Violation
from fastlane_grpc.model import JobSpec
from fastlane_grpc.secrets import NamedSecrets, RegistryCredentials


class AllowLists:
    """The lists of all hosts. A job may use what each host of its task's pool allows: it can run on any of them."""

    def __init__(self, settings: Settings) -> None:
        self._pools = settings.pools_of_hosts
        self._networks = {host.name: frozenset(host.allow_networks) for host in settings.hosts}
        self._volumes = {host.name: frozenset(host.allow_volumes) for host in settings.hosts}
        self._credentials = RegistryCredentials(settings.registries)
        self._secrets = NamedSecrets(settings.secrets)

    def violations(self, task_id: str, spec: JobSpec) -> Iterator[Violation]:
        """Yield a violation for each network and each volume that the job may not use."""
        hosts = self._pools.hosts_of(self._pools.of_task(task_id))
        if spec.network not in {"", "none"}:
            for host in hosts:
                if spec.network not in self._networks[host]:
                    yield _refused("spec.network", "network", spec.network, host)
                    break
        for number, volume in enumerate(spec.volumes):
            for host in hosts:
                if volume.name not in self._volumes[host]:
                    yield _refused(f"spec.volumes[{number}].name", "volume", volume.name, host)
                    break

    def not_found(self, task_id: str, spec: JobSpec) -> Refusal | None:
        """Return the refusal of a job that names what is not there for its task."""
        try:
            if spec.registry_credential:
                self._credentials.named(spec.registry_credential, task_id)
            for name in spec.secret_envs.values():
                self._secrets.check(name, task_id)
        except Refusal as refusal:
            return refusal
        return None


def _refused(field: str, kind: str, name: str, host: str) -> Violation:
    return Violation(
        field, f"the {kind} {name!r} is not allowed on host {host!r}, which may run the job: see allow_{kind}s"
    )
