"""The client of a Kubernetes API server for one namespace: a method for each call that the backend needs.

A call returns what the server sent, as JSON, or raises BackendDown or ClusterRefuses. It goes through the official
client, which knows configurations, credentials and their renewal. Its objects are not used: to build them takes eight
times as long as to read the JSON.
"""

import copy
import json
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from urllib3.exceptions import HTTPError, ReadTimeoutError

from fastlane_grpc.backend import BackendDown
from fastlane_grpc.kubernetes.api_errors import ClusterRefuses, refusal_of
from fastlane_grpc.model import Nodes

Pod = Mapping[str, Any]

# The longest line of a watch that is kept: a few times the largest object that a cluster stores.
MAX_LINE_BYTES = 8 << 20
# The server ends a watch after this time, and the next one begins where it ended.
WATCH_SECONDS = 1800
# The form of an answer with one short row for each object, and the number of rows of nodes in an answer.
TABLE = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json"
NODES_AT_A_TIME = 500
# Requests at the same time, before one waits for another.
CONNECTIONS = 32


class ClusterApi:
    """The pods of one namespace. Every method may be called from any thread.

    The configuration is a file with a context, or without a file the account of the pod that the server runs in.
    """

    def __init__(
        self, *, kubeconfig: Path | None = None, context: str = "", namespace: str, answer_seconds: float = 30
    ) -> None:
        """Raises BackendDown if there is no configuration, or none that can be read."""
        # Not at the top: servers of Docker hosts alone do not have the client, and its import takes half a second.
        try:
            from kubernetes import client, config
            from kubernetes.config import ConfigException
        except ImportError as error:
            raise BackendDown(f"the client library of Kubernetes is not installed: {error}") from error
        self.namespace = namespace
        self._answer_seconds = answer_seconds
        configuration = client.Configuration()
        try:
            if kubeconfig is None:
                config.load_incluster_config(client_configuration=configuration)
            else:
                config.load_kube_config(str(kubeconfig), context=context or None, client_configuration=configuration)
        except (ConfigException, OSError) as error:
            raise BackendDown(f"the configuration of the cluster cannot be read: {error}") from error
        # A request that is sent twice would be answered for the second time only.
        configuration.retries = False
        configuration.connection_pool_maxsize = CONNECTIONS
        self.address = str(configuration.host)
        self._client = client.ApiClient(configuration)

    # -- pods

    def create(self, body: Mapping[str, Any], *, dry_run: bool = False) -> Pod:
        """Create a pod. `dry_run`: only find out whether it would be created."""
        pod: Pod = self._json("POST", self._pods, body=body, query=[("dryRun", "All")] if dry_run else [])
        return pod

    def pod(self, name: str) -> Pod | None:
        """Return the pod; None if there is none."""
        return self._found(lambda: self._json("GET", self._pod(name)))

    def patch(self, name: str, changes: Mapping[str, Any]) -> Pod:
        """Change what the changes name; null removes a field."""
        pod: Pod = self._json("PATCH", self._pod(name), body=changes, content_type="application/merge-patch+json")
        return pod

    def delete(self, name: str, *, grace_seconds: int | None, uid: str, version: str = "") -> bool:
        """Delete the pod with this uid. False: there is none, or it has another uid or version by now.

        `grace_seconds` is the time between SIGTERM and SIGKILL, None the pod's own; 0 does not wait for the node.
        """
        preconditions = {"uid": uid} | ({"resourceVersion": version} if version else {})
        options: dict[str, Any] = {"apiVersion": "v1", "kind": "DeleteOptions", "preconditions": preconditions}
        if grace_seconds is not None:
            options["gracePeriodSeconds"] = grace_seconds
        try:
            return self._found(lambda: self._json("DELETE", self._pod(name), body=options)) is not None
        except ClusterRefuses as refusal:
            if refusal.status == 409:
                return False
            raise

    def pods(self, labels: str) -> tuple[list[Pod], str]:
        """Return the pods with these labels, and the version of the list, from which a watch goes on."""
        answer = self._json("GET", self._pods, query=[("labelSelector", labels)])
        return list(answer["items"]), str(answer["metadata"]["resourceVersion"])

    def log(self, name: str, container: str, last_lines: int | None) -> Iterator[bytes]:
        """Yield the log of a container as its node has it now, in pieces: each line begins with its time.

        Raises OSError if the answer breaks off.
        """
        query = [("container", container), ("timestamps", "true")]
        query += [] if last_lines is None else [("tailLines", str(last_lines))]
        path = f"{self._pod(name)}/log"
        response = self._opened("GET", path, query=query, accept="*/*", read_seconds=self._answer_seconds)
        try:
            yield from response.stream(1 << 16)
        except HTTPError as error:
            raise OSError(f"the log broke off: {error}") from error
        finally:
            response.close()

    def watch(self, labels: str, version: str, *, silence_seconds: float | None) -> "Watch":
        """Return the changes of the pods with these labels, after this version of their list.

        Raises TimeoutError if the server takes the request, and is silent.
        """
        query = [
            ("labelSelector", labels),
            ("watch", "true"),
            ("resourceVersion", version),
            ("allowWatchBookmarks", "true"),
            ("timeoutSeconds", str(WATCH_SECONDS)),
        ]
        try:
            return Watch(self._opened("GET", self._pods, query=query, read_seconds=silence_seconds))
        except BackendDown as error:
            if isinstance(error.__cause__, ReadTimeoutError):
                raise TimeoutError("the watch is silent") from error
            raise

    # -- the server itself

    def version(self, answer_seconds: float | None = None) -> Mapping[str, Any]:
        """Return the version of the API server."""
        version: Mapping[str, Any] = self._json("GET", "/version", answer_seconds=answer_seconds)
        return version

    def namespace_uid(self) -> str:
        """Return the uid of the namespace; empty if the account may not read it."""
        try:
            answer = self._found(lambda: self._json("GET", f"/api/v1/namespaces/{self.namespace}"))
        except ClusterRefuses:
            return ""
        return str(answer["metadata"]["uid"]) if answer else ""

    def nodes(self, labels: str) -> Nodes | None:
        """Return the number of the nodes with these labels; None: the account may not list nodes.

        The server is asked for what people see of a node in a table: a node itself has ten kilobytes and more.
        """
        ready = total = 0
        query = [("labelSelector", labels), ("includeObject", "None"), ("limit", str(NODES_AT_A_TIME))]
        more: list[tuple[str, str]] = []
        while True:
            try:
                table = self._json("GET", "/api/v1/nodes", query=query + more, accept=TABLE)
            except ClusterRefuses:
                return None
            names = [column["name"] for column in table.get("columnDefinitions") or ()]
            if "Status" not in names:
                return None
            states = [str(row["cells"][names.index("Status")]).split(",") for row in table.get("rows") or ()]
            ready, total = ready + sum("Ready" in state for state in states), total + len(states)
            rest = (table.get("metadata") or {}).get("continue")
            if not rest:
                return Nodes(ready, total)
            more = [("continue", str(rest))]

    def may(self, verb: str, resource: str, subresource: str = "") -> bool:
        """Return whether the account has this right in the namespace."""
        wanted = {"namespace": self.namespace, "verb": verb, "resource": resource, "subresource": subresource}
        kind = {"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview"}
        path = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
        answer = self._json("POST", path, body={**kind, "spec": {"resourceAttributes": wanted}})
        return bool(answer["status"].get("allowed"))

    def pod_of_account(self, token: str) -> str:
        """Return the name of the pod of this namespace that a token of a service account is bound to; empty: none.

        The API server is asked as the account itself, which needs no right. Raises BackendDown.
        """
        from kubernetes import client

        configuration = copy.copy(self._client.configuration)
        # Not as the server itself: a certificate would be taken for the caller.
        configuration.cert_file = configuration.key_file = None
        configuration.refresh_api_key_hook = None
        configuration.api_key = {"authorization": f"Bearer {token}"}
        kind = {"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"}
        path = "/apis/authentication.k8s.io/v1/selfsubjectreviews"
        account = client.ApiClient(configuration)
        try:
            answer = self._json("POST", path, body=kind, account=account)
        except ClusterRefuses:
            return ""
        finally:
            account.rest_client.close()
        user = answer.get("status", {}).get("userInfo", {})
        if not str(user.get("username", "")).startswith(f"system:serviceaccount:{self.namespace}:"):
            return ""
        names = list((user.get("extra") or {}).get("authentication.kubernetes.io/pod-name") or [])
        return str(names[0]) if len(names) == 1 else ""

    def close(self) -> None:
        """Close all connections that are idle. The next call opens one."""
        self._client.rest_client.close()

    # -- requests

    @property
    def _pods(self) -> str:
        return f"/api/v1/namespaces/{self.namespace}/pods"

    def _pod(self, name: str) -> str:
        return f"{self._pods}/{name}"

    def _found(self, call: Callable[[], Pod]) -> Pod | None:
        try:
            return call()
        except ClusterRefuses as refusal:
            if refusal.status == 404:
                return None
            raise

    def _json(self, method: str, path: str, *, answer_seconds: float | None = None, **options: Any) -> Any:
        seconds = answer_seconds or self._answer_seconds
        response = self._opened(method, path, connect_seconds=seconds, read_seconds=seconds, **options)
        try:
            return json.loads(response.read())
        except (HTTPError, OSError, ValueError) as error:
            raise BackendDown(f"the API server broke off its answer: {error}") from error
        finally:
            response.release_conn()

    def _opened(
        self,
        method: str,
        path: str,
        *,
        query: list[tuple[str, str]] | None = None,
        body: object = None,
        content_type: str = "application/json",
        accept: str = "application/json",
        connect_seconds: float | None = None,
        read_seconds: float | None,
        account: Any = None,
    ) -> Any:
        """Return the response, whose body is not read yet. Raises BackendDown and ClusterRefuses."""
        from kubernetes.client import ApiException
        from kubernetes.config import ConfigException

        headers = {"Accept": accept, "Content-Type": content_type}
        try:
            caller: Any = account or self._client
            request = caller.param_serialize(
                method, path, query_params=query or [], header_params=headers, body=body, auth_settings=["BearerToken"]
            )
            # A number of seconds without a limit does not exist here: a week.
            limits = (connect_seconds or self._answer_seconds, read_seconds or 7 * 24 * 3600)
            response = caller.call_api(*request, _request_timeout=limits).response
        except ApiException as error:
            if not error.status:
                raise BackendDown(f"the API server does not answer: {error.reason}") from error
            raise refusal_of(int(error.status), error.body) from error
        except (HTTPError, OSError, ConfigException) as error:
            raise BackendDown(f"the API server does not answer: {error}") from error
        if not 200 <= response.status <= 299:
            try:
                text = response.read()
            except (HTTPError, OSError):
                text = b""
            response.release_conn()
            raise refusal_of(int(response.status), text)
        return response


class Watch:
    """The lines of a watch, until the server ends it."""

    def __init__(self, response: Any) -> None:
        self._response = response
        self._lock = threading.Lock()

    def lines(self) -> Iterator[bytes]:
        """Yield each line. Raises TimeoutError after a silence, OSError if the connection breaks."""
        rest = b""
        try:
            for piece in self._response.stream(1 << 16):
                *lines, rest = (rest + piece).split(b"\n")
                yield from lines
                if len(rest) > MAX_LINE_BYTES:
                    raise OSError(f"a line of the watch is longer than {MAX_LINE_BYTES} bytes")
        except ReadTimeoutError as error:
            raise TimeoutError("the watch is silent") from error
        except HTTPError as error:
            raise OSError(f"the watch broke off: {error}") from error
        finally:
            self.close()

    def cut(self) -> None:
        """End the watch, from any thread."""
        with self._lock, suppress(OSError, ValueError, RuntimeError):
            self._response.shutdown()

    def close(self) -> None:
        """Close the connection. No thread may be reading from it."""
        with self._lock:
            self._response.close()
