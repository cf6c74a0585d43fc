"""How many threads a kernel may use: one answer for every backend.

The first of these that is set decides: ``with pyrnn.num_threads(n)``, ``pyrnn.set_num_threads(n)``, and
else the machine: ``OMP_NUM_THREADS``, the CPUs this process may run on, its container's quota. A forked
child is serial, since the OpenMP runtime's threads do not survive a fork.
"""

from __future__ import annotations

import math
import operator
import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

_in_context: ContextVar[int | None] = ContextVar("pyrnn_num_threads", default=None)
_in_process: int | None = None
_forked = False


def _check(n: int) -> int:
    try:
        count = operator.index(n)
    except TypeError:
        raise TypeError(f"n: expected a whole number of threads, got {n!r}") from None
    if count < 1:
        raise ValueError(f"n: expected at least 1 thread, got {count}")
    return count


def set_num_threads(n: int | None) -> None:
    """Set how many threads the kernels of this process may use; None goes back to the machine's own number."""
    global _in_process
    _in_process = None if n is None else _check(n)


@contextmanager
def num_threads(n: int) -> Iterator[None]:
    """Use ``n`` threads inside the ``with`` block, in this thread of the program (a ContextVar)."""
    token = _in_context.set(_check(n))
    try:
        yield
    finally:
        _in_context.reset(token)


def requested_threads() -> int | None:
    """Return the number that the program asked for, or None where it asked for none; 1 in a forked child."""
    if _forked:
        return 1
    return _in_context.get() or _in_process


def get_num_threads() -> int:
    """Return the number of threads that a kernel called here and now may use."""
    return requested_threads() or machine_threads()


def machine_threads() -> int:
    """Return what the environment, the CPU affinity and the container's quota leave to this process."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    asked = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    if asked.isdigit() and int(asked) > 0:
        count = int(asked)
    return max(1, min(count, CPU_QUOTA or count))


def _cpu_quota() -> int | None:
    """Return the whole CPUs that this process's control group may use, or None where it has no quota."""
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
    except (OSError, ValueError):
        return None
    return None if quota == "max" else max(1, math.ceil(int(quota) / int(period)))


CPU_QUOTA = _cpu_quota()


def _after_fork() -> None:
    global _forked
    _forked = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
