"""The settings of the server: read from flags, environment and file, checked, and shown again."""

from fastlane_grpc.config.loading import InForce, in_force, load
from fastlane_grpc.config.settings import (
    DEFAULT_ENGINE,
    DEFAULT_RELAY_LISTEN,
    SETTINGS,
    AnyHostSettings,
    ConfigError,
    HostSettings,
    KubernetesHostSettings,
    PoolSettings,
    RegistrySettings,
    SecretSettings,
    Settings,
    default_cert_dir,
    is_missing,
    otlp_protocol,
    otlp_queue_size,
)
from fastlane_grpc.config.shown import as_json, default_text, setting_text, shown_settings, toml
from fastlane_grpc.config.values import SWITCH, is_credential_name, is_device_path, is_engine_name, read_engine

__all__ = [
    "DEFAULT_ENGINE",
    "DEFAULT_RELAY_LISTEN",
    "SETTINGS",
    "SWITCH",
    "AnyHostSettings",
    "ConfigError",
    "HostSettings",
    "InForce",
    "KubernetesHostSettings",
    "PoolSettings",
    "RegistrySettings",
    "SecretSettings",
    "Settings",
    "as_json",
    "default_cert_dir",
    "default_text",
    "in_force",
    "is_credential_name",
    "is_device_path",
    "is_engine_name",
    "is_missing",
    "load",
    "otlp_protocol",
    "otlp_queue_size",
    "read_engine",
    "setting_text",
    "shown_settings",
    "toml",
]
