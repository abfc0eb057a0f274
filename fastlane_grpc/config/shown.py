"""Settings as people read them: a settings file, JSON, and the text of one value. Passwords are masked."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import Field, fields
from datetime import timedelta
from typing import Any

from fastlane_grpc.config.loading import InForce
from fastlane_grpc.config.settings import OF_LOCAL, SETTINGS, AnyHostSettings, Settings, local_host
from fastlane_grpc.config.values import counted, duration_text
from fastlane_grpc.text.redaction import mask_secrets


def default_text(name: str) -> str:
    """The default of a setting as it is now and here, written as the setting is; empty if it has none.

    Raises ConfigError where the environment spoils it.
    """
    [each] = [each for each in SETTINGS if each.name == name]
    return setting_text(each, each.metadata["default"]())


def toml(in_force: InForce) -> str:
    """Return a settings file with the settings that are in force, and a comment for each with its origin."""
    settings = in_force.settings
    hosts = _configured_hosts(settings)
    lines = [
        _toml_line(each, _written(in_force, each), in_force.origin(each.name))
        for each in SETTINGS
        if not (hosts and each.name in OF_LOCAL)
    ]
    if not hosts:
        lines += ["", f'# No [[hosts]]: the only host is "local", made of {", ".join(OF_LOCAL)} and max_running.']
    for host in hosts:
        lines += ["", "[[hosts]]"]
        for each in fields(host):
            value = getattr(host, each.name)
            plain = None if value == "" else _plain(each, value)
            lines.append(_toml_line(each, plain, in_force.origin(f"hosts.{host.name}.{each.name}")))
    for kind, tables in _named_tables(settings):
        for table in tables:
            lines += ["", f"[[{kind}]]"]
            for each in fields(table):
                origin = in_force.origin(f"{kind}.{table.name}.{each.name}")
                lines.append(_toml_line(each, _plain(each, getattr(table, each.name)) or None, origin))
    return "\n".join(lines) + "\n"


def _named_tables(settings: Settings) -> Sequence[tuple[str, Sequence[Any]]]:
    return (("pools", settings.pools), ("registries", settings.registries), ("secrets", settings.secrets))


def as_json(in_force: InForce) -> str:
    """The same as one object: of each setting its value and where that came from, and all hosts, the one of no
    configured ones too."""
    settings = in_force.settings
    told: dict[str, object] = {}
    for each in SETTINGS:
        told[each.name] = {"value": _written(in_force, each), "origin": in_force.origin(each.name)}
    return json.dumps(told | _tables(settings), indent=2)


def shown_settings(settings: Settings) -> Mapping[str, object]:
    """Return all settings as they are shown: without passwords."""
    return {each.name: _plain(each, getattr(settings, each.name)) for each in SETTINGS} | _tables(settings)


def _tables(settings: Settings) -> dict[str, object]:
    kinds: Mapping[str, Sequence[Any]] = {
        "hosts": settings.hosts,
        "pools": settings.pools,
        "registries": settings.registries,
    }
    return {
        kind: [{each.name: _plain(each, getattr(table, each.name)) for each in fields(table)} for table in tables]
        for kind, tables in kinds.items()
    }


def _configured_hosts(settings: Settings) -> Sequence[AnyHostSettings]:
    """Return the hosts that are written in the file; none if the only host is made of the other settings."""
    return () if list(settings.hosts) == [local_host(settings)] else settings.hosts


def setting_text(each: "Field[Any]", value: Any) -> str:
    """A value as it is written; empty if there is none."""
    if value is None:
        return ""
    if isinstance(value, timedelta):
        return duration_text(value)
    if isinstance(value, tuple):
        return ",".join(value)
    if isinstance(value, bool):
        return str(value).lower()
    if each.metadata["kind"] == "BYTES":
        return counted(value, (("g", 1 << 30), ("m", 1 << 20), ("k", 1 << 10)))
    return str(value)


def _written(in_force: InForce, each: "Field[Any]") -> int | str | None:
    """A setting as it is written; None if it is not set. One that turns something off is written as it was given."""
    value = getattr(in_force.settings, each.name)
    return _plain(each, value) if value or each.name not in in_force.given else in_force.given[each.name][0]


def _plain(each: "Field[Any]", value: Any) -> int | str | None:
    """A value as it is shown: without the password that an address may hold."""
    if value is None or each.metadata["kind"] == "NUMBER":
        return value  # type: ignore[no-any-return]
    text = setting_text(each, value)
    return mask_secrets(text) if each.metadata["kind"] in {"ADDRESS", "URLS", "COMMAND"} else text


def _toml_line(each: "Field[Any]", plain: int | str | None, origin: str) -> str:
    if plain is None:
        return f"# {each.name} is not set"
    # JSON's texts are TOML's, but for one character.
    value = json.dumps(plain, ensure_ascii=False).replace("\x7f", "\\u007f")
    return f"{each.name} = {value}  # {_one_line(origin)}"


def _one_line(text: str) -> str:
    return "".join(character if character.isprintable() else "?" for character in text)
