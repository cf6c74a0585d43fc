"""The property kit on each backend that is here."""

from pyrnn.testing import make_backend_tests

TestReference = make_backend_tests("reference")
TestCython = make_backend_tests("cython")
TestNumba = make_backend_tests("numba")
