"""Every setting of the server, once: its default, its meaning and how it is read."""

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import Field, dataclass, field, fields
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeAlias

from fastlane_grpc.config.values import (
    FINAL_STATE_NAMES,
    KINDS,
    SMTP_TLS,
    SWITCH,
    TOLERATION,
    duration_text,
    read_address_or_off,
    read_auth,
    read_bytes_or_off,
    read_capture,
    read_command,
    read_cpus,
    read_credential_name,
    read_devices,
    read_engine,
    read_engine_names,
    read_final_states,
    read_host_name,
    read_host_names,
    read_image,
    read_keeping,
    read_kind,
    read_log_bytes,
    read_log_destination,
    read_mail_addresses,
    read_namespace,
    read_node_selector,
    read_object_name,
    read_object_names,
    read_origins,
    read_path,
    read_pod_capture,
    read_port,
    read_public,
    read_registry,
    read_relay_address,
    read_request_bytes,
    read_resource_name,
    read_retries,
    read_secret_names,
    read_server_name,
    read_slow_call,
    read_smtp_tls,
    read_switch,
    read_text,
    read_tolerations,
    read_url,
    read_urls,
    read_user_name,
    read_variable_name,
    read_web_hosts,
    read_webhook_timeout,
)
from fastlane_grpc.model import Allowed, CaptureMode, HostKind, Mail, Notification, PodCaptureMode, Webhook
from fastlane_grpc.networks import Networks
from fastlane_grpc.pools import Pool, Pools, read_pattern
from fastlane_grpc.text.redaction import SecretNames, mask_secrets
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


def is_missing() -> object:
    """The default of what has none."""
    raise ConfigError("is required")


def setting(default: Callable[[], object], read: Callable[[str], object], meaning: str) -> Any:
    return field(
        default_factory=default, metadata={"default": default, "read": read, "kind": KINDS[read], "meaning": meaning}
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

    name: str = setting(is_missing, read_host_name, _HOST_NAME)
    engine: str = setting(is_missing, read_engine, _ADDRESS)
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

    name: str = setting(is_missing, read_host_name, _HOST_NAME)
    kind: HostKind = setting(is_missing, read_kind, "kind of the host: kubernetes")
    namespace: str = setting(is_missing, read_namespace, "namespace of the pods")
    kit_image: str = setting(
        lambda: "",
        read_image,
        "image of the recorder and the relay, which `make kit` builds; the nodes pull it; needed for capture relay",
    )
    relay_address: str = setting(
        lambda: "",
        read_relay_address,
        "address at which pods reach relay_listen of the server, as 10.0.0.5:7021; needed for capture relay",
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
    runtime_class: str = setting(
        lambda: "", read_object_name, "runtime class of the pods; by default the nodes' runtime"
    )
    gpu_resource: str = setting(
        lambda: "",
        read_resource_name,
        "resource by which nodes offer GPUs, as nvidia.com/gpu; by default no job has any",
    )
    default_cpus: float | None = setting(
        lambda: None, read_cpus, "processors of a job that does not say how many; by default unlimited"
    )
    default_memory: int | None = setting(
        lambda: None, read_bytes, "memory of a job that does not say how much; by default unlimited"
    )
    capture: PodCaptureMode = setting(
        lambda: PodCaptureMode.RELAY,
        read_pod_capture,
        "capture mode: relay, which is exact, or kubelet where pods do not reach the server, whose logs may have gaps",
    )

    @property
    def allowed(self) -> Allowed:
        """GPUs alone: networks, volumes and devices are those of a Docker engine."""
        return Allowed(gpus=bool(self.gpu_resource))

    @property
    def node_labels(self) -> Mapping[str, str]:
        """`node_selector` by the names of the labels."""
        return {key: value for key, _, value in (label.partition("=") for label in self.node_selector)}

    @property
    def tolerated_taints(self) -> Sequence[Mapping[str, str]]:
        """`tolerations` as a description of a pod has them."""
        return [_toleration(taint) for taint in self.tolerations]


def _toleration(taint: str) -> Mapping[str, str]:
    match = TOLERATION.fullmatch(taint)
    assert match, "checked when it was read"
    key, value, effect = match["key"], match["value"], match["effect"]
    named = {"key": key} if key else {}
    compared = {"operator": "Exists"} if value is None else {"operator": "Equal", "value": value}
    return {**named, **compared, **({"effect": effect} if effect else {})}


AnyHostSettings: TypeAlias = HostSettings | KubernetesHostSettings


@dataclass(frozen=True, slots=True)
class PoolSettings:
    """One of several pools; values are checked."""

    name: str = setting(is_missing, read_host_name, "name of the pool, 1 to 63 of a-z, 0-9 and -")
    pattern: str = setting(
        is_missing,
        read_pattern,
        "names of the pool's tasks, separated by commas, as mail-*,report-?; * is any characters, ? is one",
    )
    hosts: Sequence[str] = setting(is_missing, read_host_names, "names of the pool's hosts, separated by commas")


_TASKS = (
    "names of the tasks whose jobs may use it, separated by commas, as mail-*,report-?; * is any characters, ? is one"
)


@dataclass(frozen=True, slots=True)
class RegistrySettings:
    """A credential for a registry; values are checked. It has one of password_file, identity_token_file and command."""

    name: str = setting(is_missing, read_credential_name, "name of the credential, by which jobs may ask for it")
    server: str = setting(
        is_missing, read_registry, "registry, as in names of images: docker.io, registry.example.org:5000"
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
    pull_secret: str = setting(
        lambda: "", read_object_name, "secret of the namespace by which nodes of kubernetes hosts pull what it allows"
    )


@dataclass(frozen=True, slots=True)
class SecretSettings:
    """A secret for jobs, or a directory of them; values are checked. It has one of file, directory, env and command."""

    name: str = setting(is_missing, read_credential_name, "name of the secret, by which jobs ask for it")
    tasks: str = setting(is_missing, read_pattern, _TASKS)
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
        "address to listen on for the relays of pods; in use while a host of kind kubernetes has pods with relays",
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
    # Without [[hosts]] in the file: the host `local`, made of the settings above.
    hosts: Sequence[AnyHostSettings] = ()
    # In their order; none: every host takes every task.
    pools: Sequence[PoolSettings] = ()
    # In their order; none: what `docker login` left.
    registries: Sequence[RegistrySettings] = ()
    secrets: Sequence[SecretSettings] = ()

    @property
    def kubernetes_hosts(self) -> Sequence[KubernetesHostSettings]:
        """The hosts that are namespaces of clusters."""
        return [host for host in self.hosts if isinstance(host, KubernetesHostSettings)]

    @property
    def relayed_hosts(self) -> Sequence[KubernetesHostSettings]:
        """The hosts whose pods have relays; none: the server listens for no relays."""
        return [host for host in self.kubernetes_hosts if host.capture is PodCaptureMode.RELAY]

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
            object.__setattr__(self, "hosts", (local_host(self),))
        if self.default_timeout > self.max_timeout:
            default, most = duration_text(self.default_timeout), duration_text(self.max_timeout)
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
OF_LOCAL = (
    *("engine", "capture", "engine_data_dir", "engine_cert_dir"),
    *("allow_networks", "allow_volumes", "allow_devices", "allow_gpus"),
)


def local_host(settings: Settings) -> HostSettings:
    return HostSettings(LOCAL, max_running=settings.max_running, **{name: getattr(settings, name) for name in OF_LOCAL})


def default_data_dir(environ: Mapping[str, str]) -> Path:
    if os.geteuid() == 0:
        return Path("/var/lib/fastlane")
    return Path(environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share").absolute() / "fastlane"


def default_engine(environ: Mapping[str, str]) -> str:
    """The engine that the `docker` command would use."""
    [engine] = [each for each in SETTINGS if each.name == "engine"]
    address: str = read_setting(
        engine, environ.get("DOCKER_HOST") or DEFAULT_ENGINE, "environment variable DOCKER_HOST"
    )
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


def read_setting(each: "Field[Any]", value: object, where: str) -> Any:
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
