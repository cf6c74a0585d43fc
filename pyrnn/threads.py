"""How many threads a kernel may use: one answer for every backend.

The first of these that is set decides: ``with pyrnn.num_threads(n)``, ``pyrnn.set_num_threads(n)``, and
else the machine: ``OMP_NUM_THREADS``, the CPUs this process may run on, its container's quota. A forked
child is serial, since the OpenMP runtime's threads do not survive a fork.
"""

from __future__ import annotations

import math
import operator
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

_in_context: ContextVar[int | None] = ContextVar("pyrnn_num_threads", default=None)
_in_process: int | None = None
_forked = False
# Set by the compiled core where it has OpenMP: what the runtime would start now, which threadpoolctl can limit.
openmp_threads: Callable[[], int] | None = None


def _check(n: int) -> int:
    try:
        count = operator.index(n)
    except TypeError:
        raise TypeError(f"n: expected a whole number of threads, got {n!r}") from None
    if count < 1:
        raise ValueError(f"n: expected at least 1 thread, got {count}")
    if count > 4096:
        raise ValueError(f"n: expected at most 4096 threads, got {count}")
    return count


def set_num_threads(n: int | None) -> None:
    """Set how many threads the kernels of this process may use.

    Parameters
    ----------
    n : int or None
        At least 1. None goes back to the machine's own number.

    Raises
    ------
    TypeError, ValueError
        ``n`` is no whole number, or below 1.
    """
    global _in_process
    _in_process = None if n is None else _check(n)


@contextmanager
def num_threads(n: int) -> Iterator[None]:
    """Use ``n`` threads inside the ``with`` block, in this thread of the program (a ContextVar).

    Parameters
    ----------
    n : int
        At least 1.

    Raises
    ------
    TypeError, ValueError
        ``n`` is no whole number, or below 1.
    """
    token = _in_context.set(_check(n))
    try:
        yield
    finally:
        _in_context.reset(token)


def get_num_threads() -> int:
    """Return the number of threads that a kernel called here and now may use."""
    if _forked:
        return 1
    return _in_context.get() or _in_process or machine_threads()


def machine_threads() -> int:
    """Return what OpenMP (or else its environment and the CPU affinity) and the container's quota leave to a call."""
    count = openmp_threads() if openmp_threads else _environment_threads()
    return max(1, min(count, CPU_QUOTA or count))


def _environment_threads() -> int:
    asked = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    if asked.isdigit() and int(asked) > 0:
        return int(asked)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _cpu_quota(path: str = "/sys/fs/cgroup/cpu.max") -> int | None:
    """Return the whole CPUs that this process's control group (version 2) may use; None where it has no quota."""
    try:
        quota, period = Path(path).read_text().split()
        return None if quota == "max" else max(1, math.ceil(int(quota) / int(period)))
    except (OSError, ValueError):
        return None


CPU_QUOTA = _cpu_quota()


def _after_fork() -> None:
    global _forked
    _forked = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
