"""Every setting of the server, once: its default, its meaning and how it is read.

A setting comes from a flag, else from the environment (`FASTLANE_` and its name in capitals), else from the file, else
from its default. Several hosts and pools come from the file alone. What cannot be read, or is not known, is an error
that names the setting and where it stood."""

import difflib
import json
import os
import posixpath
import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import Field, dataclass, field, fields
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeAlias

from fastlane_grpc.model import Allowed, CaptureMode, HostKind, Mail, Notification, State, Webhook
from fastlane_grpc.networks import Networks
from fastlane_grpc.pools import Pool, Pools, read_pattern
from fastlane_grpc.text.receivers import url_fault
from fastlane_grpc.text.redaction import DEFAULT, SecretNames, mask_secrets
from fastlane_grpc.text.shell_words import split_command
from fastlane_grpc.text.values import (
    DEFAULT_LISTEN,
    OFF,
    read_address,
    read_bytes,
    read_count,
    read_duration,
    read_mail_address,
)

DEFAULT_HTTP_LISTEN = "127.0.0.1:10000"
DEFAULT_ENGINE = "unix:///var/run/docker.sock"
DEFAULT_RELAY_LISTEN = "0.0.0.0:7021"


class ConfigError(Exception):
    """A setting that cannot be as it is; the message names it and where it stood."""


def read_request_bytes(text: str) -> int:
    size = read_bytes(text)
    if size > 64 << 20:
        raise ValueError("must not be more than 64m")
    return size


def read_keeping(text: str) -> timedelta | None:
    if text.lower() == OFF:
        return None
    try:
        return read_duration(text)
    except ValueError as error:
        raise ValueError(f"{error}; or {OFF}: keep for ever") from None


def read_bytes_or_off(text: str) -> int:
    if text.lower() == OFF:
        return 0
    try:
        return read_bytes(text)
    except ValueError as error:
        raise ValueError(f"{error}; or {OFF}") from None


def read_address_or_off(text: str) -> str:
    """Return the address; empty: off."""
    if text.lower() == OFF:
        return ""
    try:
        return read_address(text)
    except ValueError as error:
        raise ValueError(f"{error}; or {OFF}".replace("7020", "10000")) from None


def read_web_hosts(text: str) -> Sequence[str]:
    """Return the names, in lower case and without a port."""
    names = tuple(name.strip().lower() for name in text.split(",") if name.strip())
    for name in names:
        if not re.fullmatch(r"[a-z0-9_]([a-z0-9_.-]{0,251}[a-z0-9_])?", name):
            raise ValueError(f"has {name!r}, which is not the name of a host; must be as fastlane.local,ci.example.com")
    return names


def read_origins(text: str) -> Sequence[str]:
    origins = tuple(origin.strip().lower() for origin in text.split(",") if origin.strip())
    for origin in origins:
        if not re.fullmatch(r"https?://[a-z0-9_.-]{1,253}(:[0-9]{1,5})?", origin):
            raise ValueError(f"has {origin!r}, which is not an origin; must be as https://ci.example.com")
    return origins


def is_engine_name(text: str) -> bool:
    """Return whether an engine takes this for the name of a network or a volume, and not for something of the host."""
    return re.fullmatch(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{0,127}", text) is not None and text not in {"host", "default"}


def read_engine_names(text: str) -> Sequence[str]:
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    for name in names:
        if not is_engine_name(name) or name == "none":
            raise ValueError(f"has {name!r}, which jobs cannot be given; must be names, as builds,cache")
    return names


def is_device_path(text: str) -> bool:
    """Return whether this is a path below /dev without detours."""
    return (
        re.fullmatch(r"/dev(/[A-Za-z0-9_@%+=:.-]{1,255}){1,8}", text) is not None and posixpath.normpath(text) == text
    )


def read_devices(text: str) -> Sequence[str]:
    paths = tuple(path.strip() for path in text.split(",") if path.strip())
    for path in paths:
        if not is_device_path(path):
            raise ValueError(f"has {path!r}, which is not a path below /dev; must be paths, as /dev/fuse,/dev/dri")
    return paths


def is_credential_name(text: str) -> bool:
    return re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", text) is not None


def read_credential_name(text: str) -> str:
    if not is_credential_name(text):
        raise ValueError("must be 1 to 64 of A-Z a-z 0-9 . _ - and begin with a letter or a digit")
    return text


def read_registry(text: str) -> str:
    if not re.fullmatch(r"(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?)(:[0-9]{1,5})?", text):
        raise ValueError("must be the name of a registry, as docker.io or registry.example.org:5000")
    return text


def read_variable_name(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]{0,255}", text):
        raise ValueError("must be the name of an environment variable")
    return text


def read_command(text: str) -> str:
    if not split_command(text):
        raise ValueError("must be a command")
    return text


_NAME = r"[^\s/@:\[\]-][^\s/@:\[\]]*"
_HOST = rf"(\[[0-9a-fA-F:.]+\]|{_NAME})"
_ENGINE = re.compile(
    rf"unix:///.+|tcp://{_HOST}:[0-9]{{1,5}}|ssh://({_NAME}@)?{_HOST}(:[0-9]{{1,5}})?|context://[a-zA-Z0-9][\w.+-]*"
)


def read_engine(text: str) -> str:
    if re.fullmatch(rf"tcp://{_HOST}", text):
        raise ValueError(f"has no port; must be as {text}:2376 with TLS or {text}:2375 without")
    if not _ENGINE.fullmatch(text):
        raise ValueError(
            "must be the address of a Docker engine, as unix:///var/run/docker.sock, tcp://HOST:2376, "
            "ssh://USER@HOST or context://NAME"
        )
    return text


def read_path(text: str) -> Path:
    if not text:
        raise ValueError("must be a path")
    return Path(text).expanduser().absolute()


def read_capture(text: str) -> CaptureMode:
    if text.lower() not in set(CaptureMode):
        raise ValueError("must be auto, recorder or attach")
    return CaptureMode(text.lower())


def read_host_name(text: str) -> str:
    if not re.fullmatch(r"[a-z0-9-]{1,63}", text):
        raise ValueError("must be 1 to 63 of a-z, 0-9 and -")
    return text


def read_host_names(text: str) -> Sequence[str]:
    return tuple(map(read_host_name, text.split(",")))


def read_log_bytes(text: str) -> int:
    size = read_bytes(text)
    if size < 1 << 20:
        raise ValueError("must not be less than 1m")
    return size


def read_secret_names(text: str) -> SecretNames:
    try:
        return SecretNames.read(text)
    except ValueError as error:
        raise ValueError(f"must be names, separated by commas, as {DEFAULT},pin,!sort_key; {error}") from None


def read_retries(text: str) -> int:
    retries = read_count(text)
    if retries > 100:
        raise ValueError("must be a whole number from 1 to 100")
    return retries


def read_url(text: str) -> str:
    if fault := url_fault(text):
        raise ValueError(fault)
    if "?" in text or "@" in text:
        raise ValueError("must be a URL without a user and a query")
    return text.rstrip("/")


def read_urls(text: str) -> Sequence[str]:
    urls = tuple(url.strip() for url in text.split(","))
    for url in urls:
        if fault := url_fault(url):
            raise ValueError(f"one of its URLs, separated by commas, {fault}")
    return urls


def read_mail_addresses(text: str) -> Sequence[str]:
    return tuple(read_mail_address(address.strip()) for address in text.split(","))


# The final states, as people write them: "timed-out".
FINAL_STATE_NAMES: Mapping[str, State] = {state.name.replace("_", "-").lower(): state for state in State if state.final}


def read_final_states(text: str) -> Sequence[str]:
    names = tuple(name.strip().lower() for name in text.split(","))
    if any(name not in FINAL_STATE_NAMES for name in names):
        raise ValueError(f"must be final states, separated by commas: {', '.join(FINAL_STATE_NAMES)}")
    return names


def read_webhook_timeout(text: str) -> timedelta:
    timeout = read_duration(text)
    if timeout > timedelta(minutes=1):
        raise ValueError("must not be longer than 60s")
    return timeout


def read_namespace(text: str) -> str:
    if not re.fullmatch(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", text):
        raise ValueError("must be the name of a namespace, 1 to 63 of a-z, 0-9 and -")
    return text


def read_object_name(text: str) -> str:
    if not is_object_name(text):
        raise ValueError("must be the name of an object of Kubernetes, 1 to 253 of a-z, 0-9, - and .")
    return text


def read_object_names(text: str) -> Sequence[str]:
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    for name in names:
        if not is_object_name(name):
            raise ValueError(f"has {name!r}, which is not the name of an object of Kubernetes: a-z, 0-9, - and .")
    return names


def is_object_name(text: str) -> bool:
    return re.fullmatch(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?", text) is not None


_LABEL_KEY = r"([a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?/)?[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?"
_LABEL_VALUE = r"([A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?)?"
_TOLERATION = re.compile(
    rf"(\*|(?P<key>{_LABEL_KEY})(=(?P<value>{_LABEL_VALUE}))?)(:(?P<effect>NoSchedule|PreferNoSchedule|NoExecute))?"
)


def read_node_selector(text: str) -> Sequence[str]:
    labels = tuple(label.strip() for label in text.split(",") if label.strip())
    for label in labels:
        if not re.fullmatch(f"{_LABEL_KEY}={_LABEL_VALUE}", label):
            raise ValueError(f"has {label!r}, which is not a label of a node; must be as disk=ssd,example.org/gpu=true")
    keys = [label.partition("=")[0] for label in labels]
    if twice := next((key for key in keys if keys.count(key) > 1), None):
        raise ValueError(f"has the label {twice} twice")
    return labels


def read_tolerations(text: str) -> Sequence[str]:
    taints = tuple(taint.strip() for taint in text.split(",") if taint.strip())
    for taint in taints:
        if not _TOLERATION.fullmatch(taint):
            raise ValueError(
                f"has {taint!r}, which is not a taint; must be KEY, KEY=VALUE or *, each with :NoSchedule, "
                ":PreferNoSchedule, :NoExecute or without, as gpu=true:NoSchedule,spot"
            )
    return taints


def read_image(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][\w.:/@-]{0,511}", text, re.ASCII):
        raise ValueError("must be the name of an image, as registry.example.org/fastlane-kit:1")
    return text


def read_text(text: str) -> str:
    if not text or not text.isprintable():
        raise ValueError("must be a text of printable characters")
    return text


def read_server_name(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9._:-]{1,253}", text):
        raise ValueError("must be the name or the IP address of a server")
    return text


def read_port(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,5}", text) or not 1 <= int(text) <= 65_535:
        raise ValueError("must be a port from 1 to 65535")
    return int(text)


SMTP_TLS = ("starttls", "tls", OFF)


def read_smtp_tls(text: str) -> str:
    if text.lower() not in SMTP_TLS:
        raise ValueError(f"must be {', '.join(SMTP_TLS[:-1])} or {OFF}")
    return text.lower()


def read_user_name(text: str) -> str:
    if not text or not text.isprintable():
        raise ValueError("must be a name of printable characters")
    return text


def read_switch(text: str) -> bool:
    if text.lower() not in {"true", "false"}:
        raise ValueError("must be true or false")
    return text.lower() == "true"


def read_log_destination(text: str) -> str | None:
    """Return the path, or `-` for stderr; None: off."""
    if text.lower() == OFF:
        return None
    return text if text == "-" else str(read_path(text))


def read_slow_call(text: str) -> timedelta | None:
    if text.lower() == OFF:
        return None
    if match := re.fullmatch(r"0*([0-9]{1,9})ms", text):
        if not int(match[1]):
            raise ValueError("must be longer than 0")
        return timedelta(milliseconds=int(match[1]))
    try:
        return read_duration(text)
    except ValueError as error:
        raise ValueError(f"{error}; or milliseconds, as 500ms; or {OFF}") from None


def read_kind(text: str) -> HostKind:
    if text.lower() not in set(HostKind):
        raise ValueError(f"must be {' or '.join(HostKind)}")
    return HostKind(text.lower())


def read_auth(text: str) -> str:
    if text.lower() not in {"tokens", OFF}:
        raise ValueError(f"must be tokens or {OFF}")
    return text.lower()


def read_public(text: str) -> Sequence[str]:
    """Return the names; none: off."""
    if text.lower() == OFF:
        return ()
    names = tuple(name.strip().lower() for name in text.split(","))
    if any(name not in {"health", "metrics", "reflection"} for name in names):
        raise ValueError(f"must be of health, metrics and reflection, separated by commas; or {OFF}")
    return names


# The kind of a setting that is true or false, whose flag has no value.
SWITCH = "true|false"

# What to write for a value, by how it is read.
_KINDS: Mapping[Callable[[str], object], str] = {
    read_count: "NUMBER",
    read_bytes: "BYTES",
    read_request_bytes: "BYTES",
    read_duration: "DURATION",
    read_keeping: "DURATION",
    read_bytes_or_off: "BYTES",
    read_address: "HOST:PORT",
    read_address_or_off: "HOST:PORT",
    read_web_hosts: "NAMES",
    read_origins: "ORIGINS",
    read_engine: "ADDRESS",
    read_path: "PATH",
    read_capture: "MODE",
    read_log_bytes: "BYTES",
    read_host_name: "NAME",
    read_pattern: "PATTERN",
    read_host_names: "NAMES",
    read_credential_name: "NAME",
    read_registry: "REGISTRY",
    read_command: "COMMAND",
    read_variable_name: "NAME",
    read_engine_names: "NAMES",
    read_devices: "PATHS",
    read_secret_names: "NAMES",
    read_retries: "NUMBER",
    read_url: "URL",
    read_urls: "URLS",
    read_mail_address: "MAIL-ADDRESS",
    read_mail_addresses: "MAIL-ADDRESSES",
    read_final_states: "STATES",
    Networks.read: "NETWORKS",
    read_webhook_timeout: "DURATION",
    read_server_name: "NAME",
    read_port: "NUMBER",
    read_smtp_tls: "MODE",
    read_user_name: "NAME",
    read_auth: "MODE",
    read_switch: SWITCH,
    read_public: "NAMES",
    read_log_destination: "PATH",
    read_slow_call: "DURATION",
    read_kind: "KIND",
    read_namespace: "NAME",
    read_object_name: "NAME",
    read_object_names: "NAMES",
    read_node_selector: "LABELS",
    read_tolerations: "TAINTS",
    read_image: "IMAGE",
    read_text: "NAME",
}


def _is_missing() -> object:
    """The default of what has none."""
    raise ConfigError("is required")


def setting(default: Callable[[], object], read: Callable[[str], object], meaning: str) -> Any:
    return field(
        default_factory=default, metadata={"default": default, "read": read, "kind": _KINDS[read], "meaning": meaning}
    )


_ADDRESS = "address of the Docker engine: unix://, tcp://, ssh:// or context://"
_NETWORKS = "networks of the engine that jobs may use, separated by commas; by default none"
_VOLUMES = "volumes of the engine that jobs may mount, separated by commas; by default none"
_DEVICES = "devices of the host that jobs may use, separated by commas, as /dev/fuse; by default none"
_GPUS = "jobs may use the GPUs of the host"
_CERTIFICATES = "directory of ca.pem, cert.pem and key.pem; with it an engine at tcp:// is reached by TLS"


_HOST_NAME = "name that executions have for the host, 1 to 63 of a-z, 0-9 and -; do not change it"


@dataclass(frozen=True, slots=True)
class HostSettings:
    """One of several Docker engines, or the only one, which is called `local`; values are checked."""

    name: str = setting(_is_missing, read_host_name, _HOST_NAME)
    engine: str = setting(_is_missing, read_engine, _ADDRESS)
    max_running: int = setting(
        lambda: 4 * (os.cpu_count() or 1),
        read_count,
        "maximum number of running containers; by default four per core of the server's machine",
    )
    capture: CaptureMode = setting(
        lambda: CaptureMode.AUTO, read_capture, "capture mode: recorder, attach, or auto (recorder where it works)"
    )
    engine_data_dir: Path | None = setting(
        lambda: None, read_path, "path of the data directory on the engine's machine; by default detected"
    )
    engine_cert_dir: Path | None = setting(lambda: None, read_path, _CERTIFICATES)
    allow_networks: Sequence[str] = setting(tuple, read_engine_names, _NETWORKS)
    allow_volumes: Sequence[str] = setting(tuple, read_engine_names, _VOLUMES)
    allow_devices: Sequence[str] = setting(tuple, read_devices, _DEVICES)
    allow_gpus: bool = setting(lambda: False, read_switch, _GPUS)
    kind: HostKind = setting(
        lambda: HostKind.DOCKER, read_kind, "kind of the host: docker, or kubernetes, which has other settings"
    )

    @property
    def allowed(self) -> Allowed:
        return Allowed(
            networks=frozenset(self.allow_networks),
            volumes=frozenset(self.allow_volumes),
            devices=frozenset(self.allow_devices),
            gpus=self.allow_gpus,
        )


@dataclass(frozen=True, slots=True)
class KubernetesHostSettings:
    """A host that is a namespace of a Kubernetes cluster; values are checked."""

    name: str = setting(_is_missing, read_host_name, _HOST_NAME)
    kind: HostKind = setting(_is_missing, read_kind, "kind of the host: kubernetes")
    namespace: str = setting(_is_missing, read_namespace, "namespace of the pods")
    kit_image: str = setting(
        _is_missing, read_image, "image of the recorder and the relay, which `make kit` builds; the nodes pull it"
    )
    relay_address: str = setting(
        _is_missing, read_address, "address at which pods reach relay_listen of the server, as 10.0.0.5:7021"
    )
    kubeconfig: Path | None = setting(
        lambda: None, read_path, "kubeconfig of the cluster; by default the account of the pod that the server runs in"
    )
    context: str = setting(lambda: "", read_text, "context of the kubeconfig; by default its current one")
    max_running: int = setting(lambda: 100, read_count, "maximum number of pods at the same time")
    node_selector: Sequence[str] = setting(
        tuple, read_node_selector, "labels of the nodes that may run pods, separated by commas, as disk=ssd"
    )
    tolerations: Sequence[str] = setting(
        tuple, read_tolerations, "taints of nodes that pods tolerate, separated by commas, as gpu=true:NoSchedule,spot"
    )
    service_account: str = setting(
        lambda: "", read_object_name, "service account of the pods; they get no token of it; by default `default`"
    )
    image_pull_secrets: Sequence[str] = setting(
        tuple, read_object_names, "secrets of the namespace by which nodes pull images, separated by commas"
    )
    priority_class: str = setting(lambda: "", read_object_name, "priority class of the pods; by default the cluster's")

    @property
    def allowed(self) -> Allowed:
        """Nothing: networks, volumes and devices are those of a Docker engine."""
        return Allowed()

    @property
    def node_labels(self) -> Mapping[str, str]:
        """`node_selector` by the names of the labels."""
        return {key: value for key, _, value in (label.partition("=") for label in self.node_selector)}

    @property
    def tolerated_taints(self) -> Sequence[Mapping[str, str]]:
        """`tolerations` as a description of a pod has them."""
        return [_toleration(taint) for taint in self.tolerations]


def _toleration(taint: str) -> Mapping[str, str]:
    match = _TOLERATION.fullmatch(taint)
    assert match, "checked when it was read"
    key, value, effect = match["key"], match["value"], match["effect"]
    named = {"key": key} if key else {}
    compared = {"operator": "Exists"} if value is None else {"operator": "Equal", "value": value}
    return {**named, **compared, **({"effect": effect} if effect else {})}


AnyHostSettings: TypeAlias = HostSettings | KubernetesHostSettings


@dataclass(frozen=True, slots=True)
class PoolSettings:
    """One of several pools; values are checked."""

    name: str = setting(_is_missing, read_host_name, "name of the pool, 1 to 63 of a-z, 0-9 and -")
    pattern: str = setting(
        _is_missing,
        read_pattern,
        "names of the pool's tasks, separated by commas, as mail-*,report-?; * is any characters, ? is one",
    )
    hosts: Sequence[str] = setting(_is_missing, read_host_names, "names of the pool's hosts, separated by commas")


_TASKS = (
    "names of the tasks whose jobs may use it, separated by commas, as mail-*,report-?; * is any characters, ? is one"
)


@dataclass(frozen=True, slots=True)
class RegistrySettings:
    """A credential for a registry; values are checked. It has one of password_file, identity_token_file and command."""

    name: str = setting(_is_missing, read_credential_name, "name of the credential, by which jobs may ask for it")
    server: str = setting(
        _is_missing, read_registry, "registry, as in names of images: docker.io, registry.example.org:5000"
    )
    tasks: str = setting(lambda: "*", read_pattern, _TASKS)
    username: str = setting(lambda: "", read_user_name, "user at the registry")
    password_file: Path | None = setting(lambda: None, read_path, "file of the password of username")
    identity_token_file: Path | None = setting(lambda: None, read_path, "file of an identity token, without username")
    command: str = setting(
        lambda: "",
        read_command,
        "command, without a shell, that prints the password of username, or as a docker-credential helper does, JSON",
    )


@dataclass(frozen=True, slots=True)
class SecretSettings:
    """A secret for jobs, or a directory of them; values are checked. It has one of file, directory, env and command."""

    name: str = setting(_is_missing, read_credential_name, "name of the secret, by which jobs ask for it")
    tasks: str = setting(_is_missing, read_pattern, _TASKS)
    file: Path | None = setting(lambda: None, read_path, "file of the secret")
    directory: Path | None = setting(
        lambda: None, read_path, "directory; each of its files is a secret, which jobs name NAME/FILE"
    )
    env: str = setting(lambda: "", read_variable_name, "variable of the server's environment that has the secret")
    command: str = setting(lambda: "", read_command, "command, without a shell, that prints the secret")


@dataclass(frozen=True, slots=True)
class Settings:
    """The checked settings of a server."""

    data_dir: Path = setting(
        lambda: default_data_dir(os.environ), read_path, "directory of jobs and logs, used by one server at a time"
    )
    listen: str = setting(
        lambda: DEFAULT_LISTEN, read_address, "address to listen on; anyone who can reach it can run containers"
    )
    http_listen: str = setting(
        lambda: DEFAULT_HTTP_LISTEN,
        read_address_or_off,
        "address of JSON over HTTP, or off; anyone who can reach it can run containers",
    )
    http_hosts: Sequence[str] = setting(
        tuple,
        read_web_hosts,
        "names by which HTTP is reached besides localhost; without any, every name unless it listens on loopback",
    )
    http_cors_origins: Sequence[str] = setting(
        tuple, read_origins, "origins of web pages elsewhere that may use HTTP; by default none"
    )
    cli_dir: Path | None = setting(
        lambda: None, read_path, "directory of programs of fastlane-tail, which HTTP serves at /cli/; by default none"
    )
    tls_cert: Path | None = setting(
        lambda: None, read_path, "file of the server's certificate and its chain, in PEM; with it both doors speak TLS"
    )
    tls_key: Path | None = setting(lambda: None, read_path, "file of the key of tls_cert, in PEM, without a passphrase")
    tls_client_ca: Path | None = setting(
        lambda: None, read_path, "file of the authorities of clients, in PEM; with it each client needs a certificate"
    )
    relay_listen: str = setting(
        lambda: DEFAULT_RELAY_LISTEN,
        read_address,
        "address to listen on for the relays of pods; in use only with a host of kind kubernetes",
    )
    relay_ca: Path | None = setting(
        lambda: None,
        read_path,
        "file of the authorities that relays trust, in PEM; by default the certificates of tls_cert",
    )
    insecure: bool = setting(
        lambda: False, read_switch, "serve other machines without TLS, or without knowing who calls"
    )
    auth: str = setting(
        lambda: OFF, read_auth, "who may make calls: tokens, which `fastlane token` creates, or off: anyone"
    )
    public: Sequence[str] = setting(
        lambda: ("health",),
        read_public,
        "what needs no token, separated by commas: health, metrics, reflection; or off",
    )
    access_log: str | None = setting(
        lambda: None, read_log_destination, "file of the access log, a line of JSON for each call; - is stderr; or off"
    )
    slow_call: timedelta | None = setting(
        lambda: None,
        read_slow_call,
        "time from which on the server's log tells of a call that took it, as 500ms; or off",
    )
    tracing: bool = setting(
        lambda: False,
        read_switch,
        "export a trace of each job by OTLP, as the variables OTEL_* say; needs the extra otel",
    )
    engine: str = setting(lambda: default_engine(os.environ), read_engine, _ADDRESS)
    capture: CaptureMode = setting(
        lambda: CaptureMode.AUTO, read_capture, "capture mode: recorder, attach, or auto (recorder where it works)"
    )
    engine_data_dir: Path | None = setting(
        lambda: None, read_path, "path of the data directory on the engine's machine; by default detected"
    )
    engine_cert_dir: Path | None = setting(lambda: default_cert_dir(os.environ), read_path, _CERTIFICATES)
    allow_networks: Sequence[str] = setting(tuple, read_engine_names, _NETWORKS)
    allow_volumes: Sequence[str] = setting(tuple, read_engine_names, _VOLUMES)
    allow_devices: Sequence[str] = setting(tuple, read_devices, _DEVICES)
    allow_gpus: bool = setting(lambda: False, read_switch, _GPUS)
    max_log_bytes: int = setting(
        lambda: 1 << 30, read_log_bytes, "maximum size of one log; a larger log loses its middle"
    )
    max_input_bytes: int = setting(lambda: 1 << 30, read_bytes, "maximum size of the inputs of one job, in sum")
    max_output_bytes: int = setting(
        lambda: 1 << 30, read_bytes, "maximum size of the outputs of one execution; larger ones are not kept"
    )
    max_running: int = setting(
        lambda: 4 * (os.cpu_count() or 1), read_count, "maximum number of running containers; by default four per core"
    )
    default_timeout: timedelta = setting(
        lambda: timedelta(minutes=30), read_duration, "timeout of a job that sets none"
    )
    max_timeout: timedelta = setting(lambda: timedelta(days=1), read_duration, "maximum timeout of a job")
    default_pids: int = setting(lambda: 1024, read_count, "limit of processes and threads of a job that sets none")
    max_streams: int = setting(lambda: 2000, read_count, "maximum number of open streams: logs and watches")
    max_request_bytes: int = setting(lambda: 4 << 20, read_request_bytes, "maximum size of a request, up to 64m")
    # A queue that stands still as old logs fill its disk is worse than one without them: hence, by default, there is a
    # limit to their size beside that to their age. The other half of the disk is for what runs, and for whatever else
    # is on it.
    keep_logs: timedelta | None = setting(
        lambda: timedelta(days=30), read_keeping, "retention of a log after its end, or off"
    )
    keep_jobs: timedelta | None = setting(
        lambda: timedelta(days=90), read_keeping, "retention of a job after its end, or off"
    )
    max_total_log_bytes: int | None = setting(
        lambda: None,
        read_bytes_or_off,
        "maximum total size of the logs of ended executions, or off; by default half of the disk",
    )
    min_free_bytes: int | None = setting(
        lambda: None,
        read_bytes_or_off,
        "free disk space below which new jobs are rejected, or off; by default 256m, or 1/16 of a small disk",
    )
    max_waiting: int = setting(
        lambda: 1_000_000,
        read_count,
        "maximum number of scheduled and queued executions; beyond it new jobs are rejected",
    )
    default_history: int = setting(
        lambda: 100,
        read_count,
        "number of executions that are kept of a job that has not ended, unless it says how many",
    )
    cache_bytes: int = setting(lambda: 64 << 20, read_bytes, "memory for log segments that are being read")
    secret_names: SecretNames = setting(
        SecretNames, read_secret_names, "names of environment variables whose values are never shown"
    )
    external_url: str | None = setting(
        lambda: None,
        read_url,
        "URL of the page for people, which notifications link to, as https://fastlane.example.org",
    )
    notify_urls: Sequence[str] | None = setting(
        lambda: None,
        read_urls,
        "webhooks that are told of each run of a job that has no notifications, separated by commas",
    )
    notify_mails: Sequence[str] | None = setting(
        lambda: None, read_mail_addresses, "mail addresses that are told the same, separated by commas"
    )
    notify_states: Sequence[str] | None = setting(
        lambda: None, read_final_states, "final states that these are told of, as failed,timed-out,lost; by default all"
    )
    notify_retries: int = setting(
        lambda: 12, read_retries, "number of further attempts to deliver a notification, up to 100"
    )
    notify_backoff: timedelta = setting(
        lambda: timedelta(seconds=5), read_duration, "wait before the second attempt; each further one is twice as long"
    )
    notify_max_backoff: timedelta = setting(
        lambda: timedelta(hours=1), read_duration, "longest wait before an attempt to deliver a notification"
    )
    keep_deliveries: timedelta | None = setting(
        lambda: timedelta(days=7), read_keeping, "retention of a notification after its delivery or failure, or off"
    )
    webhook_networks: Networks = setting(
        Networks,
        Networks.read,
        "addresses that webhooks may have: public, private, loopback, or networks as 10.1.0.0/16, separated by commas",
    )
    webhook_secrets: Path | None = setting(
        lambda: None, read_path, "file of the keys that sign webhooks, one NAME=whsec_BASE64 per line"
    )
    webhook_timeout: timedelta = setting(
        lambda: timedelta(seconds=15), read_webhook_timeout, "maximum time of one attempt of a webhook, up to 60s"
    )
    smtp_host: str | None = setting(lambda: None, read_server_name, "mail server; without it no mails are sent")
    smtp_port: int | None = setting(
        lambda: None, read_port, "port of the mail server; by default 587, 465 with smtp_tls=tls, 25 with smtp_tls=off"
    )
    smtp_tls: str = setting(
        lambda: SMTP_TLS[0], read_smtp_tls, "encryption of the connection to the mail server: starttls, tls or off"
    )
    smtp_user: str | None = setting(
        lambda: None, read_user_name, "user to log in to the mail server; by default no login"
    )
    smtp_password_file: Path | None = setting(lambda: None, read_path, "file of the password of smtp_user")
    smtp_from: str | None = setting(lambda: None, read_mail_address, "sender of mails; required with smtp_host")
    # None are given: the one that the settings above make.
    hosts: Sequence[AnyHostSettings] = ()
    # In their order; none: every host takes every task.
    pools: Sequence[PoolSettings] = ()
    # In their order; none: what `docker login` left.
    registries: Sequence[RegistrySettings] = ()
    secrets: Sequence[SecretSettings] = ()

    @property
    def kubernetes_hosts(self) -> Sequence[KubernetesHostSettings]:
        """The hosts that are namespaces of clusters; none: the server listens for no relays."""
        return [host for host in self.hosts if isinstance(host, KubernetesHostSettings)]

    @property
    def pools_of_hosts(self) -> Pools:
        """The pools, as the store and the dispatcher use them."""
        pools = [Pool(pool.name, pool.pattern, pool.hosts) for pool in self.pools]
        return Pools(pools, [host.name for host in self.hosts])

    @property
    def default_notifications(self) -> Sequence[Notification]:
        """The notifications of jobs that have none of their own."""
        states = tuple(FINAL_STATE_NAMES[name] for name in self.notify_states or ())
        targets: list[Webhook | Mail] = [Webhook(url) for url in self.notify_urls or ()]
        if self.notify_mails:
            targets.append(Mail(self.notify_mails))
        return tuple(Notification(target, states) for target in targets)

    def __post_init__(self) -> None:
        self._check_mail_settings()
        self._check_tls_settings()
        for url in self.notify_urls or ():
            if refusal := self.webhook_networks.refusal_in(url):
                raise ConfigError(f"notify_urls has a URL that cannot be used: {refusal}")
        if not self.hosts:
            object.__setattr__(self, "hosts", (_local_host(self),))
        if self.default_timeout > self.max_timeout:
            default, most = _duration_text(self.default_timeout), _duration_text(self.max_timeout)
            raise ConfigError(f"default_timeout ({default}) is longer than max_timeout ({most}): set both")

    def _check_tls_settings(self) -> None:
        if bool(self.tls_cert) != bool(self.tls_key):
            raise ConfigError("tls_cert and tls_key go together: set both, or neither")
        if self.tls_client_ca and not self.tls_cert:
            raise ConfigError("tls_client_ca is set, and tls_cert is not: clients are checked only where TLS is spoken")
        if self.relay_ca and not self.tls_cert:
            raise ConfigError("relay_ca is set, and tls_cert is not: relays check the server only where TLS is spoken")

    def _check_mail_settings(self) -> None:
        if self.smtp_host and not self.smtp_from:
            raise ConfigError("smtp_host is set, and smtp_from is not: set the sender of the mails")
        if self.notify_mails and not self.smtp_host:
            raise ConfigError("notify_mails is set, and smtp_host is not: set the mail server")
        if bool(self.smtp_user) != bool(self.smtp_password_file):
            raise ConfigError("smtp_user and smtp_password_file go together: set both, or neither")
        if self.smtp_user and self.smtp_tls == OFF:
            raise ConfigError(
                "smtp_user cannot be combined with smtp_tls = off, which would send the password readable"
            )


# Every setting that is one value, and so may be a flag, a variable of the environment or in the file.
SETTINGS: Sequence["Field[Any]"] = [each for each in fields(Settings) if each.metadata]

# The name of the only host, where none are configured.
LOCAL = "local"
# What makes the host `local`, and so cannot be beside hosts of their own.
_OF_LOCAL = (
    *("engine", "capture", "engine_data_dir", "engine_cert_dir"),
    *("allow_networks", "allow_volumes", "allow_devices", "allow_gpus"),
)


def _local_host(settings: Settings) -> HostSettings:
    return HostSettings(
        LOCAL, max_running=settings.max_running, **{name: getattr(settings, name) for name in _OF_LOCAL}
    )


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
    values: dict[str, Any] = {each.name: _read(each, *given[each.name]) for each in SETTINGS if each.name in given}
    if tables is not None:
        hosts = _read_hosts(tables, file)
        if beside := next((name for name in _OF_LOCAL if name in given), None):
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


def default_text(name: str) -> str:
    """The default of a setting as it is now and here, written as the setting is; empty if it has none.

    Raises ConfigError where the environment spoils it.
    """
    [each] = [each for each in SETTINGS if each.name == name]
    return _text(each, each.metadata["default"]())


def toml(in_force: InForce) -> str:
    """Return a settings file with the settings that are in force, and a comment for each with its origin."""
    settings = in_force.settings
    hosts = _configured_hosts(settings)
    lines = [
        _toml_line(each, _written(in_force, each), in_force.origin(each.name))
        for each in SETTINGS
        if not (hosts and each.name in _OF_LOCAL)
    ]
    if not hosts:
        lines += ["", f'# No [[hosts]]: the only host is "local", made of {", ".join(_OF_LOCAL)} and max_running.']
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


def default_data_dir(environ: Mapping[str, str]) -> Path:
    if os.geteuid() == 0:
        return Path("/var/lib/fastlane")
    return Path(environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share").absolute() / "fastlane"


def default_engine(environ: Mapping[str, str]) -> str:
    """The engine that the `docker` command would use."""
    [engine] = [each for each in SETTINGS if each.name == "engine"]
    address: str = _read(engine, environ.get("DOCKER_HOST") or DEFAULT_ENGINE, "environment variable DOCKER_HOST")
    return address


def otlp_queue_size() -> int:
    """Return how many spans may wait for the collector, as OpenTelemetry's variable sets it. ValueError: it is no
    number above 0."""
    text = os.environ.get("OTEL_BSP_MAX_QUEUE_SIZE", "2048")
    if not text.isdecimal() or int(text) == 0:
        raise ValueError(f"OTEL_BSP_MAX_QUEUE_SIZE is {text!r}; must be a number above 0")
    return int(text)


def otlp_protocol(environ: Mapping[str, str] = os.environ) -> str:
    """The protocol of OpenTelemetry's own variables; grpc if they name none."""
    names = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
    return next(filter(None, map(environ.get, names)), "grpc")


def default_cert_dir(environ: Mapping[str, str]) -> Path | None:
    """The certificates that the `docker` command would use."""
    if not environ.get("DOCKER_TLS_VERIFY"):
        return None
    return read_path(environ.get("DOCKER_CERT_PATH") or "~/.docker")


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
    is_kubernetes = "kind" in table and _read(kind, table["kind"], where) == HostKind.KUBERNETES
    settings: type[AnyHostSettings] = KubernetesHostSettings if is_kubernetes else HostSettings
    for name in table:
        _check_kind_of_host(name, settings, where)
        _known(name, _names(fields(settings)), f"setting in {where}")
    values = {each.name: _read(each, table[each.name], where) for each in fields(settings) if each.name in table}
    for each in fields(settings):
        if each.name not in values and each.metadata["default"] is _is_missing:
            raise ConfigError(f"{where} has no {each.name}, which is required")
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
    pool = PoolSettings(**{each.name: _read(each, table[each.name], where) for each in fields(PoolSettings)})
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
            if each.name not in table and each.metadata["default"] is _is_missing:
                raise ConfigError(f"{where} has no {each.name}, which is required")
        values = {each.name: _read(each, table[each.name], where) for each in fields(table_kind) if each.name in table}
        read.append(table_kind(**values))
        if any(other.name == read[-1].name for other in read[:-1]):
            raise ConfigError(f"two [[{kind}]] in {file} have the name {read[-1].name!r}: give each its own name")
    return read


def _check_one_of(table: object, names: Sequence[str], where: str) -> None:
    if sum(bool(getattr(table, name)) for name in names) != 1:
        raise ConfigError(f"{where} must have one of {', '.join(names[:-1])} and {names[-1]}")


def _configured_hosts(settings: Settings) -> Sequence[AnyHostSettings]:
    """Return the hosts that are written in the file; none if the only host is made of the other settings."""
    return () if list(settings.hosts) == [_local_host(settings)] else settings.hosts


def _counted(count: int, units: tuple[tuple[str, int], ...]) -> str:
    """Return the quantity in the largest unit that divides it."""
    return next((f"{count // size}{unit}" for unit, size in units if count % size == 0), str(count))


def _duration_text(duration: timedelta) -> str:
    milliseconds = duration // timedelta(milliseconds=1)
    return _counted(milliseconds, (("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)))


def _text(each: "Field[Any]", value: Any) -> str:
    """A value as it is written; empty if there is none."""
    if value is None:
        return ""
    if isinstance(value, timedelta):
        return _duration_text(value)
    if isinstance(value, tuple):
        return ",".join(value)
    if isinstance(value, bool):
        return str(value).lower()
    if each.metadata["kind"] == "BYTES":
        return _counted(value, (("g", 1 << 30), ("m", 1 << 20), ("k", 1 << 10)))
    return str(value)


def _written(in_force: InForce, each: "Field[Any]") -> int | str | None:
    """A setting as it is written; None if it is not set. One that turns something off is written as it was given."""
    value = getattr(in_force.settings, each.name)
    return _plain(each, value) if value or each.name not in in_force.given else in_force.given[each.name][0]


def _plain(each: "Field[Any]", value: Any) -> int | str | None:
    """A value as it is shown: without the password that an address may hold."""
    if value is None or each.metadata["kind"] == "NUMBER":
        return value  # type: ignore[no-any-return]
    text = _text(each, value)
    return mask_secrets(text) if each.metadata["kind"] in {"ADDRESS", "URLS", "COMMAND"} else text


def _toml_line(each: "Field[Any]", plain: int | str | None, origin: str) -> str:
    if plain is None:
        return f"# {each.name} is not set"
    # JSON's texts are TOML's, but for one character.
    value = json.dumps(plain, ensure_ascii=False).replace("\x7f", "\\u007f")
    return f"{each.name} = {value}  # {_one_line(origin)}"


def _one_line(text: str) -> str:
    return "".join(character if character.isprintable() else "?" for character in text)


def _names(settings: Sequence["Field[Any]"]) -> list[str]:
    return [each.name for each in settings]


def _known(name: str, names: Sequence[str], what: str) -> str:
    if name in names:
        return name
    near = difflib.get_close_matches(name, names, 1)
    raise ConfigError(
        f"unknown {what}: {name!r}" + (f"; did you mean {near[0]!r}?" if near else f"; known names: {', '.join(names)}")
    )


def _read(each: "Field[Any]", value: object, where: str) -> Any:
    where = re.sub("^(flag|file) ", "", where)
    if isinstance(value, bool) and each.metadata["kind"] == SWITCH:
        value = str(value)
    # TOML has kinds of its own; of these, a text and a whole number can be meant.
    if isinstance(value, bool) or not isinstance(value, str | int):
        kind = _TOML_KINDS.get(type(value), "a date or a time")
        raise ConfigError(f"{each.name} in {where} is {kind}; it must be a quoted text or a whole number")
    if not str(value).isprintable() and any("\ud800" <= character <= "\udfff" for character in str(value)):
        raise ConfigError(f"{each.name} in {where} is not UTF-8")
    try:
        return each.metadata["read"](str(value))
    except ValueError as error:
        raise ConfigError(f"{each.name} in {where} is {mask_secrets(str(value))!r}: {error}") from None


_TOML_KINDS = {bool: "true or false", float: "a number with a point", list: "a list", dict: "a table"}
