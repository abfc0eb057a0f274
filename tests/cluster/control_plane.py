"""The control plane: etcd, the API server, the controllers and the scheduler, on a bridge that the nodes are on."""

import json
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

from kubernetes import client, config
from kubernetes.client import ApiException
from urllib3.exceptions import HTTPError

from tests.certificates import Authority
from tests.cluster.processes import Failed, children, end, kill, run, runs, spawn, start, tail, wait_until
from tests.tools import tool

# Of the control plane on the nodes' bridge, in the network namespace of the tests.
ADDRESS = "10.123.0.1"
BRIDGE = "nodes"
_PORT = 6443
# Of the API server: on its own machine, on the bridge, and as a service, the first one of all.
_ADDRESSES = ("127.0.0.1", ADDRESS, "10.96.0.1")
_ADMIN, _USER = "admin-token", "user-token"


class ControlPlane:
    """The control plane in `directory`, of the programs in `programs`."""

    def __init__(self, directory: Path, programs: Path) -> None:
        self.kubeconfig = directory / "kubeconfig"
        # For the user "user", whose only rights are those that a test binds to the name.
        self.user_kubeconfig = directory / "kubeconfig-user"
        self._directory = directory
        self._programs = programs
        # The first process of its own namespace for processes, with which all others end.
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        """Bring it up, and return when it takes pods."""
        self._directory.mkdir()
        command = ["unshare", "--pid", "--fork", "--kill-child=KILL", self._programs / "pause"]
        self._process = process = spawn(command, self._directory / "init.log")
        wait_until(lambda: bool(children(process.pid)), "the first process of the control plane starts")
        self._pid_file("init").write_text(str(children(process.pid)[0]))
        self._make_bridge()
        self._make_files()
        self._start_etcd()
        self.start_api_server()
        kubeconfig = f"--kubeconfig={self.kubeconfig}"
        self._spawn(
            "kube-controller-manager",
            kubeconfig,
            f"--service-account-private-key-file={self._directory / 'accounts.key'}",
            f"--root-ca-file={self._directory / 'ca.pem'}",
            "--leader-elect=false",
            "--bind-address=127.0.0.1",
        )
        self._spawn("kube-scheduler", kubeconfig, "--leader-elect=false", "--bind-address=127.0.0.1")
        self._wait("kube-controller-manager", lambda: has_service_account(self.api(), "default"))

    def api(self) -> client.CoreV1Api:
        """Return a client with all rights."""
        return client.CoreV1Api(config.new_client_from_config(str(self.kubeconfig)))

    def start_api_server(self) -> None:
        """Start the API server, also again after `kill_api_server`, and return when it is ready."""
        files = self._directory
        self._spawn(
            "kube-apiserver",
            "--etcd-servers=http://127.0.0.1:2379",
            f"--advertise-address={ADDRESS}",
            f"--secure-port={_PORT}",
            f"--tls-cert-file={files / 'api.pem'}",
            f"--tls-private-key-file={files / 'api.key'}",
            f"--token-auth-file={files / 'tokens.csv'}",
            "--authorization-mode=RBAC",
            f"--service-account-key-file={files / 'accounts.pem'}",
            f"--service-account-signing-key-file={files / 'accounts.key'}",
            "--service-account-issuer=https://kubernetes.default",
            "--service-cluster-ip-range=10.96.0.0/24",
            "--allow-privileged=true",
            "--kubelet-preferred-address-types=InternalIP",
            "--profiling=false",
        )
        self._wait("kube-apiserver", self._is_ready)

    def kill_api_server(self) -> None:
        """Kill the API server with -9."""
        kill(self._pid_file("kube-apiserver"))

    def stop(self) -> None:
        """Take it down."""
        end(self._process, signal.SIGKILL)

    def _make_bridge(self) -> None:
        run("ip", "link", "set", "lo", "up")
        run("ip", "link", "add", BRIDGE, "type", "bridge")
        run("ip", "address", "add", f"{ADDRESS}/24", "dev", BRIDGE)
        run("ip", "link", "set", BRIDGE, "up")
        Path("/proc/sys/net/ipv4/ip_forward").write_text("1")

    def _make_files(self) -> None:
        files = self._directory
        authority = Authority(files)
        api = authority.sign(
            "api", days=10, names=",".join(["DNS:kubernetes,DNS:localhost", *(f"IP:{each}" for each in _ADDRESSES)])
        )
        accounts = authority.sign("accounts", days=10)
        authority.cert.rename(files / "ca.pem")
        for name, pair in (("api", api), ("accounts", accounts)):
            pair.cert.rename(files / f"{name}.pem")
            pair.key.rename(files / f"{name}.key")
        (files / "tokens.csv").write_text(f'{_ADMIN},admin,1,"system:masters"\n{_USER},user,2\n')
        for path, token in ((self.kubeconfig, _ADMIN), (self.user_kubeconfig, _USER)):
            path.write_text(json.dumps(_kubeconfig(files / "ca.pem", token)))
            path.chmod(0o600)

    def _start_etcd(self) -> None:
        self._spawn(
            tool("etcd"),
            "--data-dir",
            self._directory / "etcd",
            "--log-level",
            "warn",
            "--listen-client-urls",
            "http://127.0.0.1:2379",
            "--advertise-client-urls",
            "http://127.0.0.1:2379",
            "--listen-peer-urls",
            "http://127.0.0.1:2380",
        )

    def _is_ready(self) -> bool:
        try:
            client_ = self.api().api_client
            request = client_.param_serialize("GET", "/readyz", auth_settings=["BearerToken"])
            return bool(client_.call_api(*request, _request_timeout=5).status == 200)
        except (ApiException, HTTPError):
            return False

    def _spawn(self, program: str | Path, *words: str | Path) -> None:
        name = Path(program).name
        init = self._pid_file("init").read_text()
        command = ["nsenter", "--target", init, "--pid", self._programs / program, *words]
        start(command, self._log(name), self._pid_file(name))

    def _wait(self, name: str, true: Callable[[], bool]) -> None:
        def is_up() -> bool:
            if not runs(self._pid_file(name)):
                raise Failed(f"{name} ended; its last words:\n{tail(self._log(name))}")
            return true()

        wait_until(is_up, f"{name} is ready")

    def _pid_file(self, name: str) -> Path:
        return self._directory / f"{name}.pid"

    def _log(self, name: str) -> Path:
        return self._directory / f"{name}.log"


def has_service_account(api: client.CoreV1Api, namespace: str) -> bool:
    """Whether pods can be created in the namespace."""
    try:
        api.read_namespaced_service_account("default", namespace)
    except (ApiException, HTTPError):
        return False
    return True


def is_ready(api: client.CoreV1Api, node: str) -> bool:
    """Whether the node takes pods."""
    try:
        conditions = api.read_node(node).status.conditions or ()
    except (ApiException, HTTPError):
        return False
    return any(each.type == "Ready" and each.status == "True" for each in conditions)


def _kubeconfig(authority: Path, token: str) -> object:
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [
            {
                "name": "own",
                "cluster": {"server": f"https://{ADDRESS}:{_PORT}", "certificate-authority": str(authority)},
            }
        ],
        "users": [{"name": "own", "user": {"token": token}}],
        "contexts": [{"name": "own", "context": {"cluster": "own", "user": "own"}}],
        "current-context": "own",
    }
