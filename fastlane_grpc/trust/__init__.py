"""Who may reach the server, and what they may do."""

from fastlane_grpc.trust.certificates import CertificateFiles, Certificates

__all__ = ["CertificateFiles", "Certificates"]
