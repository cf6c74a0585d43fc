# cython: language_level=3
"""The kernels' table for this CPU, and numpy arrays in the form that kernels take.

``PYRNN_ISA`` forces a level below the best that the CPU has (x86-64: v2, v3, v4), so that each can be tested.
"""

import os

import numpy as np

cimport numpy as cnp
from libc.string cimport memmove

from pyrnn import threads as _threads


cdef extern from "Python.h":
    int PyErr_CheckSignals() noexcept  # leaves the error set: `raise_pending` raises it once the kernel is back

cnp.import_array()


cdef const pyrnn_kernels *find(bytes level) noexcept:
    return pyrnn_kernels_at(level) if level else pyrnn_kernels_at(NULL)


_wanted = os.environ.get("PYRNN_ISA", "")
cdef const pyrnn_kernels *_table = find(_wanted.encode())
if _table == NULL:
    raise ImportError(
        f"PYRNN_ISA={_wanted!r}: this CPU or build has no such level; expected one of those it has "
        "(x86-64: v2, v3, v4; elsewhere: base)"
    )


def isa_level():
    """Return the ISA level in use."""
    return (<bytes>_table.level).decode()


def has_openmp():
    """Tell whether the kernels were built with OpenMP; without it they are serial."""
    return bool(pyrnn_openmp())


def activation(str name, cnp.ndarray x):
    """Return tanh, sigmoid or exp (of x ≤ 0) as the kernels compute it, for checks of their accuracy."""
    x = np.require(x, requirements="CA")
    y = np.empty_like(x)
    cdef int kind = is_double(x)
    if name == "tanh":
        _table.tanh[kind](cnp.PyArray_DATA(x), data_of(y), x.size)
    elif name == "exp":
        _table.exp[kind](cnp.PyArray_DATA(x), data_of(y), x.size)
    else:
        _table.sigmoid[kind](cnp.PyArray_DATA(x), data_of(y), x.size)
    return y


cdef const pyrnn_kernels *table() noexcept nogil:
    return _table


cdef int interrupted() noexcept with gil:
    """Asked by a long kernel between time blocks: run Python's signal handlers, tell whether one raised."""
    return PyErr_CheckSignals() != 0


cdef int raise_pending() except -1:
    """Raise what the signal handler raised: the error is set already, -1 says so."""
    return -1


def openmp_threads():
    """Return how many threads OpenMP would start now."""
    return pyrnn_openmp_threads()


if pyrnn_openmp():
    _threads.openmp_threads = openmp_threads


cdef int threads() except -1:
    """Return how many threads a kernel may use."""
    return _threads.get_num_threads()


cdef int is_double(object array) except -1:
    cdef int kind = cnp.PyArray_TYPE(<cnp.ndarray?>array)
    if kind != cnp.NPY_DOUBLE and kind != cnp.NPY_FLOAT:
        raise TypeError(f"expected float32 or float64, got {array.dtype}")
    return kind == cnp.NPY_DOUBLE


cdef object contiguous(object array):
    """Return an array as a contiguous one whose elements lie on their own boundaries, copied only where it is none."""
    flags = array.flags
    return array if flags.c_contiguous and flags.aligned else np.require(array, requirements="CA")


cdef void *data_of(object array) except? NULL:
    return NULL if array is None else cnp.PyArray_DATA(<cnp.ndarray?>array)


cdef bint is_matrix(object array, int kind, ptrdiff_t rows, ptrdiff_t columns) except -1:
    """Tell whether an object is a float matrix of this kind and shape."""
    return (
        isinstance(array, cnp.ndarray)
        and cnp.PyArray_TYPE(<cnp.ndarray>array) == (cnp.NPY_DOUBLE if kind else cnp.NPY_FLOAT)
        and cnp.PyArray_NDIM(<cnp.ndarray>array) == 2
        and cnp.PyArray_DIM(<cnp.ndarray>array, 0) == rows
        and cnp.PyArray_DIM(<cnp.ndarray>array, 1) == columns
        and cnp.PyArray_ISNOTSWAPPED(<cnp.ndarray>array)
    )


cdef bint has_rows(object array, int kind, ptrdiff_t rows, ptrdiff_t columns) except -1:
    """Tell whether an object is such a matrix, of which the elements of a row lie side by side on their own boundaries."""
    return (
        is_matrix(array, kind, rows, columns)
        and cnp.PyArray_ISBEHAVED_RO(<cnp.ndarray>array)
        and (columns <= 1 or stride_of(array, 1) == 1)
    )


cdef int copy_matrix(object to, object array) except -1:
    """Copy a matrix into another one of its shape and kind; numpy takes longer over a small one than a step does."""
    if cnp.PyArray_ISCARRAY(<cnp.ndarray>to) and cnp.PyArray_ISCARRAY_RO(<cnp.ndarray>array):
        memmove(data_of(to), data_of(array), cnp.PyArray_NBYTES(<cnp.ndarray>to))
    else:
        to[...] = array
    return 0


cdef pyrnn_loop loop_of(object function, int kind) except *:
    """Return the inner loop with which numpy runs a function of one argument on floats of this kind: it needs no GIL."""
    cdef pyrnn_loop loop
    cdef cnp.ufunc of = function
    cdef int i = function.types.index("d->d" if kind else "f->f")
    loop.call = <void (*)(char **, const ptrdiff_t *, const ptrdiff_t *, void *) noexcept nogil><void *>of.functions[i]
    loop.data = of.data[i]
    return loop


FLOATS = ("float32", "float64")


cdef object step_output(object x, object out, int kind, ptrdiff_t batch, ptrdiff_t inputs, ptrdiff_t outputs):
    """Hold a step's arrays against their form, and return the output: a new one where none is given."""
    if not is_matrix(x, kind, batch, inputs):
        raise ValueError(f"x_t: expected {FLOATS[kind]} of shape (batch, features) = ({batch}, {inputs})")
    if out is None:
        return new_matrix(kind, batch, outputs)
    if not is_matrix(out, kind, batch, outputs):
        raise ValueError(f"out: expected {FLOATS[kind]} of shape (batch, features) = ({batch}, {outputs})")
    return out


cdef object new_matrix(int kind, ptrdiff_t rows, ptrdiff_t columns):
    cdef cnp.npy_intp[2] shape = [rows, columns]
    return cnp.PyArray_EMPTY(2, shape, cnp.NPY_DOUBLE if kind else cnp.NPY_FLOAT, 0)


cdef ptrdiff_t stride_of(object array, int axis) except? -1:
    """Return a stride in elements."""
    return cnp.PyArray_STRIDE(<cnp.ndarray?>array, axis) // cnp.PyArray_ITEMSIZE(<cnp.ndarray>array)


cdef pyrnn_in input_of(object array, list keep) except *:
    """Describe an array to be read; one whose elements do not lie on their own boundaries is copied.

    ``keep`` gets every array whose memory the kernel will read.
    """
    cdef pyrnn_in result
    cdef int axis
    result.data = NULL
    result.stride[0] = result.stride[1] = result.stride[2] = 0
    if array is None:
        return result
    cdef ptrdiff_t item = cnp.PyArray_ITEMSIZE(<cnp.ndarray?>array)
    cdef bint uneven = not cnp.PyArray_ISALIGNED(<cnp.ndarray>array)
    for axis in range(cnp.PyArray_NDIM(<cnp.ndarray>array)):
        uneven |= cnp.PyArray_STRIDE(<cnp.ndarray>array, axis) % item != 0
    if uneven:
        array = array.copy()
    keep.append(array)
    result.data = cnp.PyArray_DATA(<cnp.ndarray>array)
    for axis in range(cnp.PyArray_NDIM(<cnp.ndarray>array)):
        result.stride[axis] = cnp.PyArray_STRIDE(<cnp.ndarray>array, axis) // item
    return result
