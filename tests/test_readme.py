"""The README's Python runs as it stands, block after block."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np


def test_the_examples_run() -> None:
    text = (Path(__file__).parents[1] / "README.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", text, re.S)
    assert len(blocks) == 4
    names: dict[str, object] = {}
    for block in blocks:
        exec(block, names)
    grads = names["grads"]
    assert all(np.isfinite(grad).all() for grad in grads if grad is not None)  # type: ignore[attr-defined]
