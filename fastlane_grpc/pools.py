"""Pools: which hosts the executions of a task may run on.

Pools are an ordered list, each with patterns of task names. The first pool that a name matches is the task's pool, and
no other one: a task whose pool is busy waits. Tasks that match no pool run on the hosts that no pool names."""

import fnmatch
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

# The pool of tasks that match none, and of hosts that no pool names.
NO_POOL = ""
# Pools that are looked up again and again: those of the tasks that enqueue just now.
_CACHED = 10_000


def read_pattern(text: str) -> str:
    """Return the pattern of a pool. ValueError.

    A pattern is one or several globs, separated by commas. `*` stands for any characters, `?` for one; all others stand
    for themselves. A glob matches the whole name."""
    if len(text) > 1000:
        raise ValueError("must not have more than 1000 characters")
    for glob in text.split(","):
        if not re.fullmatch(r"[A-Za-z0-9._*?-]{1,128}", glob):
            raise ValueError(
                "must be names of tasks, separated by commas, as mail-*,report-?; "
                "* stands for any characters, ? for one"
            )
    return text


def matcher(pattern: str) -> "re.Pattern[str]":
    """Return the expression that matches the names of a pattern."""
    # fnmatch makes expressions that do not backtrack: the time is linear in the length of the name.
    return re.compile("|".join(map(fnmatch.translate, pattern.split(","))))


@dataclass(frozen=True, slots=True)
class Pool:
    """A pool: its name, the pattern of its tasks, and the names of its hosts."""

    name: str
    pattern: str
    hosts: Sequence[str]


class Pools:
    """The configured pools, in their order. Without any, every host takes every task."""

    def __init__(self, pools: Sequence[Pool] = (), hosts: Sequence[str] = ()) -> None:
        """`hosts`: the names of all hosts."""
        self._pools = tuple(pools)
        self._patterns = [(pool.name, matcher(pool.pattern)) for pool in pools]
        self._hosts = {pool.name: tuple(pool.hosts) for pool in pools}
        named = {host for pool in pools for host in pool.hosts}
        self._hosts[NO_POOL] = tuple(host for host in hosts if host not in named)
        self.of_task = lru_cache(_CACHED)(self._of_task)

    def __bool__(self) -> bool:
        return bool(self._pools)

    def _of_task(self, task_id: str) -> str:
        """Return the name of the task's pool; NO_POOL if it matches none."""
        return next((name for name, pattern in self._patterns if pattern.match(task_id)), NO_POOL)

    def of_host(self, host: str) -> Sequence[str]:
        """Return the names of the pools whose executions this host takes, in their order."""
        return tuple(pool.name for pool in self._pools if host in pool.hosts) or (NO_POOL,)

    def hosts_of(self, pool: str) -> Sequence[str]:
        """Return the names of the hosts that take executions of this pool."""
        return self._hosts[pool]

    @property
    def hosts(self) -> frozenset[str]:
        """The names of all hosts."""
        return frozenset(host for names in self._hosts.values() for host in names)

    @property
    def placement(self) -> str:
        """Return, as text, what decides the pools of tasks; empty without pools."""
        return json.dumps([[pool.name, pool.pattern] for pool in self._pools]) if self._pools else ""
