"""A kernel's parts on several threads: plain Python threads, as compiled kernels run without the GIL.

Numba's own threading layers kill a forked child (omp) or abort when two threads enter (workqueue). Here any number of
callers share one pool; parts never wait for each other, so none can block. A forked child has one thread
(`pyrnn.get_num_threads`).
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

from pyrnn import get_num_threads

SECOND_THREAD = 5e6  # multiply-adds that are worth waking another thread for
SECOND_THREAD_OF_WEIGHTS = 5e5  # or so many elements, each used a time or two, which come from memory


def threads_worth(multiply_adds: int, elements: int) -> int:
    """Return how many threads a call is worth."""
    return get_num_threads() if multiply_adds > SECOND_THREAD or elements > SECOND_THREAD_OF_WEIGHTS else 1


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="pyrnn_numba")


def run(parts: int, kernel: Callable[..., None], *arguments: Any, keep: Any) -> None:
    """Call ``kernel(*arguments, part, parts)`` for each part, at the same time where there are threads, and wait.

    Kernels know memory by address: ``keep`` is what owns it, and stays alive until the last part is done, whatever
    becomes of the caller (an interrupt while it waits).
    """

    todo = deque(range(parts))

    def work(owner: Any) -> None:
        while todo:
            try:
                part = todo.popleft()
            except IndexError:  # another thread was faster
                return
            kernel(*arguments, part, parts)

    others = []
    try:
        for _ in range(1, parts):
            others.append(_pool().submit(work, keep))
    except RuntimeError:  # the interpreter shuts down, or there is no thread to be had: the rest is done here
        pass
    work(keep)
    for other in others:
        if not other.cancel():  # it has begun
            other.result()
