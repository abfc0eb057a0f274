"""How the values of settings are read from text, and what to write for each kind of them."""

import posixpath
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path

from fastlane_grpc.model import CaptureMode, HostKind, PodCaptureMode, State
from fastlane_grpc.networks import Networks
from fastlane_grpc.pools import read_pattern
from fastlane_grpc.text.receivers import url_fault
from fastlane_grpc.text.redaction import DEFAULT, SecretNames
from fastlane_grpc.text.shell_words import split_command
from fastlane_grpc.text.values import (
    OFF,
    read_address,
    read_bytes,
    read_count,
    read_duration,
    read_mail_address,
)


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


def read_pod_capture(text: str) -> PodCaptureMode:
    if text.lower() not in set(PodCaptureMode):
        raise ValueError("must be relay or kubelet for a host of kind kubernetes")
    return PodCaptureMode(text.lower())


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


def read_relay_address(text: str) -> str:
    try:
        has_port = read_address(text).rpartition(":")[2].strip("0") != ""
    except ValueError:
        has_port = False
    if not has_port:
        raise ValueError("must be HOST:PORT, as 10.0.0.5:7021: where pods reach relay_listen of the server")
    return text


def read_resource_name(text: str) -> str:
    if not re.fullmatch(_LABEL_KEY, text) or "/" not in text:
        raise ValueError("must be the name of a resource of Kubernetes, as nvidia.com/gpu")
    return text


def read_cpus(text: str) -> float:
    if not re.fullmatch(r"\d{1,4}(\.\d{1,3})?", text, re.ASCII) or not float(text):
        raise ValueError("must be a number of processors, as 2 or 0.5, with at most three places")
    return float(text)


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


TOLERATION = re.compile(
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
        if not TOLERATION.fullmatch(taint):
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
KINDS: Mapping[Callable[[str], object], str] = {
    read_count: "NUMBER",
    read_cpus: "NUMBER",
    read_bytes: "BYTES",
    read_request_bytes: "BYTES",
    read_duration: "DURATION",
    read_keeping: "DURATION",
    read_bytes_or_off: "BYTES",
    read_address: "HOST:PORT",
    read_relay_address: "HOST:PORT",
    read_address_or_off: "HOST:PORT",
    read_web_hosts: "NAMES",
    read_origins: "ORIGINS",
    read_engine: "ADDRESS",
    read_path: "PATH",
    read_capture: "MODE",
    read_pod_capture: "MODE",
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
    read_resource_name: "RESOURCE",
    read_object_names: "NAMES",
    read_node_selector: "LABELS",
    read_tolerations: "TAINTS",
    read_image: "IMAGE",
    read_text: "NAME",
}


def counted(count: int, units: tuple[tuple[str, int], ...]) -> str:
    """Return the quantity in the largest unit that divides it."""
    return next((f"{count // size}{unit}" for unit, size in units if count % size == 0), str(count))


def duration_text(duration: timedelta) -> str:
    milliseconds = duration // timedelta(milliseconds=1)
    return counted(milliseconds, (("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)))
