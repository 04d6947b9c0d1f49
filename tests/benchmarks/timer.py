"""One interleaving timer for all benchmarks."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from scipy.stats import binom

_elsewhere = torch.zeros(32 * 2**20)  # 128 MiB, four times the last-level cache of the processors at hand


def clock() -> float:
    """Seconds: of the wall, or with one thread of this process alone, which others on the machine do not slow down."""
    return time.process_time() if torch.get_num_threads() == 1 else time.perf_counter()


def flush() -> None:
    """Drive out of the caches what the last candidate left there."""
    _elsewhere.add_(1)


def turns(names: Iterable[str], rounds: int) -> Iterator[str]:
    """Every name once a round, every other round backwards."""
    names = list(names)
    for number in range(rounds):
        yield from names if number % 2 == 0 else reversed(names)


def seconds(call: Callable[[], Any], calls: int = 1) -> float:
    """Time of one call, from so many."""
    start = clock()
    for _ in range(calls):
        call()
    return (clock() - start) / calls


def interleave(
    candidates: dict[str, Callable[[], Any]],
    rounds: int,
    *,
    before: dict[str, Callable[[], Any]] | None = None,
    calls: int = 1,
    cold: bool = True,
    warm_up: int = 3,
) -> dict[str, list[float]]:
    """Time all candidates in turns.

    Args:
        candidates: What to call, by name.
        rounds: How often each is timed.
        before: What to call before each call that is not one of several; it is not timed.
        calls: Calls in each timing.
        cold: Empty the caches before each timing; else fill them by one more call, which is not timed.
        warm_up: Calls before the first.

    Returns:
        Seconds a call, by name and round.
    """
    before = before or {}
    for name, call in candidates.items():
        for _ in range(warm_up):
            before.get(name, nothing)()
            call()
    found: dict[str, list[float]] = {name: [] for name in candidates}
    for name in turns(candidates, rounds):
        before.get(name, nothing)()
        flush() if cold else candidates[name]()
        found[name].append(seconds(candidates[name], calls))
    return found


def nothing() -> None:
    """Before a call that needs no preparation."""


def quartiles(values: list[float]) -> dict[str, float]:
    """Median and quartiles."""
    low, value, high = statistics.quantiles(values, n=4)
    return {"value": value, "low": low, "high": high}


def ratios(ours: list[float], theirs: list[float]) -> list[float]:
    """Ratios within each round."""
    return [a / b for a, b in zip(ours, theirs, strict=True)]


def confidence(values: list[float], level: float = 0.95) -> dict[str, float]:
    """Median, and its distribution-free interval: the order statistics that the binomial law names."""
    ordered, count = sorted(values), len(values)
    rank = int(binom.ppf((1 - level) / 2, count, 0.5))
    low, high = max(rank - 1, 0), min(count - rank, count - 1)
    return {"value": statistics.median(ordered), "low": ordered[low], "high": ordered[high]}
