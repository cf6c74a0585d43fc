"""Timing in turns, and what is said of the times.

All contenders of a case take turns, round after round, each round beginning with the next one, so that the machine's
drift meets all alike. A turn is a pause, a call to wake up, and a sample: as many calls in a row as fill `SAMPLE`, so
that the clock and the loop weigh nothing; its time is their mean.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

PAUSE = 0.05  # seconds: the threads of the contender before stop spinning on our cores
SAMPLE = 0.02  # seconds
FEWEST = 3  # rounds that a case gets whatever its budget


@dataclass(frozen=True)
class Times:
    """One contender's samples.

    Attributes
    ----------
    samples : list of float
        Milliseconds a call, one sample a round.
    calls : int
        The calls that make a sample.
    """

    samples: list[float]
    calls: int

    @property
    def median(self) -> float:
        return statistics.median(self.samples)

    @property
    def quartiles(self) -> tuple[float, float]:
        """The first and the third quartile."""
        if len(self.samples) < 2:
            return self.samples[0], self.samples[0]
        first, _, third = statistics.quantiles(self.samples, n=4, method="inclusive")
        return first, third


@dataclass(frozen=True)
class Ratio:
    """A peer's time divided by pyrnn's: the median over the rounds, and its 95% confidence interval.

    ``low`` and ``high`` are None below six rounds, where no interval of the samples has that confidence.
    """

    median: float
    low: float | None
    high: float | None


def interleave(
    calls: dict[str, Callable[[], Any]],
    rounds: int,
    budget: float = math.inf,
    each_round: Callable[[], float] | None = None,
) -> tuple[dict[str, Times], list[float]]:
    """Time calls in turns.

    Parameters
    ----------
    calls
        By name; each has run before.
    rounds : int
        The samples of each.
    budget : float
        Seconds after which no further round begins, once there are `FEWEST`.
    each_round
        Takes a turn of its own in each round, a reading of the machine.

    Returns
    -------
    times, readings
        The times by name, and what ``each_round`` returned.
    """
    end = time.perf_counter() + budget
    counts = {name: _calls_of_a_sample(call) for name, call in calls.items()}
    samples: dict[str, list[float]] = {name: [] for name in calls}
    readings: list[float] = []
    names = list(calls)
    for turn in range(rounds):
        if turn >= FEWEST and time.perf_counter() > end:
            break
        if each_round is not None:
            time.sleep(PAUSE)
            readings.append(each_round())
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            call, count = calls[name], range(counts[name])
            time.sleep(PAUSE)
            call()
            begin = time.perf_counter()
            for _ in count:
                call()
            samples[name].append(1e3 * (time.perf_counter() - begin) / len(count))
    return {name: Times(samples[name], counts[name]) for name in names}, readings


def _calls_of_a_sample(call: Callable[[], Any]) -> int:
    count = 1
    while True:
        begin = time.perf_counter()
        for _ in range(count):
            call()
        seconds = time.perf_counter() - begin
        if seconds >= SAMPLE / 4:
            return max(1, math.ceil(SAMPLE * count / seconds))
        count *= 4


def ratio(peer: Sequence[float], own: Sequence[float]) -> Ratio:
    """Return the ratio of two contenders' times, from the ratios of each round.

    The interval is that of order statistics, which asks nothing of the distribution (Conover (1999), "Practical
    Nonparametric Statistics", 3.2).
    """
    ratios = sorted(p / o for p, o in zip(peer, own, strict=True))
    n, below, outside = len(ratios), 0.0, -1
    while below + math.comb(n, outside + 1) / 2**n <= 0.025:
        outside += 1
        below += math.comb(n, outside) / 2**n
    if outside < 0:
        return Ratio(statistics.median(ratios), None, None)
    return Ratio(statistics.median(ratios), ratios[outside], ratios[n - 1 - outside])


def geometric_mean(values: Sequence[float]) -> float:
    return math.exp(statistics.fmean(map(math.log, values)))
