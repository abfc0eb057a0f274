"""The credentials of TLS for a gRPC server."""

import grpc

from fastlane_grpc.trust import Certificates


def server_credentials(certificates: Certificates, *, ask_clients: bool) -> grpc.ServerCredentials:
    """Return credentials that ask for the current certificate at each handshake.

    `ask_clients`: clients need a certificate too, where authorities of clients are configured.
    """
    asked = ask_clients and certificates.mutual

    def configuration() -> grpc.ServerCertificateConfiguration:
        current = certificates.current()
        pair = (current.key, current.chain)
        return grpc.ssl_server_certificate_configuration([pair], current.client_ca if asked else None)

    return grpc.dynamic_ssl_server_credentials(configuration(), configuration, require_client_authentication=asked)
