"""Property tests that learn whether a backend, or a single function of anybody's, is right.

>>> report = pyrnn.testing.check_backend("numba")
>>> report.ok
>>> print(report)

`check_op` does the same for one function, `check_gradients` for the gradients of any function on Tensors, and
`make_backend_tests` makes tests for a plugin's own pytest file. ``docs/property-kit.md`` says what each property means,
how the bounds are argued, and what the kit can't see. Needs Hypothesis: ``pip install "pyrnn[testing]"``.
"""

try:
    import hypothesis as _hypothesis  # noqa: F401
except ModuleNotFoundError as error:
    raise ImportError('pyrnn.testing needs Hypothesis; try: pip install "pyrnn[testing]"') from error

from . import attention, basic, conv, general, recurrent, strategies  # the families declare their properties
from .call import LAYOUTS, Call
from .check import check_backend, check_op, replay
from .gradients import check_gradients
from .properties import PROPERTIES, Property
from .report import Report, Result
from .suite import make_backend_tests

__all__ = [
    "LAYOUTS",
    "PROPERTIES",
    "Call",
    "Property",
    "Report",
    "Result",
    "attention",
    "basic",
    "check_backend",
    "check_gradients",
    "check_op",
    "conv",
    "general",
    "make_backend_tests",
    "recurrent",
    "replay",
    "strategies",
]
