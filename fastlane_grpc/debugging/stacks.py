"""The stacks of all threads and of all tasks of a loop, without values of variables. Any thread may read them."""

import asyncio
import sys
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import CodeType, FrameType
from typing import Any

_MOST_FRAMES = 60
_MOST_NAMES = 20


def stacks_of_threads() -> Sequence[Mapping[str, object]]:
    """Return the stacks of all threads, innermost call first; threads with the same stack share an entry."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    frames = sys._current_frames().items()
    return _grouped((names.get(ident, f"thread {ident}"), _stack_of(frame)) for ident, frame in frames)


def stacks_of_tasks(loop: asyncio.AbstractEventLoop) -> Sequence[Mapping[str, object]]:
    """Return the stacks of all tasks, innermost call first; tasks with the same stack share an entry."""
    return _grouped((task.get_name(), _stack_of_awaits(task.get_coro())) for task in asyncio.all_tasks(loop))


def _grouped(stacks: Iterable[tuple[str, tuple[str, ...]]]) -> Sequence[Mapping[str, object]]:
    names: dict[tuple[str, ...], list[str]] = {}
    counts: Counter[tuple[str, ...]] = Counter()
    for name, stack in stacks:
        counts[stack] += 1
        if counts[stack] <= _MOST_NAMES:
            names.setdefault(stack, []).append(name)
    return [{"count": count, "names": sorted(names[stack]), "stack": stack} for stack, count in counts.most_common()]


def _stack_of(frame: FrameType | None) -> tuple[str, ...]:
    places: list[str] = []
    while frame is not None and len(places) < _MOST_FRAMES:
        places.append(_place(frame.f_code, frame.f_lineno))
        frame = frame.f_back
    return tuple(places)


def _stack_of_awaits(coroutine: Any) -> tuple[str, ...]:
    return tuple(reversed([*_awaits(coroutine)]))


def _awaits(coroutine: Any) -> Iterator[str]:
    """Yield the places at which a coroutine, and each that it awaits, stands."""
    for _ in range(_MOST_FRAMES):
        if coroutine is None:
            return
        frame = _first(coroutine, "cr_frame", "gi_frame", "ag_frame")
        yield _place(frame.f_code, frame.f_lineno) if frame else type(coroutine).__qualname__
        coroutine = _first(coroutine, "cr_await", "gi_yieldfrom", "ag_await")


def _first(value: Any, *names: str) -> Any:
    """Return the first of these attributes that is set: coroutines, generators and their kin name them differently."""
    return next((found for name in names if (found := getattr(value, name, None)) is not None), None)


def _place(code: CodeType, line: int | None) -> str:
    return f"{code.co_qualname} at {code.co_filename}:{line or 0}"
