"""Access to the server: certificates, tokens, roles."""

from fastlane_grpc.trust.access import ANYBODY, PRINCIPAL, Access, Credentials, Principal
from fastlane_grpc.trust.certificates import CertificateFiles, Certificates, read_authorities
from fastlane_grpc.trust.peer import PEER, Peer
from fastlane_grpc.trust.permissions import HEALTH, METRICS, OTHERS, PERMISSIONS, REFLECTION, Permission, Scope
from fastlane_grpc.trust.tokens import Role, TaskPattern, Token, TokenFile, TokenRefused, TokensUnusable

__all__ = [
    "ANYBODY",
    "HEALTH",
    "METRICS",
    "OTHERS",
    "PEER",
    "PERMISSIONS",
    "PRINCIPAL",
    "REFLECTION",
    "Access",
    "CertificateFiles",
    "Certificates",
    "Credentials",
    "Peer",
    "Permission",
    "Principal",
    "Role",
    "Scope",
    "TaskPattern",
    "Token",
    "TokenFile",
    "TokenRefused",
    "TokensUnusable",
    "read_authorities",
]
