"""The SDK's client of an engine, on the connections of `address`. Every failure is EngineDown or EngineRefuses."""

from collections.abc import Callable
from socket import socket
from typing import Any, TypeVar

import docker
import docker.auth
import docker.errors
from docker.transport.unixconn import UnixHTTPAdapter, UnixHTTPConnection, UnixHTTPConnectionPool

from fastlane_grpc.docker.address import EngineAddress
from fastlane_grpc.docker.engine_errors import EngineDown, EngineRefuses
from fastlane_grpc.docker.http import NO_ENGINE_STATUS

T = TypeVar("T")

# The SDK puts it before the path of each request; it reaches no engine and no proxy.
_BASE_URL = "http+docker://engine"


class SdkClient(docker.APIClient):
    """An APIClient for an engine whose API has `version`. Any thread may call it.

    A call waits `answer_seconds` for each part of an answer.
    """

    def __init__(self, address: EngineAddress, version: str, answer_seconds: Any) -> None:
        # Not the SDK's own initialisation. That one reads the whole file of `docker login`, and fails if the entry of
        # any registry is broken; `credentials.py` reads the one entry that is needed.
        super(docker.APIClient, self).__init__()
        self._general_configs: dict[str, Any] = {}
        self._auth_configs = docker.auth.AuthConfig({})
        self._version = version
        self.credstore_env = None
        self.base_url = _BASE_URL
        self.timeout = answer_seconds
        # No proxy and no password of the environment is for an engine.
        self.trust_env = False
        if not address.dear:
            self.headers["Connection"] = "close"
        self.mount("http+docker://", _Adapter(address, answer_seconds))


def asked(what: str, call: Callable[[], T]) -> T:
    """Return the result of a call of the SDK, whose name for people is `what`."""
    try:
        return call()
    except docker.errors.APIError as error:
        status, message = error.status_code or 500, str(error.explanation or error)
        if status in NO_ENGINE_STATUS:
            raise EngineDown(f"the engine did not answer {what}: {status} {message}") from error
        raise EngineRefuses(status, message) from error
    # The SDK's and its transport's errors, which say last what was first.
    except (docker.errors.DockerException, OSError, ValueError) as error:
        raise EngineDown(f"the engine did not answer {what}: {_root(error)}") from error


def _root(error: BaseException) -> BaseException:
    while (earlier := error.__cause__ or error.__context__) is not None:
        error = earlier
    return error


class _Adapter(UnixHTTPAdapter):
    def __init__(self, address: EngineAddress, answer_seconds: Any) -> None:
        super().__init__("http+unix://engine", answer_seconds)
        self._pool = _Pool(address, answer_seconds)

    def close(self) -> None:
        self._pool.close()

    def get_connection(self, url: Any, proxies: Any = None) -> UnixHTTPConnectionPool:
        return self._pool


class _Pool(UnixHTTPConnectionPool):
    def __init__(self, address: EngineAddress, answer_seconds: Any) -> None:
        super().__init__(_BASE_URL, "", answer_seconds)
        self._address = address

    def _new_conn(self) -> Any:
        return _Connection(self._address, self.timeout)


class _Connection(UnixHTTPConnection):
    sock: socket

    def __init__(self, address: EngineAddress, timeout: Any) -> None:
        super().__init__(_BASE_URL, "", timeout)
        self._address = address

    def connect(self) -> None:
        self.sock = self._address.connect(float(self.timeout))
