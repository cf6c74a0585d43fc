"""How exact the kernels are: activations over every float32, and states after many steps, against float64.

    python -m benchmarks.accuracy [--step N] [--steps 10000]

The first table has the largest distance from the float64 value, in units of the result's last place, over all finite
float32 values (``--step N``: every Nth bit pattern). The second runs each cell for 10,000 steps from random inputs and
weights, in float32 and float64, and has the largest and the root mean square difference of the states.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

import pyrnn

CHUNK = 1 << 22
GATES = {"rnn": 1, "lstm": 4, "gru": 3}


def sigmoid(x: NDArray[np.float64]) -> NDArray[np.float64]:
    e = np.exp(-np.abs(x))
    return np.where(x >= 0, 1, e) / (1 + e)


EXACT: dict[str, Callable[[NDArray[np.float64]], NDArray[np.float64]]] = {"tanh": np.tanh, "sigmoid": sigmoid}


def largest_error(name: str, step: int = 1) -> tuple[float, float]:
    """Return the largest error of an activation in ULP, and the value that has it."""
    from pyrnn._core.runtime import activation

    worst, at = 0.0, 0.0
    with np.errstate(all="ignore"):
        for start in range(0, 1 << 32, CHUNK * step):
            bits = np.arange(start, min(start + CHUNK * step, 1 << 32), step, dtype=np.uint64).astype(np.uint32)
            x = bits.view(np.float32)
            x = x[np.isfinite(x)]
            exact = EXACT[name](x.astype(np.float64))
            unit = np.spacing(np.maximum(np.abs(exact), np.finfo(np.float32).tiny).astype(np.float32))
            off = np.abs(activation(name, x) - exact) / unit
            if off.size and off.max() > worst:
                worst, at = float(off.max()), float(x[off.argmax()])
    return worst, at


def drift(cell: str, steps: int, hidden: int, seed: int = 0) -> tuple[float, float]:
    """Return the largest and the root mean square difference of the states between float32 and float64."""
    rng = np.random.default_rng(seed)
    rows = GATES[cell] * hidden
    # Rounded to float32 first, so that both run on the same numbers.
    x = rng.standard_normal((1, steps, hidden)).astype(np.float32)
    weights = [
        rng.uniform(-(hidden**-0.5), hidden**-0.5, shape).astype(np.float32)
        for shape in ((rows, hidden), (rows, hidden), (rows,))
    ]
    op = getattr(pyrnn, cell)
    single = op(x, *weights)[0]
    double = op(x.astype(np.float64), *(w.astype(np.float64) for w in weights))[0]
    off = np.abs(single - double)
    return float(off.max()), float(np.sqrt(np.mean(off * off)))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.accuracy", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--step", type=int, default=1, help="check every Nth float32 (default: 1, all of them)")
    parser.add_argument("--steps", type=int, default=10_000)
    arguments = parser.parse_args()
    pyrnn.show_config()
    print("\n| activation | largest error, ULP | at |\n|---|---|---|")
    for name in EXACT:
        worst, at = largest_error(name, arguments.step)
        print(f"| {name} | {worst:.3f} | {at:.9g} |", flush=True)
    print(f"\n| {arguments.steps} steps | H | largest difference | root mean square |\n|---|---|---|---|")
    for cell in GATES:
        for hidden in (64, 256):
            most, mean = drift(cell, arguments.steps, hidden)
            print(f"| {cell} | {hidden} | {most:.1e} | {mean:.1e} |", flush=True)


if __name__ == "__main__":
    main()
