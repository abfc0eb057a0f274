"""The image of the server: by docs/deploy/Dockerfile as it is shipped, from wheels alone."""

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import docker
from docker.errors import APIError, ImageNotFound

from tests.tools import ROOT, script

DOCKERFILE = ROOT / "docs" / "deploy" / "Dockerfile"


@contextmanager
def server_image(
    sdk: docker.DockerClient, name: str, wheels: Path, *, base: str, wheel: Path, extras: str = ""
) -> Iterator[str]:
    """Build the image on top of `base`, within the context. `wheels`: the directory that becomes its context.

    `wheel` is the server's own; those of what it needs are added.
    """
    script("wheels")
    for each in (wheel, *(ROOT / ".tools" / "wheels").glob("*.whl")):
        shutil.copy(each, wheels)
    _, said = sdk.images.build(
        path=str(wheels),
        dockerfile=str(DOCKERFILE),
        tag=name,
        rm=True,
        buildargs={"BASE": base, "PIP_NO_INDEX": "1", "EXTRAS": extras},
    )
    try:
        yield name
    finally:
        sdk.images.remove(name, force=True)
        # What the first stage was built in has no name, and would stay. Each step is the parent of the next, the base
        # that of the first.
        base_id = sdk.images.get(base).id.removeprefix("sha256:")
        steps = re.findall(r"---> ([0-9a-f]{12})\n", "".join(each.get("stream", "") for each in said))
        for step in reversed([step for step in steps if not base_id.startswith(step)]):
            with suppress(ImageNotFound, APIError):
                sdk.images.remove(step)
