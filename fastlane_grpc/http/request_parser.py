"""The parser of requests. The header Upgrade is ignored: a server may always answer over HTTP/1.1 (RFC 9110, 7.8)."""

from httptools import HttpParserUpgrade, HttpRequestParser

_UPGRADE = b"upgrade"


class RequestParser(HttpRequestParser):
    """httptools' parser, which by itself takes what follows an Upgrade for the other protocol, and so drops the body.

    Here such a head is parsed a second time without that header, then what follows it, under all rules of a request.
    In the first pass `should_upgrade()` is true: `on_headers_complete` calls `ignore_upgrade` and does no more."""

    def __init__(self, protocol: object) -> None:
        super().__init__(protocol)
        # What follows a request with `Connection: close` is dropped by the protocol, not an error.
        self.set_dangerous_leniencies(lenient_data_after_close=True)
        self._head = b""

    def ignore_upgrade(self, url: bytes, headers: list[tuple[bytes, bytes]]) -> None:
        """Parse this head again when it ends."""
        version = self.get_http_version().encode()
        fields = (b"%b: %b\r\n" % field for field in headers if field[0].lower() != _UPGRADE)
        self._head = b"%b %b HTTP/%b\r\n%b\r\n" % (self.get_method(), url, version, b"".join(fields))

    def feed_data(self, data: bytes) -> None:  # type: ignore[override]
        """Parse data. HttpParserError; HttpParserUpgrade after a CONNECT."""
        try:
            super().feed_data(data)
        except HttpParserUpgrade as upgrade:
            if not self._head:
                raise
            head, self._head = self._head, b""
            [end] = upgrade.args
            super().feed_data(head)
            self.feed_data(data[end:])
