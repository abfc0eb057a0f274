"""Secrets of the operator, for jobs and for registries, read from files or commands when they are needed.

No value is logged, stored, or part of an error.
"""

from fastlane_grpc.secrets.named import NamedSecrets, SecretUnusable
from fastlane_grpc.secrets.registries import Credential, RegistryCredentials, read_credential
from fastlane_grpc.secrets.source import Unreadable

__all__ = [
    "Credential",
    "NamedSecrets",
    "RegistryCredentials",
    "SecretUnusable",
    "Unreadable",
    "read_credential",
]
