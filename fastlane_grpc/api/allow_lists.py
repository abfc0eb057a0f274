"""The choice of what jobs may use of their hosts, and of the secrets of the operator."""

from collections.abc import Iterator

from fastlane_grpc.config import Settings
from fastlane_grpc.errors import Refusal, Violation
from fastlane_grpc.model import JobSpec, NotAllowed
from fastlane_grpc.secrets import NamedSecrets, RegistryCredentials


class AllowLists:
    """The lists of all hosts. A job may use what each host of its task's pool allows: it can run on any of them."""

    def __init__(self, settings: Settings) -> None:
        self._pools = settings.pools_of_hosts
        self._allowed = {host.name: host.allowed for host in settings.hosts}
        self._clusters = {host.name for host in settings.kubernetes_hosts}
        self._credentials = RegistryCredentials(settings.registries)
        self._secrets = NamedSecrets(settings.secrets)

    def violations(self, task_id: str, spec: JobSpec) -> Iterator[Violation]:
        """Yield a violation for each field with what the job may not use, for the first host that does not allow it."""
        found: dict[str, Violation] = {}
        for host in self._pools.hosts_of(self._pools.of_task(task_id)):
            for each in self._allowed[host].refused(spec):
                found.setdefault(each.field, _violation(each, host, is_cluster=host in self._clusters))
        yield from found.values()

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


def _violation(refused: NotAllowed, host: str, *, is_cluster: bool) -> Violation:
    where = f"on host {host!r}, which may run the job"
    if is_cluster and refused.field == "spec.gpus":
        return Violation(refused.field, f"the {refused.wish} is not allowed {where}: see gpu_resource")
    if is_cluster:
        return Violation(
            refused.field,
            f"the {refused.wish} is of a Docker engine, and is not had {where}: give the task a pool of Docker hosts",
        )
    return Violation(refused.field, f"the {refused.wish} is not allowed {where}: see {refused.setting}")
