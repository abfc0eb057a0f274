"""The settings in force, and where each of them comes from.

A setting comes from a flag, else from the environment (`FASTLANE_` and its name in capitals), else from the file, else
from its default. Several hosts and pools come from the file alone. What cannot be read, or is not known, is an error
that names the setting and where it stood."""

import difflib
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import Field, dataclass, fields
from pathlib import Path
from typing import Any

from fastlane_grpc.config.settings import (
    LOCAL,
    OF_LOCAL,
    SETTINGS,
    AnyHostSettings,
    ConfigError,
    HostSettings,
    KubernetesHostSettings,
    PoolSettings,
    RegistrySettings,
    SecretSettings,
    Settings,
    is_missing,
    read_setting,
)
from fastlane_grpc.model import HostKind, PodCaptureMode
from fastlane_grpc.text.redaction import mask_secrets


@dataclass(frozen=True, slots=True)
class InForce:
    """The settings in force, and of those that were given their text, and where it came from: "file PATH", "environment
    variable NAME" or "flag --NAME". Those of a host are called `hosts.` and its name, a point and their own."""

    settings: Settings
    given: Mapping[str, tuple[str, str]]
    # Variables of the environment that look like a setting that is misspelled, each as one sentence.
    warnings: Sequence[str] = ()

    def origin(self, name: str) -> str:
        return self.given[name][1] if name in self.given else "default"


def load(flags: Mapping[str, object], environ: Mapping[str, str], file: Path | None) -> Settings:
    """The settings in force. `flags` holds texts or values by the names of `Settings`; None there is a flag that was
    not given."""
    return in_force(flags, environ, file).settings


def in_force(flags: Mapping[str, object], environ: Mapping[str, str], file: Path | None) -> InForce:
    """Return the settings as `load` does, each with its origin."""
    table = dict(_read_file(file))
    tables: Any = table.pop("hosts", None)
    pool_tables: Any = table.pop("pools", None)
    registry_tables: Any = table.pop("registries", None)
    secret_tables: Any = table.pop("secrets", None)
    given = _given(flags, environ, table, file)
    values: dict[str, Any] = {
        each.name: read_setting(each, *given[each.name]) for each in SETTINGS if each.name in given
    }
    if tables is not None:
        hosts = _read_hosts(tables, file)
        if beside := next((name for name in OF_LOCAL if name in given), None):
            raise ConfigError(
                f"{beside} ({given[beside][1]}) cannot be combined with [[hosts]] ({file}): set it in each host"
            )
        given |= _origins("hosts", tables, file)
        values = {"max_running": sum(host.max_running for host in hosts), **values, "hosts": hosts}
    if pool_tables is not None:
        names = [host.name for host in values.get("hosts", ())] or [LOCAL]
        values["pools"] = _read_pools(pool_tables, names, file)
        given |= _origins("pools", pool_tables, file)
    if registry_tables is not None:
        values["registries"] = _read_registries(registry_tables, file)
        given |= _origins("registries", registry_tables, file)
    if secret_tables is not None:
        values["secrets"] = _read_secrets(secret_tables, file)
        given |= _origins("secrets", secret_tables, file)
    origins = {name: (str(value), origin) for name, (value, origin) in given.items()}
    return InForce(Settings(**values), origins, _misspelled(environ))


def _origins(kind: str, tables: Sequence[Mapping[str, object]], file: Path | None) -> dict[str, tuple[object, str]]:
    """Return the values in tables that have names, with their origin."""
    return {f"{kind}.{each['name']}.{name}": (value, f"file {file}") for each in tables for name, value in each.items()}


def _given(
    flags: Mapping[str, object], environ: Mapping[str, str], table: Mapping[str, object], file: Path | None
) -> dict[str, tuple[object, str]]:
    """Return the effective value of each setting that is given somewhere, with its origin."""
    given: dict[str, tuple[object, str]] = {}
    for name, value in table.items():
        given[_known(name, [*_names(SETTINGS), "hosts", "pools", "registries", "secrets"], f"setting in {file}")] = (
            value,
            f"file {file}",
        )
    for key, text in environ.items():
        name = key.removeprefix("FASTLANE_").lower()
        if key.startswith("FASTLANE_") and name in _names(SETTINGS):
            given[name] = (text, f"environment variable {key}")
    for name, flag in flags.items():
        if flag is not None:
            given[name] = (str(flag), f"flag --{name.replace('_', '-')}")
    return given


def _misspelled(environ: Mapping[str, str]) -> Sequence[str]:
    """Return a warning for each variable that is almost the name of a setting.

    All other variables are ignored: a build tool for mobile apps has the same name as this program, and has variables
    that begin with FASTLANE_ too."""
    known = [*_names(SETTINGS), *_NOT_SETTINGS]
    names = [key.removeprefix("FASTLANE_").lower() for key in environ if key.startswith("FASTLANE_")]
    near = {name: difflib.get_close_matches(name, known, 1, cutoff=0.8) for name in names if name not in known}
    return [
        f"environment variable FASTLANE_{name.upper()} is not a setting; did you mean FASTLANE_{matches[0].upper()}?"
        for name, matches in near.items()
        if matches
    ]


# Variables of the command line and of other programs of ours, not settings of the server.
_NOT_SETTINGS = {"address", "config", "tls_ca", "client_tls_cert", "client_tls_key", "token", "token_file"}


def _read_file(file: Path | None) -> dict[str, object]:
    if file is None:
        return {}
    try:
        table = tomllib.loads(file.read_text())
    except OSError as error:
        raise ConfigError(f"cannot read the settings in {file}: {error.strerror}") from error
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"cannot read the settings in {file}: {error}") from error
    return table


def _read_hosts(tables: object, file: Path | None) -> Sequence[AnyHostSettings]:
    if not isinstance(tables, list) or not tables or not all(isinstance(table, dict) for table in tables):
        raise ConfigError(f"hosts in {file} must be tables, each under a line [[hosts]]")
    hosts = [_read_host(table, f"[[hosts]] {place} of file {file}") for place, table in enumerate(tables, 1)]
    for place, host in enumerate(hosts):
        for other in hosts[:place]:
            if other.name == host.name:
                raise ConfigError(f"two [[hosts]] in {file} have the name {host.name!r}: give each host its own name")
            # Two hosts may be one namespace: each has its own nodes, for instance.
            if isinstance(host, HostSettings) and isinstance(other, HostSettings) and other.engine == host.engine:
                both = f"{other.name!r} and {host.name!r}"
                raise ConfigError(
                    f"[[hosts]] {both} in {file} have the same engine, {mask_secrets(host.engine)}: remove one"
                )
    return hosts


def _read_host(table: Mapping[str, object], where: str) -> AnyHostSettings:
    [kind] = [each for each in fields(HostSettings) if each.name == "kind"]
    is_kubernetes = "kind" in table and read_setting(kind, table["kind"], where) == HostKind.KUBERNETES
    settings: type[AnyHostSettings] = KubernetesHostSettings if is_kubernetes else HostSettings
    for name in table:
        _check_kind_of_host(name, settings, where)
        _known(name, _names(fields(settings)), f"setting in {where}")
    values = {each.name: read_setting(each, table[each.name], where) for each in fields(settings) if each.name in table}
    for each in fields(settings):
        if each.name not in values and each.metadata["default"] is is_missing:
            raise ConfigError(f"{where} has no {each.name}, which is required")
    if is_kubernetes and values.get("capture") is not PodCaptureMode.KUBELET:
        for name in ("kit_image", "relay_address"):
            if name not in values:
                raise ConfigError(
                    f"{where} has no {name}, which is required: set it, "
                    'or capture = "kubelet", whose logs may have gaps'
                )
    if values.get("context") and "kubeconfig" not in values:
        raise ConfigError(
            f"{where} has a context and no kubeconfig, whose context it is: set it, or remove the context"
        )
    return settings(**values)


def _check_kind_of_host(name: str, settings: type[AnyHostSettings], where: str) -> None:
    """Raise ConfigError for a setting of the other kind of hosts."""
    for kind, other in ((HostKind.DOCKER, HostSettings), (HostKind.KUBERNETES, KubernetesHostSettings)):
        if other is not settings and name in _names(fields(other)) and name not in _names(fields(settings)):
            own = HostKind.KUBERNETES if kind is HostKind.DOCKER else HostKind.DOCKER
            raise ConfigError(
                f"{name} in {where} is a setting of hosts of kind {kind}, and this one is of kind {own}: "
                f'remove it, or set kind = "{kind}"'
            )


def _read_pools(tables: object, hosts: Sequence[str], file: Path | None) -> Sequence[PoolSettings]:
    if not isinstance(tables, list) or not tables or not all(isinstance(table, dict) for table in tables):
        raise ConfigError(f"pools in {file} must be tables, each under a line [[pools]]")
    pools = [_read_pool(table, hosts, f"[[pools]] {place} of file {file}") for place, table in enumerate(tables, 1)]
    for place, pool in enumerate(pools):
        if any(other.name == pool.name for other in pools[:place]):
            raise ConfigError(f"two [[pools]] in {file} have the name {pool.name!r}: give each pool its own name")
    return pools


def _read_pool(table: Mapping[str, object], hosts: Sequence[str], where: str) -> PoolSettings:
    for name in table:
        _known(name, _names(fields(PoolSettings)), f"setting in {where}")
    for each in fields(PoolSettings):
        if each.name not in table:
            raise ConfigError(f"{where} has no {each.name}, which is required")
    pool = PoolSettings(**{each.name: read_setting(each, table[each.name], where) for each in fields(PoolSettings)})
    for host in pool.hosts:
        _known(host, hosts, f"host in {where}")
    if len(set(pool.hosts)) < len(pool.hosts):
        raise ConfigError(f"hosts in {where} names a host twice: {','.join(pool.hosts)}")
    return pool


def _read_registries(tables: object, file: Path | None) -> Sequence[RegistrySettings]:
    registries: Sequence[RegistrySettings] = _read_named_tables(tables, "registries", RegistrySettings, file)
    for place, registry in enumerate(registries, 1):
        where = f"[[registries]] {place} of file {file}"
        _check_one_of(registry, ("password_file", "identity_token_file", "command"), where)
        if registry.password_file and not registry.username:
            raise ConfigError(f"{where} has a password_file and no username: set it")
        if registry.identity_token_file and registry.username:
            raise ConfigError(f"{where} has an identity_token_file, which takes no username: remove one of the two")
    return registries


def _read_secrets(tables: object, file: Path | None) -> Sequence[SecretSettings]:
    secrets: Sequence[SecretSettings] = _read_named_tables(tables, "secrets", SecretSettings, file)
    for place, secret in enumerate(secrets, 1):
        _check_one_of(secret, ("file", "directory", "env", "command"), f"[[secrets]] {place} of file {file}")
    return secrets


def _read_named_tables(tables: object, kind: str, table_kind: type, file: Path | None) -> Sequence[Any]:
    if not isinstance(tables, list) or not tables or not all(isinstance(table, dict) for table in tables):
        raise ConfigError(f"{kind} in {file} must be tables, each under a line [[{kind}]]")
    read: list[Any] = []
    for place, table in enumerate(tables, 1):
        where = f"[[{kind}]] {place} of file {file}"
        for name in table:
            _known(name, _names(fields(table_kind)), f"setting in {where}")
        for each in fields(table_kind):
            if each.name not in table and each.metadata["default"] is is_missing:
                raise ConfigError(f"{where} has no {each.name}, which is required")
        values = {
            each.name: read_setting(each, table[each.name], where) for each in fields(table_kind) if each.name in table
        }
        read.append(table_kind(**values))
        if any(other.name == read[-1].name for other in read[:-1]):
            raise ConfigError(f"two [[{kind}]] in {file} have the name {read[-1].name!r}: give each its own name")
    return read


def _check_one_of(table: object, names: Sequence[str], where: str) -> None:
    if sum(bool(getattr(table, name)) for name in names) != 1:
        raise ConfigError(f"{where} must have one of {', '.join(names[:-1])} and {names[-1]}")


def _names(settings: Sequence["Field[Any]"]) -> list[str]:
    return [each.name for each in settings]


def _known(name: str, names: Sequence[str], what: str) -> str:
    if name in names:
        return name
    near = difflib.get_close_matches(name, names, 1)
    raise ConfigError(
        f"unknown {what}: {name!r}" + (f"; did you mean {near[0]!r}?" if near else f"; known names: {', '.join(names)}")
    )
