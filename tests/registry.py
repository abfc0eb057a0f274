"""A registry of images, as small as can be: one image, and every way in which a registry fails."""

import base64
import gzip
import hashlib
import json
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import MappingProxyType
from typing import Any

import docker
from docker.errors import APIError, ImageNotFound

from tests.engine import SECONDS, busybox_tar

MANIFEST_TYPE = "application/vnd.docker.distribution.manifest.v2+json"

# A forged line of fastlane's, a terminal's title and clipboard, and more than anybody reads.
HOSTILE_MESSAGE = (
    "manifest unknown\nsucceeded: exited with 0\n\x1b]0;PWNED\x07\x1b]52;c;aGVsbG8=\x07\x9b31m\u202e" + "x" * 5000
)


def digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


class Registry:
    """Serves one image under any name, with the tags `first` and `latest`. Names that begin with `no`, `denied`,
    `failing`, `hanging`, `limited`, `damaged` or `foreign` have what their first word says. `private/…` is for who has
    the `login`, NAME:PASSWORD."""

    def __init__(self, layer_tar: bytes, user: str = "", login: str = "") -> None:
        self._user = user
        self._authorization = f"Basic {base64.b64encode(login.encode()).decode()}"
        layer = gzip.compress(layer_tar, 1)
        config = self._config(digest(layer_tar), "linux")
        self.blobs = {digest(blob): blob for blob in (layer, config)}
        self.manifest = self._manifest(layer, config)
        windows = self._config(digest(layer_tar), "windows")
        self.blobs[digest(windows)] = windows
        self.foreign = self._manifest(layer, windows)
        # A layer that no engine has yet, and whose bytes are not those of its digest.
        damaged = gzip.compress(layer_tar + bytes(512), 1)
        its_config = self._config(digest(layer_tar + bytes(512)), "linux")
        self.blobs |= {digest(damaged): damaged[:-9] + b"damaged!!", digest(its_config): its_config}
        self.damaged = self._manifest(damaged, its_config)
        self.pulls: list[str] = []
        self.asked = threading.Event()
        self.release = threading.Event()
        self.closed = False
        # So many answers of failing/… are failures; then it works.
        self.failures = 10**9
        # So many answers of limited/… ask to wait.
        self.limited = 1

    @contextmanager
    def serving(self) -> Iterator["Registry"]:
        registry = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                registry.answer(self)

            def do_HEAD(self) -> None:
                registry.answer(self)

            def log_message(self, *args: object) -> None:
                """Says nothing."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.name = f"127.0.0.1:{self.server.server_port}"
        thread = threading.Thread(target=self.server.serve_forever, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            # A pull that still hangs shall come to nothing, and not finish behind the back of the next test.
            self.closed = True
            self.release.set()
            self.server.shutdown()
            self.server.server_close()
            thread.join()

    def answer(self, to: BaseHTTPRequestHandler) -> None:
        path = to.path.removeprefix("/v2/")
        kind = path.partition("/")[0]
        if kind == "hanging":
            self.asked.set()
            self.release.wait(60)
        if self.closed:
            to.close_connection = True
            self._fail(to, 404, "NAME_UNKNOWN", "closed")
        elif not path:
            self._send(to, 200, b"{}")
        elif kind == "denied":
            self._fail(to, 403, "DENIED", "requested access to the resource is denied")
        elif kind == "private" and to.headers["Authorization"] != self._authorization:
            self._fail(
                to, 401, "UNAUTHORIZED", "authentication required", {"WWW-Authenticate": 'Basic realm="private"'}
            )
        elif kind == "hostile":
            self._fail(to, 404, "MANIFEST_UNKNOWN", HOSTILE_MESSAGE)
        elif kind == "failing" and self.failures > 0:
            self.failures -= 1
            self._fail(to, 503, "UNAVAILABLE", "come back later")
        elif kind == "limited" and self.limited:
            # A HEAD is followed by a GET, whatever its answer.
            self.limited -= to.command == "GET"
            self._fail(to, 429, "TOOMANYREQUESTS", "retry-after: 1.6s, allowed: 1/minute")
        elif "/manifests/" in path:
            self._send_manifest(to, kind, path.rpartition("/")[2])
        elif blob := self.blobs.get(path.rpartition("/")[2]):
            self._send(to, 200, blob)
        else:
            self._fail(to, 404, "BLOB_UNKNOWN", "blob unknown to registry")

    def _send_manifest(self, to: BaseHTTPRequestHandler, kind: str, reference: str) -> None:
        manifest = {"foreign": self.foreign, "damaged": self.damaged}.get(kind, self.manifest)
        if reference not in {"first", "latest", digest(manifest)} or kind == "no":
            self._fail(to, 404, "MANIFEST_UNKNOWN", "manifest unknown")
            return
        self.pulls.append(reference)
        self._send(to, 200, manifest, {"Content-Type": MANIFEST_TYPE, "Docker-Content-Digest": digest(manifest)})

    def _fail(
        self,
        to: BaseHTTPRequestHandler,
        status: int,
        code: str,
        message: str,
        headers: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self._send(
            to,
            status,
            json.dumps({"errors": [{"code": code, "message": message}]}).encode(),
            {"Content-Type": "application/json", **headers},
        )

    def _send(
        self, to: BaseHTTPRequestHandler, status: int, body: bytes, headers: dict[str, str] | None = None
    ) -> None:
        to.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            to.send_header(name, value)
        to.end_headers()
        if to.command == "GET":
            to.wfile.write(body)

    def _config(self, layer_digest: str, system: str) -> bytes:
        return json.dumps(
            {
                "architecture": "amd64",
                "os": system,
                "config": {"Cmd": ["sh"], "User": self._user},
                "rootfs": {"type": "layers", "diff_ids": [layer_digest]},
            }
        ).encode()

    def _manifest(self, layer: bytes, config: bytes) -> bytes:
        def blob(media_type: str, data: bytes) -> dict[str, Any]:
            return {"mediaType": media_type, "size": len(data), "digest": digest(data)}

        content = {
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPE,
            "config": blob("application/vnd.docker.container.image.v1+json", config),
            "layers": [blob("application/vnd.docker.image.rootfs.diff.tar.gzip", layer)],
        }
        return json.dumps(content).encode()


@contextmanager
def registry_for(sdk: docker.DockerClient) -> Iterator[Registry]:
    """One that this engine can pull from, as from any on loopback. What it pulled is removed in the end."""
    registry = Registry(busybox_tar())
    try:
        with registry.serving():
            yield registry
    finally:
        for image in sdk.images.list():
            for name in [*image.tags, *(image.attrs["RepoDigests"] or ())]:
                if name.startswith(f"{registry.name}/"):
                    remove(sdk, name)


def remove(sdk: docker.DockerClient, name: str) -> None:
    """Removes a name, once the last container of the image is gone: by force the image would stay, without one. The
    last tag takes the digest with it."""
    until = time.monotonic() + SECONDS
    while True:
        try:
            return sdk.images.remove(name)
        except ImageNotFound:
            return None
        except APIError as error:
            if error.status_code != 409 or time.monotonic() > until:
                raise
            time.sleep(0.05)
