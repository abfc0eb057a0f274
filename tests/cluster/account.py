"""The service account of docs/deploy/kubernetes, with its Role, in a namespace of a cluster."""

import base64
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from fastlane_grpc.config import KubernetesHostSettings
from fastlane_grpc.model import HostKind
from tests.tools import ROOT

if TYPE_CHECKING:
    from tests.cluster.running import Cluster

MANIFESTS = ROOT / "docs" / "deploy" / "kubernetes"
ACCOUNT = "fastlane"


def manifests() -> list[Any]:
    return list(yaml.safe_load_all((MANIFESTS / "fastlane.yaml").read_text()))


def of_kind(kind: str) -> Any:
    [found] = [each for each in manifests() if each["kind"] == kind]
    return found


class Account:
    """The service account of the manifests in a namespace, with its Role."""

    def __init__(self, directory: Path, cluster: "Cluster", namespace: str) -> None:
        from kubernetes import client
        from kubernetes import config as kubeconfigs

        self.namespace = namespace
        self.rights = client.RbacAuthorizationV1Api(kubeconfigs.new_client_from_config(str(cluster.kubeconfig)))
        api = cluster.api()
        api.create_namespaced_service_account(namespace, of_kind("ServiceAccount"))
        self.rights.create_namespaced_role(namespace, of_kind("Role"))
        self.rights.create_namespaced_role_binding(namespace, of_kind("RoleBinding"))
        wanted = {"spec": {"expirationSeconds": 3600}}
        self.token = api.create_namespaced_service_account_token(ACCOUNT, namespace, wanted).status.token
        self.kubeconfig = directory / "account.json"
        contents = yaml.safe_load(cluster.kubeconfig.read_text())
        for user in contents["users"]:
            user["user"] = {"token": self.token}
        self.kubeconfig.write_text(json.dumps(contents))
        self.cluster = contents["clusters"][0]["cluster"]
        self.host = KubernetesHostSettings(
            "pods", HostKind.KUBERNETES, namespace, "kit:1", "127.0.0.1:1", self.kubeconfig
        )

    def authority(self) -> bytes:
        if data := self.cluster.get("certificate-authority-data"):
            return base64.b64decode(data)
        return Path(self.cluster["certificate-authority"]).read_bytes()

    def allow(self, *verbs: str) -> None:
        """Replace the verbs of the Role."""
        role = of_kind("Role")
        role["rules"][0]["verbs"] = list(verbs)
        self.rights.replace_namespaced_role(ACCOUNT, self.namespace, role)

    def add(self, rule: Any) -> None:
        """Add a rule to those of the Role."""
        role = of_kind("Role")
        role["rules"].append(rule)
        self.rights.replace_namespaced_role(ACCOUNT, self.namespace, role)

    @contextmanager
    def with_cluster_role(self, role: Any, binding: Any) -> Iterator[None]:
        """Give the account a role in the whole cluster, within the context."""
        name = f"{self.namespace}-nodes"
        for each in (role, binding):
            each["metadata"]["name"] = name
        binding["roleRef"]["name"] = name
        binding["subjects"][0]["namespace"] = self.namespace
        self.rights.create_cluster_role(role)
        self.rights.create_cluster_role_binding(binding)
        try:
            yield
        finally:
            self.rights.delete_cluster_role_binding(name)
            self.rights.delete_cluster_role(name)

    def missing(self, host: KubernetesHostSettings | None = None) -> list[str]:
        from fastlane_grpc.kubernetes.diagnostics import check_up

        return list(check_up(host or self.host).missing)
