"""A kernel's parts on several threads: plain Python threads, as compiled kernels run without the GIL.

Numba's own threading layers kill a forked child (omp) or abort when two threads enter (workqueue). Here any number of
callers share one pool; parts never wait for each other, so none can block. A forked child has one thread
(`pyrnn.get_num_threads`).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from functools import cache
from typing import Any


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="pyrnn_numba")


def run(parts: int, kernel: Callable[..., None], *arguments: Any) -> None:
    """Call ``kernel(*arguments, part, parts)`` for each part, at the same time where there are threads for it, and
    wait."""
    others = [_pool().submit(kernel, *arguments, part, parts) for part in range(1, parts)]
    try:
        kernel(*arguments, 0, parts)
    finally:
        if others:
            wait(others)
    for other in others:
        other.result()
