"""Images for the nodes, as files that `docker save` would write."""

import hashlib
import io
import json
import os
import tarfile
from collections.abc import Mapping
from pathlib import Path

import docker


def save(image: str, archive: Path) -> None:
    """Write an image of the Docker engine."""
    engine = docker.APIClient(os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock"))
    with archive.open("wb") as file:
        for piece in engine.get_image(image):
            file.write(piece)


def write(image: str, files: Mapping[str, Path], archive: Path, *, entrypoint: str) -> None:
    """Write an image that has nothing but these executable files."""
    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as tar:
        for name, path in files.items():
            content = path.read_bytes()
            tar.addfile(_entry(name, len(content), 0o755), io.BytesIO(content))
    config = json.dumps(
        {
            "architecture": "amd64" if os.uname().machine == "x86_64" else "arm64",
            "os": "linux",
            "config": {"Entrypoint": [entrypoint]},
            "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(layer.getvalue()).hexdigest()}"]},
        }
    ).encode()
    config_name = f"{hashlib.sha256(config).hexdigest()}.json"
    manifest = json.dumps([{"Config": config_name, "RepoTags": [image], "Layers": ["layer.tar"]}]).encode()
    parts = {config_name: config, "layer.tar": layer.getvalue(), "manifest.json": manifest}
    with tarfile.open(archive, "w") as tar:
        for name, content in parts.items():
            tar.addfile(_entry(name, len(content), 0o644), io.BytesIO(content))


def _entry(name: str, size: int, mode: int) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = size, mode
    return entry
