"""Each property that pyrnn holds a backend to is a test here; what is not claimed is skipped."""

from __future__ import annotations

import numpy as np
import pytest

import pyrnn
from pyrnn.testing import make_backend_tests

TestOneProduct = make_backend_tests("oneproduct", ops=["rnn"])


def test_what_is_not_claimed_is_refused() -> None:
    x, w_ih, w_hh = np.ones((1, 2, 3)), np.ones((4, 3)), np.ones((4, 4))
    with pytest.raises(NotImplementedError, match=r"activation: backend 'oneproduct' has 'tanh' only, got 'relu'"):
        pyrnn.rnn(x, w_ih, w_hh, activation="relu", backend="oneproduct")
