"""Images of a test's own: any files, any configuration, any architecture, as no Dockerfile can have them."""

import hashlib
import io
import json
import os
import tarfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import docker

from tests.tools import tool


def busybox() -> bytes:
    return Path(tool("busybox")).resolve().read_bytes()


def for_another_architecture(program: bytes) -> bytes:
    """A program that no kernel of a common machine executes: its ELF header names S/390."""
    return program[:18] + b"\x16\x00" + program[20:]


@contextmanager
def loaded_image(
    sdk: docker.DockerClient, name: str, files: Mapping[str, bytes], *, architecture: str, **config: Any
) -> Iterator[str]:
    """The name of an image, which begins with `name`, of these files, each with mode 755, and this configuration; it
    goes in the end."""
    layer = tar_of(files)
    about: dict[str, Any] = {
        "os": "linux",
        "config": config,
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{_sha256(layer)}"]},
    }
    if architecture:
        about["architecture"] = architecture
    # Another process may be running the same test.
    name = f"{name}-{os.getpid()}"
    manifest = [{"Config": "config.json", "RepoTags": [name], "Layers": ["layer.tar"]}]
    archive = {
        "config.json": json.dumps(about).encode(),
        "layer.tar": layer,
        "manifest.json": json.dumps(manifest).encode(),
    }
    sdk.images.load(tar_of(archive))
    try:
        yield name
    finally:
        sdk.images.remove(name, force=True)


def tar_of(files: Mapping[str, bytes]) -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size, info.mode = len(data), 0o755
            tar.addfile(info, io.BytesIO(data))
    return content.getvalue()


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
