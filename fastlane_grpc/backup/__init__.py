"""Backups of a data directory: taken while a server serves it, restored, and verified."""

from fastlane_grpc.backup.manifest import BackupError, Manifest
from fastlane_grpc.backup.restoring import Restored, restore
from fastlane_grpc.backup.taking import back_up
from fastlane_grpc.backup.verifying import Fault, Verification, verify

__all__ = ["BackupError", "Fault", "Manifest", "Restored", "Verification", "back_up", "restore", "verify"]
