"""A Kubernetes cluster: whether it is there, and would take the pods of a host."""

from collections.abc import Iterator

from fastlane_grpc.backend import BackendDown, BackendRefuses
from fastlane_grpc.config import KubernetesHostSettings, Settings
from fastlane_grpc.doctor.finding import Finding, fail, ok, warn
from fastlane_grpc.kubernetes.diagnostics import check_up
from fastlane_grpc.machine.address import is_loopback
from fastlane_grpc.model import PodCaptureMode


def about_cluster(host: KubernetesHostSettings, settings: Settings) -> Iterator[Finding]:
    """Yield findings about the cluster of a host. Nothing is changed there."""
    try:
        checkup = check_up(host)
    except (BackendDown, BackendRefuses) as error:
        yield fail("cluster", str(error), "check kubeconfig and context, and whether this machine reaches the cluster")
        return
    yield ok("cluster", f"{checkup.version} at {checkup.address}")
    if checkup.missing:
        yield fail(
            "rights",
            f"the account may not {', '.join(checkup.missing)} in the namespace {host.namespace}",
            "add that to its Role; the one in docs/deploy/kubernetes has the right to logs as a comment",
        )
    else:
        yield ok("rights", f"the account may do what is needed in the namespace {host.namespace}")
    if checkup.refusal:
        yield fail("pods", f"the namespace {host.namespace} takes none: {checkup.refusal}", "mend that in the cluster")
    elif not checkup.missing:
        kit = f"; the kit image is {host.kit_image}" if host.kit_image else ""
        yield ok("pods", f"the namespace {host.namespace} would take one{kit}")
    yield _by_kubelet() if host.capture is PodCaptureMode.KUBELET else _relays(host, settings)


def _by_kubelet() -> Finding:
    return warn(
        "capture",
        "output is read from the log of the kubelet: logs may have gaps, and stderr counts as stdout",
        "set capture = relay, kit_image and relay_address if pods reach this server",
    )


def _relays(host: KubernetesHostSettings, settings: Settings) -> Finding:
    listen = settings.relay_listen
    if is_loopback(listen):
        advice = "set relay_listen to an address that the nodes reach"
        return warn("relays", f"the server listens on {listen}, which only pods of this machine reach", advice)
    if not settings.tls_cert and not settings.insecure:
        advice = "set tls_cert and tls_key, or accept it with --insecure"
        return fail(
            "relays", f"the server does not start: pods would send their output to {listen} in the clear", advice
        )
    how = "by TLS" if settings.tls_cert else "in the clear"
    return ok("relays", f"pods send their output to {host.relay_address} {how}; the server listens on {listen}")
