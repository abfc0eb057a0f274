"""The cluster beside which the tests run. What takes long to import is imported when a test asks for it."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.cluster.running import Cluster


@pytest.fixture(scope="session")
def cluster() -> "Cluster":
    """A cluster that takes pods: one of this machine, or the one that KUBECONFIG names."""
    from tests.cluster.running import running_cluster

    running = running_cluster()
    assert running, "no cluster: .ci/cluster runs a command beside one"
    return running


@pytest.fixture(scope="session")
def own_cluster(cluster: "Cluster") -> "Cluster":
    """A cluster whose parts a test may kill."""
    if cluster.control_plane is None:
        pytest.skip("the cluster is somebody else's: unset KUBECONFIG to have one of this machine")
    return cluster


@pytest.fixture
def namespace(cluster: "Cluster") -> Iterator[str]:
    """A namespace of the cluster, for one test."""
    name = cluster.make_namespace()
    yield name
    cluster.remove_namespace(name)
