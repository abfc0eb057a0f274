"""Registries of images: the credentials for them, and what must be known of an image that no engine here pulls."""

from fastlane_grpc.registry.client import RegistryClient
from fastlane_grpc.registry.credentials import Credentials, credential_of_job, credentials_for, credentials_of_job
from fastlane_grpc.registry.images import read_image
from fastlane_grpc.registry.reference import Reference

__all__ = [
    "Credentials",
    "Reference",
    "RegistryClient",
    "credential_of_job",
    "credentials_for",
    "credentials_of_job",
    "read_image",
]
