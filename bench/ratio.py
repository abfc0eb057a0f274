"""Two ways of doing the same, measured in turn, so that a machine whose speed drifts does both of them the same
wrong."""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Ratio:
    """What a row says: `ours` and `theirs` are rates, more is better; `goal` is the least that their ratio should
    be."""

    what: str
    unit: str
    ours: Sequence[float]
    theirs: Sequence[float]
    goal: float

    @property
    def ratios(self) -> Sequence[float]:
        return [ours / theirs for ours, theirs in zip(self.ours, self.theirs, strict=True)]

    def __str__(self) -> str:
        ratio = statistics.median(self.ratios)
        spread = f"{min(self.ratios):.2f} to {max(self.ratios):.2f}"
        figures = f"{statistics.median(self.ours):9.1f} {self.unit} against {statistics.median(self.theirs):9.1f}"
        verdict = "ok" if ratio >= self.goal else "SHORT"
        return f"{self.what:58} {figures}   {ratio:.2f} x ({spread}; goal {self.goal:.2f})   {verdict}"


@dataclass(frozen=True)
class Margin:
    """What a row says where it is about how much more: `ours` and `theirs` are costs, less is better; `goal` is the
    most between them."""

    what: str
    unit: str
    ours: float
    theirs: float
    goal: float

    def __str__(self) -> str:
        more = self.ours - self.theirs
        figures = f"{self.ours:9.1f} {self.unit} against {self.theirs:9.1f}"
        verdict = "ok" if more <= self.goal else "MORE"
        return f"{self.what:58} {figures}   {more:+.1f} {self.unit} (goal {self.goal:+.1f})   {verdict}"


@dataclass(frozen=True)
class Limit:
    """What a row says where it is about a cost that has a limit, compared with nothing: `goal` is the most it should
    be."""

    what: str
    unit: str
    ours: Sequence[float]
    goal: float

    def __str__(self) -> str:
        cost = statistics.median(self.ours)
        spread = f"{min(self.ours):.2f} to {max(self.ours):.2f}"
        verdict = "ok" if cost <= self.goal else "MORE"
        return f"{self.what:58} {cost:9.2f} {self.unit} ({spread}; goal {self.goal:.2f})   {verdict}"


def in_turn(
    what: str, unit: str, goal: float, ours: Callable[[], float], theirs: Callable[[], float], *, rounds: int
) -> Ratio:
    """Runs both once to warm up, then `rounds` times in turn; which goes first changes."""
    ours(), theirs()
    pairs = []
    for number in range(rounds):
        if number % 2:
            second = theirs()
            pairs.append((ours(), second))
        else:
            first = ours()
            pairs.append((first, theirs()))
    return Ratio(what, unit, [pair[0] for pair in pairs], [pair[1] for pair in pairs], goal)
