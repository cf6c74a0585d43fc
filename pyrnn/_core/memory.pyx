# cython: language_level=3
"""Memory for arrays: uninitialised, on cache lines, and used again where it is large.

A fresh page costs more than the arithmetic on it often does, and a training step asks for the same arrays each time. So
the memory of a large array that is gone is kept for the next of about its size, up to a limit; `empty_cache` gives it back.
"""

import mmap
import os

import numpy as np

cimport cython
cimport numpy as cnp

cnp.import_array()

cdef size_t POOLED_FROM = 1 << 18  # bytes; smaller arrays are numpy's own affair
cdef size_t LINE = 64, HUGE_PAGE = 1 << 21
cdef dict _idle = {}  # blocks by size
cdef size_t _idle_bytes = 0
cdef size_t _limit = min(1 << 29, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 16)


@cython.no_gc
cdef class Lease:
    """What an array's memory belongs to: when the array is gone, the memory waits for the next one."""

    cdef object block
    cdef size_t size

    def __dealloc__(self):
        global _idle_bytes
        if _idle is not None and self.block is not None and _idle_bytes + self.size <= _limit:
            _idle.setdefault(self.size, []).append(self.block)
            _idle_bytes += self.size


def empty_cache():
    """Give back the memory that is kept for arrays to come."""
    global _idle_bytes
    _idle.clear()
    _idle_bytes = 0


def cached_bytes():
    """Return how much memory is kept for arrays to come."""
    return _idle_bytes


cdef size_t size_class(size_t bytes_) noexcept:
    """Round up to one of eight sizes between two powers of two."""
    cdef size_t step = POOLED_FROM // 8
    while step * 16 <= bytes_:
        step *= 2
    return (bytes_ + step - 1) // step * step


cdef object new_empty(tuple shape, object dtype):
    """Return an uninitialised array; a large one begins on a cache line."""
    global _idle_bytes
    cdef cnp.dtype kind = np.dtype(dtype)
    cdef size_t bytes_ = kind.itemsize
    cdef cnp.npy_intp[8] dims
    cdef int axis, ndim = len(shape)
    if ndim > 8:
        return np.empty(shape, kind)
    for axis in range(ndim):
        dims[axis] = shape[axis]
        bytes_ *= <size_t>dims[axis]
    if bytes_ < POOLED_FROM:
        return np.empty(shape, kind)
    cdef Lease lease = Lease()
    lease.size = size_class(bytes_)
    blocks = _idle.get(lease.size)
    if blocks:
        lease.block = blocks.pop()
        _idle_bytes -= lease.size
    else:
        lease.block = np.empty(lease.size + LINE, np.uint8)
    cdef char *start = <char *>cnp.PyArray_DATA(<cnp.ndarray>lease.block)
    array = cnp.PyArray_SimpleNewFromData(ndim, dims, kind.num, start + (-<size_t>start & (LINE - 1)))
    cnp.set_array_base(<cnp.ndarray>array, lease)
    return array


def empty(shape, dtype):
    """Return an uninitialised array as the kernels' own outputs are."""
    return new_empty(tuple(shape), dtype)


cdef object huge_empty(size_t bytes_):
    """Return bytes that live long, on huge pages where they are many: scattered small pages fill L2 badly."""
    if bytes_ < HUGE_PAGE // 4 or not hasattr(mmap, "MADV_HUGEPAGE"):
        block = np.empty(bytes_ + LINE, np.uint8)
        return block[-<size_t>cnp.PyArray_DATA(<cnp.ndarray>block) & (LINE - 1) :][:bytes_]
    room = (bytes_ + HUGE_PAGE - 1) // HUGE_PAGE * HUGE_PAGE
    pages = mmap.mmap(-1, room + HUGE_PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    try:
        pages.madvise(mmap.MADV_HUGEPAGE)
    except OSError:  # a system that has none
        pass
    block = np.frombuffer(pages, np.uint8)
    return block[-<size_t>cnp.PyArray_DATA(<cnp.ndarray>block) & (HUGE_PAGE - 1) :][:bytes_]
