"""The numba plugin: rnn, lstm and gru compiled by Numba on the user's machine, for its own vector units.

It is a backend as anybody's would be, registered by entry point and built on the public plugin API alone.
``recurrent`` allocates and describes a call, ``walk`` takes the steps, ``cells`` has the formulas, ``panel`` the
products, ``vector`` and ``activations`` the instructions, ``team`` the threads.
"""

from __future__ import annotations

try:
    import numba as _numba  # noqa: F401
except ModuleNotFoundError as error:
    from pyrnn import BackendUnavailableError

    raise BackendUnavailableError("numba", "Numba is not installed", 'pip install "pyrnn[numba]"') from error

from .backend import NumbaBackend

__all__ = ["NumbaBackend"]
