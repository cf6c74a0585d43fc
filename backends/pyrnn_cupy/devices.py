"""What plans must know of a device."""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import cupy


class Device(NamedTuple):
    """What a launch depends on.

    Attributes
    ----------
    processors
        Its multiprocessors.
    shared
        The bytes of shared memory that a block may have.
    cache
        The bytes of its second-level cache.
    capability
        Its compute capability, as 90.
    """

    processors: int
    shared: int
    cache: int
    capability: int


def current_device() -> Device:
    """Return CuPy's current device."""
    return _device(cupy.cuda.Device().id)


@cache
def _device(number: int) -> Device:
    device = cupy.cuda.Device(number)
    attributes = device.attributes
    return Device(
        attributes["MultiProcessorCount"],
        attributes["MaxSharedMemoryPerBlockOptin"],
        attributes["L2CacheSize"],
        int(device.compute_capability),
    )
