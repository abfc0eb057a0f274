"""Readers of one log over HTTP that go on where they were cut, by cursor, until the log's end."""

import base64
import json
import threading
import time
from http.client import HTTPConnection, HTTPException
from typing import Any

from fastlane_grpc.model import Source

# The longest that a reader tries.
SECONDS = 120


class HttpReader(threading.Thread):
    """Reads a log in one form until its end. `failure`: what went wrong; `cuts`: how often it was interrupted."""

    def __init__(self, address: str, execution_id: str, media_type: str) -> None:
        super().__init__(daemon=True)
        self.data: dict[Source, bytes] = dict.fromkeys(Source, b"")
        self.end: Any = None
        self.cuts = 0
        self.failure: BaseException | None = None
        self._address = address
        self._path = f"/executions/{execution_id}/logs"
        self._media_type = media_type
        self._cursor = ""
        self.start()

    def result(self) -> dict[Source, bytes]:
        """The bytes of each source, once the log has ended."""
        self.join(SECONDS)
        if self.failure is not None:
            raise self.failure
        assert self.end is not None, f"no end after {SECONDS} s"
        return self.data

    def run(self) -> None:
        until = time.monotonic() + SECONDS
        try:
            while self.end is None and time.monotonic() < until:
                try:
                    self._read()
                except (OSError, HTTPException):
                    self.cuts += 1
                    threading.Event().wait(0.05)
        except BaseException as error:
            self.failure = error

    def _read(self) -> None:
        connection = HTTPConnection(self._address, timeout=30)
        try:
            headers = {"Accept": self._media_type}
            if self._media_type == "text/event-stream" and self._cursor:
                connection.request("GET", self._path, headers=headers | {"Last-Event-ID": self._cursor})
            else:
                connection.request("GET", f"{self._path}?cursor={self._cursor}", headers=headers)
            response = connection.getresponse()
            if response.status != 200:
                raise HTTPException(response.read())
            # A line that the connection cut has no newline, and is not taken.
            while (line := response.readline()).endswith(b"\n"):
                self._take(line.removeprefix(b"data: ").strip())
            raise HTTPException("no end")
        finally:
            connection.close()

    def _take(self, line: bytes) -> None:
        if not line.startswith(b"{"):
            return
        message = json.loads(line)
        if "problem" in message or "reason" in message:
            return
        for chunk in message.get("chunks", []):
            source = Source[chunk["source"].removeprefix("SOURCE_")]
            assert int(chunk.get("offset", 0)) == len(self.data[source])
            self.data[source] += base64.b64decode(chunk["data"])
        assert "gap" not in message, message
        self._cursor = message["cursor"]
        if "end" in message:
            self.end = message["end"]
            raise HTTPException("the log is over")
