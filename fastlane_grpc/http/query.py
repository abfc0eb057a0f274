"""The query of a request."""

from starlette.datastructures import QueryParams
from starlette.types import Scope

from fastlane_grpc.http.problem import HttpError

_MAX_PARAMETERS = 2000


def query_of(scope: Scope) -> list[tuple[str, str]]:
    """Return the query as pairs of name and value. HttpError, if there are too many."""
    raw: bytes = scope["query_string"]
    if raw.count(b"&") >= _MAX_PARAMETERS:
        raise HttpError(400, "INVALID_FIELD", f"the query has more than {_MAX_PARAMETERS} parameters")
    return QueryParams(raw).multi_items()
