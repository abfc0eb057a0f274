"""The one check in front of every call of both doors: from a token or a certificate to a principal, and what that may
do."""

import asyncio
import hmac
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import datetime
from ipaddress import ip_address, ip_network

import structlog

from fastlane_grpc.errors import PermissionDenied, TokenExpired, TokenInvalid, TokenRequired, TooManyAttempts
from fastlane_grpc.trust.permissions import OTHERS, PERMISSIONS, Permission, Scope
from fastlane_grpc.trust.tokens import Role, TaskPattern, Token, TokenFile, TokensUnusable, digest_of

# Failures of an address before it has to wait, the first wait, and the longest.
_FREE_FAILURES = 10
_FIRST_WAIT_SECONDS = 5.0
_LONGEST_WAIT_SECONDS = 60.0
# An address is forgotten after so long without a failure. With too many, the one with the oldest failure goes first.
_FORGET_SECONDS = 600.0
_MOST_ADDRESSES = 4096
_MOST_ACCEPTED = 65_536
# Wrong tokens that are kept of an address: with more it waits the longest time anyway.
_MOST_FAILURES = 32
_POLL_SECONDS = 0.25
_SCHEME = "bearer "

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Principal:
    """The caller of a call. `tasks` None: all tasks. `digest` and `certificate` are those of its token."""

    name: str
    role: Role
    tasks: TaskPattern | None = None
    digest: str = ""
    certificate: str = ""

    def sees(self, task_id: str) -> bool:
        """Return whether the task exists for this caller."""
        return self.tasks is None or self.tasks.matches(task_id)


# Without authentication everybody may do everything.
ANYBODY = Principal("", Role.OPERATE)
# The caller of the call that runs in this task; set by the door.
PRINCIPAL: ContextVar[Principal] = ContextVar("principal", default=ANYBODY)


@dataclass(frozen=True, slots=True)
class Credentials:
    """The credentials of a client: its Authorization header, its token in a cookie, or the name in its certificate; and
    its address."""

    address: str
    authorization: str | None = None
    cookie: str | None = None
    certificate: str = ""


@dataclass(slots=True)
class _Failures:
    """The wrong tokens of an address, by their hashes. One that comes again is no other guess."""

    digests: set[str] = field(default_factory=set)
    wait_until: float = 0.0
    last_time: float = 0.0


class Access:
    """The tokens in force. Lives on the loop."""

    def __init__(self, file: TokenFile, now: Callable[[], datetime], *, public: Sequence[str] = ()) -> None:
        """`public`: names of `permissions.OTHERS` that need no token. TokensUnusable."""
        self._file = file
        self._now = now
        self._public = frozenset(public)
        self._stamp = file.stamp()
        self._set(file.read())
        self._addresses: OrderedDict[str, _Failures] = OrderedDict()
        # The tokens that were accepted, and the addresses that they came from.
        self._accepted: OrderedDict[tuple[str, str], None] = OrderedDict()
        self._streams: dict[asyncio.Timeout, Principal] = {}

    def admit(self, what: str, credentials: Callable[[], Credentials]) -> Principal:
        """Return the caller of a call, a method of the contract or a name of `OTHERS`. TokenRequired, TokenInvalid,
        TokenExpired, TooManyAttempts, PermissionDenied."""
        if what in self._public:
            return ANYBODY
        principal = self._principal(credentials())
        permission = PERMISSIONS.get(what) or OTHERS.get(what)
        _check(principal, permission, what)
        return principal

    def login(self, credentials: Credentials) -> Principal:
        """Return the caller with this token. The errors of `admit`."""
        return self._principal(credentials)

    @asynccontextmanager
    async def stream(self, principal: Principal) -> AsyncIterator[None]:
        """Run a stream, which ends with TokenInvalid or TokenExpired as soon as the token is no longer valid."""
        if principal is ANYBODY:
            yield
            return
        ended = asyncio.timeout(None)
        try:
            async with ended:
                self._streams[ended] = principal
                # It may have been revoked since the check.
                self._end_streams()
                yield
        except TimeoutError:
            if not ended.expired():
                raise
        finally:
            self._streams.pop(ended, None)
        if ended.expired():
            raise self._fault(principal) or TokenInvalid("the token was revoked")

    async def watch(self) -> None:
        """End streams whose tokens are revoked or expire, without end."""
        while True:
            self._refresh()
            self._end_streams()
            await asyncio.sleep(_POLL_SECONDS)

    def _end_streams(self) -> None:
        for ended, principal in list(self._streams.items()):
            if self._fault(principal) is not None:
                del self._streams[ended]
                ended.reschedule(asyncio.get_running_loop().time())

    def _fault(self, principal: Principal) -> TokenInvalid | TokenExpired | None:
        token = self._by_digest.get(principal.digest) or self._by_certificate.get(principal.certificate)
        if token is None or (token.role, token.tasks) != (principal.role, principal.tasks):
            return TokenInvalid("the token was revoked")
        return TokenExpired(f"the token {token.name!r} has expired") if token.is_expired(self._now()) else None

    def _principal(self, credentials: Credentials) -> Principal:
        self._refresh()
        text = credentials.cookie
        if credentials.authorization is not None:
            text = credentials.authorization
            if text[: len(_SCHEME)].lower() != _SCHEME:
                raise TokenRequired("the Authorization header must be: Bearer TOKEN")
            text = text[len(_SCHEME) :].strip()
        if text is None:
            token = self._by_certificate.get(credentials.certificate) if credentials.certificate else None
            if token is None:
                shown = f"; there is none for the certificate {credentials.certificate!r}"
                raise TokenRequired(
                    "this server requires a token: send it as Authorization: Bearer TOKEN; "
                    "`fastlane token create` on the server's machine makes one"
                    + (shown if credentials.certificate else "")
                )
        else:
            token = self._token(text, credentials.address)
        if token.is_expired(self._now()):
            raise TokenExpired(f"the token {token.name!r} has expired; `fastlane token create` makes a new one")
        return Principal(token.name, token.role, token.tasks, token.digest, token.certificate)

    def _token(self, text: str, address: str) -> Token:
        digest = digest_of(text)
        key = _network_of(address)
        failures = self._addresses.get(key)
        now = asyncio.get_running_loop().time()
        # A token that was accepted from here before is no guess: one client cannot lock out the others of its address.
        if failures and now < failures.wait_until and (key, digest) not in self._accepted:
            wait = failures.wait_until - now
            raise TooManyAttempts("too many wrong tokens from this address; try again later", retry_seconds=wait)
        token = self._by_digest.get(digest)
        # A caller cannot choose the hash by which the table is searched. The comparison takes constant time.
        if token is not None and hmac.compare_digest(token.digest, digest):
            self._accepted[key, digest] = None
            self._accepted.move_to_end((key, digest))
            if len(self._accepted) > _MOST_ACCEPTED:
                self._accepted.popitem(last=False)
            return token
        self._failed(key, digest, now)
        raise TokenInvalid("the token is not valid: it is mistyped, or was revoked")

    def _failed(self, key: str, digest: str, now: float) -> None:
        failures = self._addresses.setdefault(key, _Failures())
        self._addresses.move_to_end(key)
        if now - failures.last_time > _FORGET_SECONDS:
            failures.digests.clear()
        failures.last_time = now
        if digest in failures.digests:
            return
        if len(failures.digests) < _MOST_FAILURES:
            failures.digests.add(digest)
        beyond = len(failures.digests) - _FREE_FAILURES
        if beyond >= 0:
            failures.wait_until = now + min(_FIRST_WAIT_SECONDS * 2 ** min(beyond, 10), _LONGEST_WAIT_SECONDS)
            log.warning("wrong tokens", client=key, failures=len(failures.digests))
        while len(self._addresses) > _MOST_ADDRESSES:
            self._addresses.popitem(last=False)

    def _refresh(self) -> None:
        """Read the file again if it has changed. A file that cannot be read makes all tokens invalid."""
        try:
            stamp = self._file.stamp()
            if stamp == self._stamp:
                return
            self._stamp = stamp
            self._set(self._file.read())
            log.info("tokens were read again", tokens=len(self._by_digest) + len(self._by_certificate))
        except TokensUnusable as error:
            if self._by_digest or self._by_certificate:
                log.error(f"no token is valid: {error}")
            self._set(())

    def _set(self, tokens: Sequence[Token]) -> None:
        self._by_digest = {token.digest: token for token in tokens if token.digest}
        self._by_certificate = {token.certificate: token for token in tokens if token.certificate}


def _check(principal: Principal, permission: Permission | None, what: str) -> None:
    if permission is None:
        raise PermissionDenied(f"{what} is not open to tokens")
    if principal.role < permission.role:
        raise PermissionDenied(
            f"{what} needs the role {permission.role.name.lower()}; the token {principal.name!r} has "
            f"{principal.role.name.lower()}",
            role=permission.role.name.lower(),
        )
    if permission.scope is Scope.SERVER and principal.tasks is not None:
        raise PermissionDenied(
            f"{what} is about the whole server; the token {principal.name!r} is limited to {principal.tasks.text}"
        )


def _network_of(address: str) -> str:
    """Return the address, of IPv6 its network: one client has a whole one."""
    try:
        parsed = ip_address(address.partition("%")[0])
    except ValueError:
        return address
    return str(ip_network(f"{parsed}/64", strict=False)) if parsed.version == 6 else str(parsed)
