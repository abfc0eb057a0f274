"""Tokens by which a server knows the relays of its pods."""

import hashlib
import hmac


class RelayTokens:
    """The tokens of relays: one for each pod of an execution, made from a key that only the server has."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    def token(self, execution_id: str, pod: str) -> str:
        """Return the token of a pod of an execution, by the pod's number."""
        return hmac.new(self._key, f"{execution_id}/{pod}".encode(), hashlib.sha256).hexdigest()

    def admits(self, execution_id: str, pod: str, token: str) -> bool:
        """Whether this is the token of the pod."""
        return hmac.compare_digest(self.token(execution_id, pod).encode(), token.encode())
