"""The tables of settings in the documentation, made of the code."""

from collections.abc import Sequence
from dataclasses import Field
from typing import Any

from fastlane_grpc import config


def markdown(settings: Sequence["Field[Any]"]) -> str:
    """A table of settings for people, of `SETTINGS` or `fields(HostSettings)`: the same on every machine."""
    rows = ["| name | value | default | meaning |", "|---|---|---|---|"]
    for each in settings:
        rows.append(
            f"| `{each.name}` | {each.metadata['kind']} | {_default_in_words(each)} | {each.metadata['meaning']} |"
        )
    return "\n".join(rows) + "\n"


def _default_in_words(each: "Field[Any]") -> str:
    if each.metadata["default"] is config.is_missing:
        return "required"
    # Of those that depend on the machine: how.
    machine = {
        "data_dir": "`/var/lib/fastlane`; not as root: `~/.local/share/fastlane`",
        "max_running": "4 × cores",
    }
    # Of a cluster, the number of pods does not depend on this machine.
    if each.name in machine and not (each.name == "max_running" and "four per core" not in each.metadata["meaning"]):
        return machine[each.name]
    if each.name == "engine":
        return f"`DOCKER_HOST` of the environment, else `{config.DEFAULT_ENGINE}`"
    if each.name == "engine_cert_dir" and each.metadata["default"]():
        # As `docker` is told where this runs; for everybody else there is none.
        return ""
    text = config.setting_text(each, each.metadata["default"]())
    return f"`{text}`" if text else ""
