"""The manifests and the chart in docs/deploy/kubernetes: their Role on a real cluster, and that both say the same."""

import io
import os
import re
import subprocess
import sys
import tarfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import docker
import pytest
import yaml

from fastlane_grpc import config
from fastlane_grpc.capture.node_log import LogNotThere
from fastlane_grpc.config import KubernetesHostSettings
from fastlane_grpc.model import HostKind, Nodes, PodCaptureMode
from tests.cluster.account import MANIFESTS, Account, manifests, of_kind
from tests.cluster.kit import recorder_program
from tests.cluster.processes import wait_until
from tests.commands_served import environment
from tests.tools import ROOT

if TYPE_CHECKING:
    from tests.cluster.running import Cluster


def rendered(**replaced: Any) -> list[Any]:
    """Return the chart's objects. No Helm is at hand: its few words that the chart uses are carried out here."""
    values = yaml.safe_load((MANIFESTS / "chart" / "values.yaml").read_text())
    assert replaced.keys() <= values.keys()
    values |= replaced
    names = {f".Values.{name}": value for name, value in values.items()}
    names |= {".Release.Name": "fastlane", ".Release.Namespace": "fastlane"}
    lines, shown = [], [True]
    for line in (MANIFESTS / "chart" / "templates" / "fastlane.yaml").read_text().splitlines():
        if condition := re.fullmatch(r"\s*\{\{- (?:if (\S+)|(else)|(end)) \}\}", line):
            if condition[1]:
                shown.append(bool(names[condition[1]]))
            elif condition[2]:
                shown[-1] = not shown[-1]
            else:
                shown.pop()
        elif all(shown):
            lines.append(re.sub(r"\{\{-? (\S+)( \| nindent 4)? \}\}", lambda found: _value(names, found), line))
    text = "\n".join(lines)
    assert "{{" not in text, "the chart uses words that this test does not know"
    return list(yaml.safe_load_all(text))


def _value(names: Mapping[str, Any], found: "re.Match[str]") -> str:
    value = str(names[found[1]])
    return "".join(f"\n    {line}" for line in value.splitlines()) if found[2] else value


def settings_of(objects: list[Any], directory: Path) -> config.Settings:
    """Return the settings that the server has, by its file and its environment."""
    [map_] = [each for each in objects if each["kind"] == "ConfigMap"]
    [stateful] = [each for each in objects if each["kind"] == "StatefulSet"]
    [server] = stateful["spec"]["template"]["spec"]["containers"]
    file = directory / "fastlane.toml"
    file.write_text(map_["data"]["fastlane.toml"])
    image = re.findall(r"(FASTLANE_\w+)=(\S+)", (ROOT / "docs" / "deploy" / "Dockerfile").read_text())
    environ = dict(image) | {each["name"]: each["value"] for each in server["env"]}
    return config.load({}, environ, file)


def test_the_chart_makes_the_manifests_of_its_own_values() -> None:
    assert rendered() == manifests()


def test_the_settings_of_the_manifests_are_settings(tmp_path: Path) -> None:
    settings = settings_of(manifests(), tmp_path)
    [host] = settings.kubernetes_hosts
    assert (host.namespace, host.kubeconfig, settings.insecure) == ("fastlane", None, True)
    assert settings.relay_listen == config.DEFAULT_RELAY_LISTEN
    ports = {each["name"]: each["port"] for each in of_kind("Service")["spec"]["ports"]}
    assert host.relay_address == f"fastlane.fastlane.svc:{ports['relays']}"
    assert (ports["grpc"], ports["http"]) == (7020, 10000)


def test_values_of_the_chart_reach_the_settings(tmp_path: Path) -> None:
    objects = rendered(
        tlsSecret="cert", auth="tokens", hostSettings='node_selector = "a=b"\ntolerations = "c"', maxRunning=7
    )
    settings = settings_of(objects, tmp_path)
    [host] = settings.kubernetes_hosts
    assert (settings.auth, settings.insecure, host.max_running) == ("tokens", False, 7)
    assert (str(settings.tls_cert), str(settings.relay_ca)) == (
        "/etc/fastlane-tls/tls.crt",
        "/etc/fastlane-tls/ca.crt",
    )
    assert (host.node_selector, host.tolerations) == (("a=b",), ("c",))


def test_the_chart_without_a_kit_has_the_log_of_the_kubelet_and_its_right(tmp_path: Path) -> None:
    objects = rendered(kitImage="")
    [host] = settings_of(objects, tmp_path).kubernetes_hosts
    assert (host.capture, host.kit_image, host.relay_address) == (PodCaptureMode.KUBELET, "", "")
    [role] = [each for each in objects if each["kind"] == "Role"]
    assert {resource: tuple(rule["verbs"]) for rule in role["rules"] for resource in rule["resources"]} == {
        "pods": ("create", "delete", "get", "list", "patch", "watch"),
        "pods/log": ("get",),
    }


def test_the_network_policy_lets_in_the_pods_of_jobs_by_a_label_that_they_have() -> None:
    from fastlane_grpc.kubernetes.pod_body import EXECUTION_LABEL

    rules = of_kind("NetworkPolicy")["spec"]["ingress"]
    [relays] = [rule for rule in rules if [port["port"] for port in rule["ports"]] == ["relays"]]
    assert relays["from"] == [{"podSelector": {"matchExpressions": [{"key": EXECUTION_LABEL, "operator": "Exists"}]}}]


# ---- the client library and the kit


def test_a_server_without_the_client_library_says_what_to_install(tmp_path: Path) -> None:
    host = {"name": "pods", "kind": "kubernetes", "namespace": "a", "kit_image": "kit:1", "relay_address": "a:1"}
    file = tmp_path / "fastlane.toml"
    file.write_text("[[hosts]]\n" + "".join(f'{name} = "{value}"\n' for name, value in host.items()))
    # As where the extra is not installed.
    without = "import sys; sys.modules['kubernetes'] = None; from fastlane_grpc.cli import main; main()"
    command = [sys.executable, "-c", without, "server", "--insecure", "--config", str(file), "--listen", "127.0.0.1:0"]
    command += ["--data-dir", str(tmp_path / "data"), "--http-listen", "off", "--relay-listen", "127.0.0.1:0"]
    refused = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=60)
    assert refused.returncode == 1
    assert refused.stderr.endswith(
        "fastlane: host 'pods': the client library of Kubernetes is not installed: `pip install "
        "'fastlane-grpc[kubernetes]'` where the server is installed, or remove hosts of kind kubernetes\n"
    )


@pytest.mark.cluster
@pytest.mark.timeout(180)
def test_the_kit_has_two_static_programs_and_nothing_else(tmp_path: Path, sdk: docker.DockerClient) -> None:
    tag = f"fastlane-kit-test:{os.getpid()}"
    subprocess.run([ROOT / ".ci" / "kit", tag], check=True, stdin=subprocess.DEVNULL)
    try:
        image = sdk.images.get(tag)
        files: dict[str, bytes] = {}
        container = sdk.api.create_container(tag, command=["prepared", "/nothing"])
        try:
            archive = b"".join(sdk.api.export(container))
        finally:
            sdk.api.remove_container(container)
        with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
            for member in tar:
                if member.isfile() and member.mode & 0o111 and (content := tar.extractfile(member)):
                    files[member.name] = content.read()
        assert image.attrs["Config"]["Entrypoint"] == ["/relay"]
        assert {name for name, content in files.items() if content} - {".dockerenv"} == {"relay", "recorder"}
        assert files["recorder"] == recorder_program().read_bytes()
        # No interpreter is named: a program that is linked statically.
        assert all(b"/ld-" not in content[:4096] for content in files.values())
    finally:
        sdk.images.remove(tag, force=True)


# ---- the Role, on a real cluster


@pytest.fixture
def account(tmp_path: Path, cluster: "Cluster", namespace: str) -> Account:
    account = Account(tmp_path, cluster, namespace)
    wait_until(lambda: not account.missing(), "the role is in force")
    return account


@pytest.mark.cluster
@pytest.mark.timeout(180)
def test_the_role_of_the_manifests_has_each_right_that_is_needed_and_no_other(account: Account) -> None:
    from fastlane_grpc.backend import BackendRefuses
    from fastlane_grpc.kubernetes.configured import api_of
    from fastlane_grpc.kubernetes.diagnostics import RIGHTS

    [rule] = of_kind("Role")["rules"]
    assert {each: tuple(rule["verbs"]) for each in rule["resources"]} == RIGHTS
    api = api_of(account.host)
    body = {"metadata": {"name": "x"}, "spec": {"containers": [{"name": "x", "image": "x"}]}}
    calls: Mapping[str, Callable[[], object]] = {
        "create": lambda: api.create(body, dry_run=True),
        "delete": lambda: api.delete("x", grace_seconds=0, uid="x"),
        "get": lambda: api.pod("x"),
        "list": lambda: api.pods("a=b"),
        "patch": lambda: api.patch("x", {"metadata": {}}),
        "watch": lambda: api.watch("a=b", "1", silence_seconds=5),
    }
    assert tuple(sorted(calls)) == RIGHTS["pods"]
    for verb, call in calls.items():
        account.allow(*(other for other in calls if other != verb))
        wait_until(lambda verb=verb: account.missing() == [f"{verb} pods"], f"{verb} is taken away")
        with pytest.raises(BackendRefuses) as refused:
            call()
        assert f"cannot {verb} resource" in str(refused.value.diagnosis.advice)
        assert "look at its Role" in refused.value.diagnosis.advice


@pytest.mark.cluster
@pytest.mark.timeout(180)
def test_without_relays_one_right_more_is_needed(account: Account) -> None:
    from fastlane_grpc.backend import BackendDown, BackendRefuses
    from fastlane_grpc.kubernetes import PodLogs
    from fastlane_grpc.kubernetes.configured import api_of
    from fastlane_grpc.kubernetes.diagnostics import RIGHTS_OF_KUBELET

    host = replace(account.host, capture=PodCaptureMode.KUBELET)
    assert account.missing(host) == ["get pods/log"]
    logs = PodLogs(api_of(host))
    with pytest.raises(BackendDown, match="may not get pods/log in the namespace"):
        logs.check()
    with pytest.raises(BackendRefuses, match="cannot get resource"):
        list(logs.log_of("x").read(None))
    [right] = [rule for rule in rules_without_kit() if rule["resources"] != ["pods"]]
    assert {each: tuple(right["verbs"]) for each in right["resources"]} == RIGHTS_OF_KUBELET
    account.add(right)
    wait_until(lambda: account.missing(host) == [], "the right is in force")
    logs.check()
    with pytest.raises(LogNotThere):
        list(logs.log_of("x").read(None))


@pytest.mark.cluster
@pytest.mark.timeout(180)
def test_nodes_are_counted_where_the_account_may_list_them(account: Account, cluster: "Cluster") -> None:
    from fastlane_grpc.kubernetes.configured import api_of

    api = api_of(account.host)
    assert api.nodes("") is None
    objects = rendered(countNodes=True)
    assert {each["kind"] for each in objects} - {each["kind"] for each in manifests()} == {
        "ClusterRole",
        "ClusterRoleBinding",
    }
    [role] = [each for each in objects if each["kind"] == "ClusterRole"]
    [binding] = [each for each in objects if each["kind"] == "ClusterRoleBinding"]
    with account.with_cluster_role(role, binding):
        wait_until(lambda: api.nodes("") is not None, "the right is in force")
        nodes = cluster.api().list_node().items
        counted = api.nodes("")
        assert counted
        assert (counted.total, counted.ready) == (len(nodes), sum(map(is_ready, nodes)))
        name = nodes[0].metadata.name
        assert api.nodes(f"kubernetes.io/hostname={name}") == Nodes(int(is_ready(nodes[0])), 1)
        assert api.nodes("fastlane.test/nothing=here") == Nodes(0, 0)


def is_ready(node: Any) -> bool:
    return any(each.type == "Ready" and each.status == "True" for each in node.status.conditions)


def rules_without_kit() -> list[Any]:
    """Return the rules of the Role of the chart, for pods without relays."""
    [role] = [each for each in rendered(kitImage="") if each["kind"] == "Role"]
    return list(role["rules"])


@pytest.mark.cluster
@pytest.mark.timeout(180)
def test_a_server_in_a_pod_uses_the_account_of_its_pod(
    account: Account, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from kubernetes.config import incluster_config

    # What a pod has: an address in two variables, and two files, which are here elsewhere.
    server = re.fullmatch(r"https://([^:]+):(\d+)", account.cluster["server"])
    assert server
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", server[1])
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", server[2])
    for name, content in (("TOKEN", account.token.encode()), ("CERT", account.authority())):
        (tmp_path / name).write_bytes(content)
        monkeypatch.setattr(incluster_config, f"SERVICE_{name}_FILENAME", str(tmp_path / name))
    in_pod = KubernetesHostSettings("pods", HostKind.KUBERNETES, account.namespace, "kit:1", "127.0.0.1:1")
    assert account.missing(in_pod) == []
    assert account.missing(account.host) == []
