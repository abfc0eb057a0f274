"""Secrets of the operator: credentials of registries, read from files or commands when they are needed.

No value is logged, stored, or part of an error.
"""

from fastlane_grpc.secrets.registries import Credential, RegistryCredentials, read_credential
from fastlane_grpc.secrets.source import Unreadable

__all__ = ["Credential", "RegistryCredentials", "Unreadable", "read_credential"]
