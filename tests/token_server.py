"""A server that gives out the tokens of a registry, as those of Docker Hub and GitLab do: signed JWT for a user with a
password, or for an identity token."""

import base64
import hmac
import json
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from tests.tools import tool

ISSUER, SERVICE = "tokens.test", "registry.test"


class TokenServer:
    """Lets in one user, with a password, and one identity token; both may be changed."""

    def __init__(self, directory: Path, *, user: str, password: str, identity_token: str) -> None:
        self._certificate, self._key = directory / "tokens.pem", directory / "tokens.key"
        files = ("-keyout", self._key, "-out", self._certificate)
        command = [tool("openssl"), "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=tokens", *files]
        subprocess.run(command, check=True, capture_output=True)
        self.login = f"{user}:{password}"
        self.identity_token = identity_token

    @contextmanager
    def serving(self) -> Iterator[dict[str, object]]:
        """Serves on loopback. Yields the configuration of a registry that asks for the tokens."""
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                given = self.headers.get("Authorization", "").removeprefix("Basic ")
                fields = parse_qs(urlsplit(self.path).query)
                self._answer(hmac.compare_digest(given, _base64(server.login.encode())), fields)

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"])).decode()
                fields = parse_qs(body)
                self._answer(fields.get("refresh_token") == [server.identity_token], fields)

            def _answer(self, let_in: bool, fields: dict[str, list[str]]) -> None:
                answer: dict[str, object] = {"details": "the time of this token is over"}
                if let_in:
                    token = server._token(" ".join(fields.get("scope", [])).split())
                    answer = {"token": token, "access_token": token, "expires_in": 60}
                body = json.dumps(answer).encode()
                self.send_response(200 if let_in else 401)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *args: object) -> None:
                """Says nothing."""

        with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
            http.daemon_threads = True
            threading.Thread(target=http.serve_forever, daemon=True).start()
            try:
                yield {
                    "token": {
                        "realm": f"http://127.0.0.1:{http.server_port}/token",
                        "service": SERVICE,
                        "issuer": ISSUER,
                        "rootcertbundle": str(self._certificate),
                    }
                }
            finally:
                http.shutdown()

    def _token(self, scopes: list[str]) -> str:
        """A JWT that allows what is asked for."""
        access = []
        for scope in scopes:
            kind, _, rest = scope.partition(":")
            name, _, actions = rest.rpartition(":")
            access.append({"type": kind, "name": name, "actions": actions.split(",")})
        now = int(time.time())
        claims: dict[str, object] = {"iss": ISSUER, "aud": SERVICE, "sub": "me", "jti": str(time.monotonic_ns())}
        claims |= {"access": access, "nbf": now - 60, "iat": now, "exp": now + 60}
        certificate = "".join(self._certificate.read_text().splitlines()[1:-1])
        signed = f"{_part({'typ': 'JWT', 'alg': 'RS256', 'x5c': [certificate]})}.{_part(claims)}"
        sign = [tool("openssl"), "dgst", "-sha256", "-sign", self._key]
        signature = subprocess.run(sign, input=signed.encode(), check=True, capture_output=True).stdout
        return f"{signed}.{_url_base64(signature)}"


def _part(value: object) -> str:
    return _url_base64(json.dumps(value).encode())


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _url_base64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")
