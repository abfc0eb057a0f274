"""A node: containerd and a kubelet, in namespaces of their own for network, mounts and processes.

Whatever they write to /var/lib, /var/log and /run is in the directory of the node or in memory, and what is mounted
there is gone with the last process. Of the machine a node has its cgroups alone.
"""

import json
import signal
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tests.cluster import cgroups
from tests.cluster.control_plane import ADDRESS, BRIDGE
from tests.cluster.processes import Failed, children, end, kill, run, runs, spawn, start, tail, wait_until
from tests.tools import ROOT

KUBELET_PORT = 10250
PAUSE_IMAGE = "fastlane.example/pause:1"

# The first process. A kubelet insists on three settings of the kernel, which would be the whole machine's; so it is
# shown what it wants to see.
_INIT = """
set -e
cd "$1"
mkdir -p lib log settings
mount --bind lib /var/lib
mount --bind log /var/log
mount -t tmpfs tmpfs /run
for each in vm/overcommit_memory=1 kernel/panic=10 kernel/panic_on_oops=1; do
    file=settings/$(basename "${each%=*}")
    echo "${each#*=}" >"$file"
    mount --bind "$file" "/proc/sys/${each%=*}"
done
echo ready
exec "$2"
"""


@dataclass(frozen=True, slots=True)
class Node:
    """A running node. `init` is the id of its first process; `group` the name of its cgroups."""

    name: str
    number: int
    directory: Path
    programs: Path
    kubeconfig: Path
    group: str
    init: int = 0

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Node":
        paths = {name: Path(values[name]) for name in ("directory", "programs", "kubeconfig")}
        return cls(**{**values, **paths})

    def as_json(self) -> Mapping[str, Any]:
        return {name: str(value) if isinstance(value, Path) else value for name, value in asdict(self).items()}

    @property
    def address(self) -> str:
        return f"10.123.0.{10 + self.number}"

    @property
    def pods(self) -> str:
        """The addresses of the pods on this node."""
        return f"10.88.{self.number}.0/24"

    # -- faults

    def cut_off(self) -> None:
        """Cut the node off from the control plane, the other nodes and the server."""
        run("ip", "link", "set", self.name, "down")

    def reconnect(self) -> None:
        """Undo `cut_off`."""
        run("ip", "link", "set", self.name, "up")
        run("ip", "route", "replace", self.pods, "via", self.address)

    def kill(self, program: str) -> None:
        """Kill "kubelet" or "containerd" with -9; containers run on."""
        kill(self._pid_file(program))

    def start_kubelet(self) -> None:
        """Start the kubelet, also again after `kill`, and return when it serves.

        A kubelet ends if containerd is not ready for it. As on any node, it is then started again.
        """
        words = (
            f"--config={self.directory / 'kubelet.json'}",
            f"--kubeconfig={self.kubeconfig}",
            f"--hostname-override={self.name}",
            f"--node-ip={self.address}",
        )

        def serves() -> bool:
            if not runs(self._pid_file("kubelet")):
                with suppress(Failed):
                    self._start(self.programs / "kubelet", *words)
            return self._listens(KUBELET_PORT)

        wait_until(serves, f"the kubelet of {self.name} serves")

    def start_proxy(self) -> None:
        """Start kube-proxy, by which pods of the node reach services, unless it runs already.

        All that it passes on comes from the node, by its address: so answers come back through it.
        """
        if runs(self._pid_file("kube-proxy")):
            return
        # Limits of connections are the kernel's, and would be the whole machine's.
        of_kernel = ("max-per-core", "min", "tcp-timeout-established", "tcp-timeout-close-wait")
        self._start(
            self.programs / "kube-proxy",
            f"--kubeconfig={self.kubeconfig}",
            f"--hostname-override={self.name}",
            "--proxy-mode=iptables",
            "--masquerade-all",
            *(f"--conntrack-{each}=0" for each in of_kernel),
        )

    def start_containerd(self) -> None:
        """Start containerd, also again after `kill`, and return when it answers."""
        self._start("containerd", "--config", self.directory / "containerd.toml")
        wait_until(lambda: self._ctr("version") == 0, f"containerd of {self.name} answers")

    def import_image(self, archive: Path) -> None:
        """Give an image to the node, from a file as `docker save` writes it."""
        if self._ctr("images", "import", archive):
            raise Failed(f"{archive} is no image that {self.name} takes: {tail(self.directory / 'ctr.log')}")

    # -- parts

    def enter(self, *command: str | Path) -> Sequence[str | Path]:
        """Return the command as it is to be run to have it run on the node."""
        return ["nsenter", "--target", str(self.init), "--net", "--mount", "--pid", *command]

    def write_files(self) -> None:
        """Write the configuration of containerd, of its network and of the kubelet."""
        network = self.directory / "network"
        network.mkdir()
        (network / "10-bridge.conflist").write_text(json.dumps(self._network()))
        plugins = (ROOT / ".tools/bin/cni").resolve()
        (self.directory / "containerd.toml").write_text(
            _CONTAINERD.format(pause=PAUSE_IMAGE, plugins=plugins, network=network)
        )
        (self.directory / "kubelet.json").write_text(json.dumps(self._kubelet()))

    def make_network(self) -> None:
        """Connect the node to the bridge of the control plane."""
        run("ip", "link", "add", self.name, "type", "veth", "peer", "name", "eth0", "netns", str(self.init))
        run("ip", "link", "set", self.name, "master", BRIDGE, "up")
        for words in (
            "link set lo up",
            f"address add {self.address}/24 dev eth0",
            "link set eth0 up",
            f"route add default via {ADDRESS}",
        ):
            run(*self.enter("ip", *words.split()))
        run(*self.enter("sh", "-c", "echo 1 >/proc/sys/net/ipv4/ip_forward"))
        run("ip", "route", "add", self.pods, "via", self.address)

    def _network(self) -> object:
        addresses = {"type": "host-local", "ranges": [[{"subnet": self.pods}]], "routes": [{"dst": "0.0.0.0/0"}]}
        bridge = {"type": "bridge", "bridge": "pods", "isGateway": True, "ipMasq": False, "ipam": addresses}
        return {"cniVersion": "0.4.0", "name": "pods", "plugins": [bridge]}

    def _kubelet(self) -> object:
        return {
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "address": self.address,
            # The API server, which may then read logs without a certificate, is the only one on this network.
            "authentication": {"anonymous": {"enabled": True}, "webhook": {"enabled": False}},
            "authorization": {"mode": "AlwaysAllow"},
            "cgroupDriver": "cgroupfs",
            "cgroupRoot": f"/{self.group}",
            "failCgroupV1": False,
            "failSwapOn": False,
            "containerRuntimeEndpoint": "unix:///run/containerd/containerd.sock",
            "evictionHard": {"memory.available": "100Mi"},
            # No image is ever fetched again: none is deleted.
            "imageGCHighThresholdPercent": 100,
            "imageGCLowThresholdPercent": 99,
            "makeIPTablesUtilChains": False,
            "maxPods": 200,
            "resolvConf": "",
            "serializeImagePulls": False,
            "readOnlyPort": 0,
            "healthzPort": 0,
        }

    def _start(self, program: str | Path, *words: str | Path) -> None:
        name = Path(program).name
        start(self.enter(program, *words), self._log(name), self._pid_file(name))

    def _listens(self, port: int) -> bool:
        """Whether a process of the node listens at the port."""
        for line in Path(f"/proc/{self.init}/net/tcp").read_text().splitlines()[1:]:
            _, local, _, state, *_ = line.split()
            if (local.rpartition(":")[2], state) == (f"{port:04X}", "0A"):
                return True
        return False

    def _log(self, program: str) -> Path:
        return self.directory / f"{program}.log"

    def _pid_file(self, program: str) -> Path:
        return self.directory / f"{program}.pid"

    def _ctr(self, *words: str | Path) -> int:
        with (self.directory / "ctr.log").open("ab") as output:
            command = self.enter("ctr", "--namespace", "k8s.io", *words)
            return subprocess.run(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output).returncode


class NodeProcess:
    """The first process of a node, with which all others end."""

    def __init__(self, name: str, number: int, directory: Path, programs: Path, kubeconfig: Path, group: str) -> None:
        directory.mkdir()
        cgroups.make(group)
        self._process = spawn(
            [
                *("unshare", "--net", "--mount", "--propagation", "private", "--pid", "--fork", "--kill-child=KILL"),
                *("--mount-proc", "sh", "-c", _INIT, "init", directory, programs / "pause"),
            ],
            directory / "init.log",
            stdout=subprocess.PIPE,
        )
        assert self._process.stdout
        if self._process.stdout.readline().strip() != "ready":
            raise Failed(f"{name} does not start: {tail(directory / 'init.log')}")
        init = children(self._process.pid)[0]
        self.node = Node(name, number, directory, programs, kubeconfig, group, init)

    def start(self, images: Sequence[Path]) -> None:
        """Start containerd and the kubelet, with these images."""
        self.node.write_files()
        self.node.make_network()
        self.node.start_containerd()
        for archive in images:
            self.node.import_image(archive)
        self.node.start_kubelet()

    def stop(self) -> None:
        """Kill all processes of the node; its network and its mounts are gone with them."""
        end(self._process, signal.SIGKILL)
        cgroups.remove(self.node.group)


# A machine without the right to lower a badness (CAP_SYS_RESOURCE) starts no sandbox otherwise.
_CONTAINERD = """\
version = 2
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{pause}"
disable_apparmor = true
restrict_oom_score_adj = true
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "{plugins}"
conf_dir = "{network}"
"""
