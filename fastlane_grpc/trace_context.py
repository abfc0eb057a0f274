"""The context of a trace, as W3C Trace Context defines it: read from a call, kept with a job, given to a container."""

import re
from collections.abc import Iterable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, replace

# The headers of HTTP and the metadata of gRPC; in capital letters, the variables of a container.
TRACEPARENT, TRACESTATE = "traceparent", "tracestate"
SAMPLED = 0x01
# Beside SAMPLED: the trace id is random. All other flags have no meaning yet, and are not passed on.
_KNOWN_FLAGS = SAMPLED | 0x02
_PARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
# Printable, but for the comma and the equals sign; the last character is no space.
_VALUE = r"[\x20-\x2b\x2d-\x3c\x3e-\x7e]{0,255}[\x21-\x2b\x2d-\x3c\x3e-\x7e]"
_MEMBER = re.compile(rf"([a-z0-9][a-z0-9_\-*/@]{{0,255}})={_VALUE}")
_MOST_MEMBERS = 32
# Members beyond it are dropped, from the end.
_MOST_STATE_CHARACTERS = 512


@dataclass(frozen=True, slots=True)
class TraceContext:
    """A place in a trace: the ids of the trace and of a span, in hexadecimal digits, and the flags. `state`: the
    `tracestate` of the caller, whose meaning only systems for tracing know."""

    trace_id: str
    span_id: str
    flags: int = 0
    state: str = ""

    @classmethod
    def read(cls, parents: Iterable[str], states: Iterable[str] = ()) -> "TraceContext | None":
        """Return the context in the headers of a call; None if there is none, or one that is not valid. A `tracestate`
        that is not valid is ignored alone."""
        found = tuple(parents)
        match = _PARENT.fullmatch(found[0]) if len(found) == 1 else None
        if match is None:
            return None
        version, trace_id, span_id, flags, rest = match.groups()
        if version == "ff" or (version == "00" and rest) or not int(trace_id, 16) or not int(span_id, 16):
            return None
        known = _KNOWN_FLAGS if version == "00" else SAMPLED
        return cls(trace_id, span_id, int(flags, 16) & known, _state(states))

    @classmethod
    def from_text(cls, text: str) -> "TraceContext | None":
        """Return the context that `text` was made of."""
        parent, _, state = text.partition(" ")
        return cls.read([parent], [state])

    @property
    def sampled(self) -> bool:
        return bool(self.flags & SAMPLED)

    @property
    def parent(self) -> str:
        """The `traceparent`."""
        return f"00-{self.trace_id}-{self.span_id}-{self.flags:02x}"

    @property
    def text(self) -> str:
        """The context as it is stored."""
        return f"{self.parent} {self.state}".rstrip()

    @property
    def envs(self) -> Mapping[str, str]:
        """The variables that pass the context on to the command of a container."""
        envs = {TRACEPARENT.upper(): self.parent}
        return {**envs, TRACESTATE.upper(): self.state} if self.state else envs

    def at(self, span_id: str) -> "TraceContext":
        """Return the place of another span in the same trace."""
        return replace(self, span_id=span_id)


# The context with which the call in this task was made; None: without any, or with one that is not valid.
CALLERS_TRACE: ContextVar[TraceContext | None] = ContextVar("callers_trace", default=None)


def _state(headers: Iterable[str]) -> str:
    """Return the list of all `tracestate` headers; empty if it is not valid."""
    members = [member.strip(" \t") for header in headers for member in header.split(",")]
    members = [member for member in members if member]
    keys = [match[1] for member in members if (match := _MEMBER.fullmatch(member))]
    if len(keys) < len(members) or len(set(keys)) < len(keys) or len(keys) > _MOST_MEMBERS:
        return ""
    while len(text := ",".join(members)) > _MOST_STATE_CHARACTERS:
        members.pop()
    return text
