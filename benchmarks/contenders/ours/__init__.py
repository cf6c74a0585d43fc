"""pyrnn itself, and its other backends."""

from __future__ import annotations

from typing import Any

from .. import UnableError

REFERENCE_FLOPS = 4e9  # beyond which the reference is left out: it would take seconds a call


def reference_can(case: Any, threads: int) -> None:
    """Give the reference's BLAS as many threads; they stay, as nothing else here uses NumPy's.

    Raises
    ------
    UnableError
        The case is too large for it.
    """
    from threadpoolctl import threadpool_limits

    if case.flops > REFERENCE_FLOPS:
        raise UnableError(f"left out above {REFERENCE_FLOPS:.0e} operations, where a call takes seconds")
    threadpool_limits(threads, user_api="blas")
