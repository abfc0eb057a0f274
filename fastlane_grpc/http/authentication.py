"""The check in front of every path: by a bearer token, by the cookie of the page, or by a certificate."""

from http.cookies import CookieError, SimpleCookie

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from fastlane_grpc.http.access import scheme_of
from fastlane_grpc.http.connection import certificate_name
from fastlane_grpc.http.context import HttpContext
from fastlane_grpc.http.json_requests import body_value
from fastlane_grpc.http.problem import HttpError
from fastlane_grpc.request_json import JsonFault
from fastlane_grpc.trust import PRINCIPAL, Access, Credentials

COOKIE = "fastlane_token"
_SAFE_VERBS = frozenset({"GET", "HEAD", "OPTIONS"})
_MAX_LOGIN_BYTES = 4096


class Checked:
    """A handler with the check before it. Streams end with their token."""

    def __init__(self, handler: ASGIApp, access: Access, what: str) -> None:
        """`what`: a method of the contract, or a name of `permissions.OTHERS`."""
        self._handler = handler
        self._access = access
        self._what = what

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        principal = self._access.admit(self._what, lambda: credentials_of(scope))
        PRINCIPAL.set(principal)
        async with self._access.stream(principal):
            await self._handler(scope, receive, send)


class Login:
    """POST /login: checks a token and keeps it in a cookie that no script can read."""

    def __init__(self, access: Access, context: HttpContext) -> None:
        self._access = access
        self._context = context

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = await self._context.bodies.read(Headers(scope=scope), receive, max_bytes=_MAX_LOGIN_BYTES)
        try:
            token = body_value(body).get("token")
        except JsonFault:
            token = None
        if not isinstance(token, str):
            raise HttpError(400, "INVALID_FIELD", 'the body must be {"token": "…"}')
        shown = Credentials(_address_of(scope), authorization=f"Bearer {token}")
        self._access.login(shown)
        await _with_cookie(scope, token)(scope, receive, send)


class Logout:
    """POST /logout: deletes the cookie."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await _with_cookie(scope, "")(scope, receive, send)


def credentials_of(scope: Scope) -> Credentials:
    """Return what the client of a request shows."""
    headers = Headers(scope=scope)
    cookie = _cookie_in(headers)
    # A browser adds the cookie to requests that pages of other sites cause. It names their origin, which was checked.
    if cookie is not None and scope["method"] not in _SAFE_VERBS and not headers.get("origin"):
        cookie = None
    return Credentials(_address_of(scope), headers.get("authorization"), cookie, certificate_name(scope))


def _cookie_in(headers: Headers) -> str | None:
    try:
        cookies = SimpleCookie(headers.get("cookie", ""))
    except CookieError:
        return None
    return cookies[COOKIE].value if COOKIE in cookies else None


def _with_cookie(scope: Scope, token: str) -> Response:
    response = Response(status_code=204, headers={"Cache-Control": "no-store"})
    # Without a time it ends with the browser; an empty one is deleted at once.
    response.set_cookie(
        COOKIE,
        token,
        max_age=None if token else 0,
        path="/",
        httponly=True,
        samesite="strict",
        secure=scheme_of(scope["scheme"], Headers(scope=scope)) == "https",
    )
    return response


def _address_of(scope: Scope) -> str:
    return str(scope["client"][0]) if scope["client"] else ""
