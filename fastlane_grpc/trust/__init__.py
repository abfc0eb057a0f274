"""Access to the server: certificates, tokens, roles."""

from fastlane_grpc.trust.certificates import CertificateFiles, Certificates

__all__ = ["CertificateFiles", "Certificates"]
