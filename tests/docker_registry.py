"""A real registry of images on loopback: Debian's docker-registry, with a port of its own. Engines take what is on
loopback without TLS."""

import http.client
import io
import json
import re
import subprocess
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import IO

import docker
from docker.errors import ImageNotFound

from tests.images import tar_of
from tests.tools import tool

SECONDS = 60


class DockerRegistry:
    """At `address`, as "127.0.0.1:5000"."""

    def __init__(self, address: str, sdk: docker.DockerClient, base: str, login: Mapping[str, str] | None) -> None:
        self.address = address
        self._login = login
        self._sdk = sdk
        self._base = base

    def push(self, name: str, says: str) -> str:
        """Puts an image there whose command says something, and leaves nothing of it on the engine. Its digest."""
        return self.push_with_files(name, {}, f'ENTRYPOINT ["echo"]\nCMD ["{says}"]\n')

    def push_with_files(self, name: str, files: Mapping[str, bytes], dockerfile: str = "") -> str:
        """Puts an image there that has these files, by their paths, and leaves nothing of it on the engine. Its
        digest."""
        whole = f"{self.address}/{name}"
        copies = "".join(f"COPY {path.lstrip('/')} {path}\n" for path in files)
        packed = {path.lstrip("/"): data for path, data in files.items()}
        context = tar_of({"Dockerfile": f"FROM {self._base}\n{copies}{dockerfile}".encode(), **packed})
        image, _ = self._sdk.images.build(fileobj=io.BytesIO(context), custom_context=True, tag=whole, rm=True)
        lines = list(self._sdk.images.push(whole, stream=True, decode=True, auth_config=self._login))
        assert not [line for line in lines if "error" in line], lines
        self._sdk.images.remove(image.id, force=True)
        return next(line["aux"]["Digest"] for line in lines if "aux" in line)

    def move(self, repository: str, tag: str, to: str) -> None:
        """In the registry alone, `tag` becomes what `to` is. The engine is not asked."""
        kind = "application/vnd.docker.distribution.manifest.v2+json"
        with closing(http.client.HTTPConnection(self.address, timeout=SECONDS)) as connection:
            connection.request("GET", f"/v2/{repository}/manifests/{to}", headers={"Accept": kind})
            manifest = connection.getresponse().read()
            connection.request("PUT", f"/v2/{repository}/manifests/{tag}", manifest, {"Content-Type": kind})
            answer = connection.getresponse()
            assert answer.status == 201, answer.read()

    def forget(self) -> None:
        """Removes from the engine all that came from here."""
        ours = f"{self.address}/"
        for image in self._sdk.api.images():
            names = [*(image["RepoTags"] or ()), *(image["RepoDigests"] or ())]
            for name in names:
                if name.startswith(ours) and not name.endswith("<none>"):
                    # It may have gone with another of its names; a container of it that ended may be there still.
                    with suppress(ImageNotFound):
                        self._sdk.images.remove(name, force=True)


@contextmanager
def docker_registry(
    directory: Path,
    sdk: docker.DockerClient,
    base: str,
    *,
    auth: Mapping[str, object] | None = None,
    login: Mapping[str, str] | None = None,
    enter: Sequence[str] = (),
) -> Iterator[DockerRegistry]:
    """Serves from `directory`; images are made from `base`. `auth`: whom it lets in, as its configuration has it, and
    `login`: as whom images are pushed. `enter`: a command that runs another one, in a namespace for example."""
    config = directory / "config.yml"
    # JSON is YAML.
    config.write_text(
        json.dumps(
            {
                "version": "0.1",
                "log": {"accesslog": {"disabled": True}, "level": "info", "formatter": "json"},
                "storage": {"filesystem": {"rootdirectory": str(directory / "images")}},
                "http": {"addr": "127.0.0.1:0"},
                **({"auth": auth} if auth else {}),
            }
        )
    )
    process = subprocess.Popen(
        [*enter, tool("docker-registry"), "serve", config], stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    assert process.stdout
    try:
        address = _address(process.stdout)
        # What else it says is read, so that it can go on, and thrown away.
        reader = threading.Thread(target=process.stdout.read, daemon=True)
        reader.start()
        registry = DockerRegistry(address, sdk, base, login)
        yield registry
        registry.forget()
    finally:
        process.terminate()
        process.wait(SECONDS)


def _address(said: IO[bytes]) -> str:
    lines = []
    for line in said:
        if match := re.search(rb"listening on (127\.0\.0\.1:\d+)", line):
            return match[1].decode()
        lines.append(line)
    raise AssertionError(f"docker-registry did not start: {lines}")
