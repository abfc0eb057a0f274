"""The ASGI application: access, routing, and the answer to every error."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.routing import Route, Router
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fastlane_grpc.http import openapi
from fastlane_grpc.http.access import OriginRules
from fastlane_grpc.http.authentication import Checked, Login, Logout
from fastlane_grpc.http.call_handlers import CallHandler
from fastlane_grpc.http.call_logging import RequestLog
from fastlane_grpc.http.connection import CONNECTION
from fastlane_grpc.http.context import HttpContext
from fastlane_grpc.http.health import Health
from fastlane_grpc.http.json_responses import json_response
from fastlane_grpc.http.log_streams import LogHandler
from fastlane_grpc.http.media_types import prefers_html
from fastlane_grpc.http.metrics import MetricsHandler
from fastlane_grpc.http.outputs import OutputsHandler
from fastlane_grpc.http.page_files import PageAssets, PageShell
from fastlane_grpc.http.problem import HttpError, problem_of, problem_response
from fastlane_grpc.http.request_count import REQUEST_COUNT, RequestCount
from fastlane_grpc.http.routes import ROUTES, CallRoute
from fastlane_grpc.http.tail_programs import TailPrograms
from fastlane_grpc.http.uploads import UploadHandler
from fastlane_grpc.http.watch_stream import WatchHandler
from fastlane_grpc.trust import HEALTH, METRICS, REFLECTION

_PAGE = PageShell()


@dataclass(frozen=True, slots=True)
class ExtraRoute:
    """A path beside those of the contract's calls. `what`: its name in `permissions.OTHERS`; empty: it shows nothing,
    and needs no token."""

    verb: str
    path: str
    handler: ASGIApp
    what: str


# The handlers of streams; other calls have a CallHandler.
STREAMS: Mapping[str, Callable[[CallRoute, HttpContext], ASGIApp]] = {
    "WatchJobs": WatchHandler,
    "StreamJobLogs": LogHandler,
    "StreamExecutionLogs": LogHandler,
    "ReadOutputs": OutputsHandler,
}
HANDLERS: Mapping[str, Callable[[CallRoute, HttpContext], ASGIApp]] = {**STREAMS, "UploadInput": UploadHandler}


def call_handler(route: CallRoute, context: HttpContext) -> ASGIApp:
    """Return the handler of a call."""
    handler = _checked(HANDLERS.get(route.method, CallHandler)(route, context), context, route.method)
    return WithPage(handler) if route.page else handler


def extra_routes(context: HttpContext) -> Iterable[ExtraRoute]:
    """Return all paths that are no calls."""
    yield ExtraRoute("GET", "/healthz", Health(context, "live"), HEALTH)
    yield ExtraRoute("GET", "/readyz", Health(context, "server"), HEALTH)
    yield ExtraRoute("GET", "/openapi.json", _OpenApi(context), REFLECTION)
    yield ExtraRoute("GET", "/", _PAGE, "")
    yield ExtraRoute("GET", "/assets/{name:path}", PageAssets(), "")
    # Programs without data, to be fetched by machines that have no token yet.
    yield ExtraRoute("GET", "/cli/{name}", TailPrograms(context.settings.cli_dir), "")
    if context.scrape is not None:
        yield ExtraRoute("GET", "/metrics", MetricsHandler(context.scrape), METRICS)
    if context.access is not None:
        yield ExtraRoute("POST", "/login", Login(context.access, context), "")
        yield ExtraRoute("POST", "/logout", Logout(), "")


def _checked(handler: ASGIApp, context: HttpContext, what: str) -> ASGIApp:
    """Return the handler with the check before it, if there is one."""
    return Checked(handler, context.access, what) if context.access and what else handler


class WithPage:
    """A handler in whose place a browser gets the page."""

    def __init__(self, handler: ASGIApp) -> None:
        self._handler = handler

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        handler = _PAGE if prefers_html(Headers(scope=scope)) else self._handler
        await handler(scope, receive, send)


class Application:
    """All paths of the server."""

    def __init__(self, context: HttpContext, origins: OriginRules) -> None:
        self._origins = origins
        self._counts = context.counts
        self._call_log = context.call_log
        resources = _resources(context)
        self._router = Router(resources, redirect_slashes=False, default=NotFound(resources))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        started = False
        count = RequestCount(self._counts, scope)
        logged = RequestLog(self._call_log, scope, headers) if self._call_log else None

        async def sending(message: Message) -> None:
            nonlocal started
            count.note(message)
            if message["type"] == "http.response.start":
                started = True
                sent = MutableHeaders(scope=message)
                for name, value in self._origins.cors_headers(headers).items():
                    # Vary may name Accept already.
                    sent.add_vary_header(value) if name == "Vary" else sent.update({name: value})
            await send(message)
            if logged:
                logged.note(message)

        try:
            self._origins.check(scope["method"], scope["scheme"], headers)
            await self._router(scope, receive, sending)
        except Exception as error:
            if started:
                # Too late for another status: the client sees an interruption. A defect is logged all the same.
                problem_of(error)
                scope[CONNECTION].abort()
            else:
                await _answer_to(error, scope["method"], headers)(scope, receive, sending)
        finally:
            count.end()
            if logged:
                logged.end(count, is_stream=count.method in STREAMS)


class Resource:
    """One path, with the handler of each of its verbs. HEAD is answered as GET, without the body."""

    def __init__(self, path: str, handlers: Mapping[str, ASGIApp], methods: Mapping[str, str]) -> None:
        """`path`: its pattern. `methods`: the methods of the contract that it calls, by verb."""
        self._path = path
        self._methods = methods
        self._handlers = dict(handlers)
        if "GET" in handlers:
            self._handlers["HEAD"] = handlers["GET"]
        self._allowed = ", ".join(sorted({*self._handlers, "OPTIONS"}))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        verb = scope["method"]
        scope[REQUEST_COUNT].at(self._path, self._methods.get(verb, ""))
        if verb in self._handlers:
            await self._handlers[verb](scope, receive, send)
        elif verb == "OPTIONS":
            headers = {"Allow": self._allowed}
            if Headers(scope=scope).get("access-control-request-method"):
                # What the browser may do follows from Access-Control-Allow-Origin, which is added for known origins.
                headers |= {
                    "Access-Control-Allow-Methods": self._allowed,
                    "Access-Control-Allow-Headers": "Authorization, Content-Type, Last-Event-ID",
                    "Access-Control-Max-Age": "600",
                }
            await Response(status_code=204, headers=headers)(scope, receive, send)
        else:
            raise HttpError(
                405,
                "METHOD_NOT_ALLOWED",
                f"this path has no {verb[:40]}, but {self._allowed}",
                {"Allow": self._allowed},
            )


class NotFound:
    """The answer at all other paths, with the nearest one that exists."""

    def __init__(self, resources: Sequence[Route]) -> None:
        self._resources = resources
        self._first_parts = sorted({route.path.split("/")[1] for route in resources})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path: str = scope["path"][:200]
        near = self._near(path)
        told = f"did you mean {near!r}?" if near else "/openapi.json lists all paths"
        raise HttpError(404, "PATH_NOT_FOUND", f"there is nothing at {path!r}; {told}")

    def _near(self, path: str) -> str:
        first, *rest = path.strip("/").split("/")
        for name in get_close_matches(first, self._first_parts, 1, 0.65):
            candidate = "/".join(["", name, *rest])
            if any(route.path_regex.fullmatch(candidate) for route in self._resources):
                return candidate
        return ""


def _resources(context: HttpContext) -> list[Route]:
    paths: dict[str, dict[str, ASGIApp]] = defaultdict(dict)
    methods: dict[str, dict[str, str]] = defaultdict(dict)
    for route in ROUTES:
        paths[route.path][route.verb] = call_handler(route, context)
        methods[route.path][route.verb] = route.method
    for extra in extra_routes(context):
        paths[extra.path][extra.verb] = _checked(extra.handler, context, extra.what)
    return [Route(path, Resource(path, handlers, methods[path]), methods=None) for path, handlers in paths.items()]


def _answer_to(error: Exception, verb: str, headers: Headers) -> ASGIApp:
    """Return the answer to an error. A browser at an address where nothing is gets the page, which says so."""
    response = problem_response(error)
    if response.status_code in {404, 405} and verb in {"GET", "HEAD"} and prefers_html(headers):
        return PageShell(response.status_code, {"Allow": allow} if (allow := response.headers.get("allow")) else None)
    return response


class _OpenApi:
    """The OpenAPI document, with the ways to be admitted that are on."""

    def __init__(self, context: HttpContext) -> None:
        names = {"/healthz": HEALTH, "/readyz": HEALTH, "/openapi.json": REFLECTION, "/metrics": METRICS}
        self._security = openapi.Security(
            tokens=context.access is not None,
            certificates=context.settings.tls_client_ca is not None,
            open_paths=frozenset(path for path, name in names.items() if name in context.settings.public),
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await json_response(openapi.document(self._security))(scope, receive, send)
