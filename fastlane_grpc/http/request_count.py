"""The count of a request: by its verb, the pattern of its path, and its status."""

from starlette.types import Message, Scope

from fastlane_grpc.counts import CallCounts, Counts

# Where the count of a request is found in its scope.
REQUEST_COUNT = "fastlane.request_count"
# The label of a path that leads nowhere, and of a verb that no path has: clients cannot make labels.
OTHER = "other"
# The status of a request whose client has gone before it was answered.
NOT_ANSWERED = "none"

_VERBS = frozenset({"GET", "HEAD", "OPTIONS", "POST", "PUT", "PATCH", "DELETE"})


class RequestCount:
    """Counts one request, which starts now."""

    def __init__(self, counts: Counts, scope: Scope) -> None:
        self._counts = counts
        self.verb = scope["method"] if scope["method"] in _VERBS else OTHER
        self._calls: CallCounts | None = None
        self._start = 0.0
        self.status = NOT_ANSWERED
        self.path = OTHER
        scope[REQUEST_COUNT] = self

    def at(self, path: str, method: str) -> None:
        """Count it for the pattern of a path. `method`: the method of the contract that is called there, if one is."""
        self.path = path
        self._calls = self._counts.of_http(self.verb, path, method)
        self._start = self._calls.start()

    def note(self, message: Message) -> None:
        """Note the status, if this message of the response has it."""
        if message["type"] == "http.response.start":
            self.status = str(message["status"])

    @property
    def method(self) -> str:
        """The method of the contract that is called; empty: none."""
        return self._calls.method if self._calls else ""

    def end(self) -> None:
        """Count its end."""
        if self._calls is None:
            self.at(OTHER, "")
        assert self._calls is not None, "set by at"
        self._calls.end(self._start, self.status)
