"""The numba plugin: the recurrent, attention and convolution families, compiled by Numba on the user's machine, for its
own vector units.

It is a backend as anybody's would be, registered by entry point and built on the public plugin API alone.
``recurrent``, ``attention`` and ``conv`` allocate and describe a call. Compiled are ``walk``, ``forward`` and
``backward``, which take the steps of a recurrent layer, with the formulas of ``cells``; ``attend`` and
``attend_back``, with those of ``scores`` and ``dropout``; ``taps``; and ``matrix``. ``panel`` has the products,
``vector`` and ``activations`` the instructions, ``memory`` and ``team`` the buffers and the threads.
"""

from __future__ import annotations

try:
    import numba as _numba  # noqa: F401
except ModuleNotFoundError as error:
    from pyrnn import BackendUnavailableError

    raise BackendUnavailableError("numba", "Numba is not installed", 'pip install "pyrnn[numba]"') from error

from .backend import NumbaBackend

__all__ = ["NumbaBackend"]
