"""Timing in turns, and what is said of the times.

All contenders of a case take turns, round after round, in an order drawn anew for each, so that the machine's drift and
what the one before left meet all alike. A turn is a pause, a call to wake up, and a sample: calls in a row until
`SAMPLE` is full, so that neither the clock nor what a pause leaves cold weighs; its time is their mean. Samples are
filled by time, not by a count fixed before: a contender whose count was taken in a bad moment would be at a
disadvantage for the whole run.
"""

from __future__ import annotations

import math
import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

PAUSE = 0.05  # seconds: the threads of the contender before stop spinning on our cores
SAMPLE = 0.02  # seconds
CLOCK = 2e-5  # seconds between two readings of the clock at least
FEWEST = 3  # rounds that a case gets whatever its budget


@dataclass(frozen=True)
class Times:
    """One contender's samples.

    Attributes
    ----------
    samples : list of float
        Milliseconds a call, one sample a round.
    calls : int
        The calls of all samples.
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
    strides = {name: _stride(call) for name, call in calls.items()}
    samples: dict[str, list[float]] = {name: [] for name in calls}
    counts = dict.fromkeys(calls, 0)
    readings: list[float] = []
    names, order = list(calls), random.Random(0)
    for turn in range(rounds):
        if turn >= FEWEST and time.perf_counter() > end:
            break
        if each_round is not None:
            time.sleep(PAUSE)
            readings.append(each_round())
        for name in order.sample(names, len(names)):
            time.sleep(PAUSE)
            calls[name]()
            milliseconds, count = _sample(calls[name], strides[name])
            samples[name].append(milliseconds)
            counts[name] += count
    return {name: Times(samples[name], counts[name]) for name in names}, readings


def _sample(call: Callable[[], Any], stride: int) -> tuple[float, int]:
    """Return milliseconds a call over one sample, and its calls; the clock is read after each ``stride`` of them."""
    count, stretch = 0, range(stride)
    begin = time.perf_counter()
    while True:
        for _ in stretch:
            call()
        count += stride
        seconds = time.perf_counter() - begin
        if seconds >= SAMPLE:
            return 1e3 * seconds / count, count


def _stride(call: Callable[[], Any]) -> int:
    """Return how many calls take some hundred times the clock's own time, or one."""
    stride = 1
    while stride < 64:
        begin = time.perf_counter()
        for _ in range(stride):
            call()
        if time.perf_counter() - begin > CLOCK:
            break
        stride *= 2
    return stride


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
