"""A server's lower floors over one namespace of a cluster, with the server for relays."""

import asyncio
from collections.abc import Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastlane_grpc.capture.capture import Captures
from fastlane_grpc.capture.relay_tokens import RelayTokens
from fastlane_grpc.capture.relayed import RelayedCaptures, RelayKit
from fastlane_grpc.model import Execution, Outcome
from fastlane_grpc.rpc.relay import RelayServer
from tests.cluster.control_plane import ADDRESS
from tests.cluster.harness import ClusterHarness
from tests.cluster.kit import KIT_IMAGE
from tests.cluster.processes import children, holds_lock, recorders, relays, wait_until
from tests.engine import Going

if TYPE_CHECKING:
    from tests.cluster.node import Node
    from tests.cluster.running import Cluster

TOKENS = RelayTokens(b"a key of the test")
SH = ("sh", "-c")
# Numbered lines, of so many bytes each.
LINE_BYTES = 99
FLOOD = "yes | head -n {lines} | awk '{{printf \"%098d\\n\", NR}}'"


def lines(number: int) -> bytes:
    """Return the output of FLOOD."""
    return b"".join(b"%098d\n" % each for each in range(1, number + 1))


def outcome(execution: Execution) -> Outcome:
    assert execution.outcome is not None
    return execution.outcome


class RelayedHarness(ClusterHarness):
    """With a server for relays, at an address that outlives it. `serves` says whether the next one answers relays."""

    def __init__(self, directory: Path, cluster: "Cluster", namespace: str) -> None:
        self.port = 0
        self.serves = True
        self.server: RelayServer | None = None
        super().__init__(directory, cluster, namespace)

    def connect(self) -> Any:
        if self.serves:
            self.serve()
        return super().connect()

    def captures_of_pods(self) -> Captures:
        from fastlane_grpc.kubernetes import ClusterApi

        api = ClusterApi(kubeconfig=self.cluster.kubeconfig, namespace=self.namespace)
        kit = RelayKit(KIT_IMAGE, f"{ADDRESS}:{self.port}", TOKENS, 1 << 30, pod_of_account=api.pod_of_account)
        return RelayedCaptures(kit)

    def serve(self) -> None:
        async def begin() -> None:
            # A server of gRPC belongs to the loop on which it is made.
            self.server = RelayServer(TOKENS, self._directory_of, max_log_bytes=1 << 30)
            self.port = await self.server.start(f"{ADDRESS}:{self.port}")

        self._wait(begin())

    def close_floors(self) -> None:
        if self.server:
            self._wait(self.server.stop())
            self.server = None
        super().close_floors()

    def go_script(self, script: str, **more: Any) -> Going:
        return self.go("", script, entrypoint=SH, **more)

    def script(self, script: str, **more: Any) -> Execution:
        return self.run("", script, entrypoint=SH, **more)

    def pod(self, going: Going) -> Any:
        """Return the pod of an execution, as the API server has it."""
        return self.cluster.api().read_namespaced_pod(f"fastlane-{going.id}", self.namespace)

    def wait_for_end_of_job(self, going: Going) -> None:
        """Wait until the node has told that the job's own container has ended."""
        wait_until(lambda: _has_ended(self.pod(going)), "the container of the job has ended")

    def node_of(self, going: Going) -> "Node":
        """Return the node that an execution runs on."""
        return self.cluster.nodes[self.pod(going).spec.node_name]

    def volume_bytes(self, going: Going) -> int:
        """Return the room that the volume of a pod takes on its node."""
        (relay,) = relays(going.id)
        volume = Path(f"/proc/{relay}/root/.fastlane")
        return sum(path.lstat().st_blocks * 512 for path in volume.rglob("*"))

    def has_ended_on_node(self, going: Going) -> bool:
        """Whether the record is complete, whatever the cluster knows. The recorder may still wait for its relay.

        The recorder gives up its lock on the record when it has written the trailer.
        """
        return not any(children(each) or holds_lock(each) for each in recorders(going.id))

    async def _directory_of(self, execution_id: str) -> Path | None:
        return self.logs.path(execution_id)

    def _wait(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(60)


def _has_ended(pod: Any) -> bool:
    return any(each.name == "job" and each.state.terminated for each in pod.status.container_statuses or ())
