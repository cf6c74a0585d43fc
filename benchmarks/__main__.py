"""Time the recurrent ops against the NumPy reference and, where they are installed, the Numba plugin and PyTorch.

All contenders of a case take turns, round after round, so that the machine's drift meets each alike; a turn is a pause,
a call to wake up, and a timed call. The table has medians in milliseconds and the ratio of each peer's time to pyrnn's
(above 1: pyrnn is faster).

    python -m benchmarks [--ops lstm,gru] [--shapes 32x100x128] [--threads 2] [--mode forward,train] [--rounds 15]
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import numpy as np

import pyrnn

GATES = {"rnn": 1, "lstm": 4, "gru": 3}
SHAPES = "1x1x64,1x100x256,8x100x100,32x100x128,32x100x256,64x50x512"
IDLE = 0.05  # seconds before each turn, in which the threads of the one before stop spinning on our cores
REFERENCE_LIMIT = 2e9  # multiply-adds beyond which the reference is left out: it would take seconds a round


def contenders(op: str, B: int, T: int, H: int, mode: str, threads: int) -> dict[str, Callable[[], Any]]:
    """Return what is to be timed on one shape (input size H), by name."""
    rng = np.random.default_rng(0)
    rows = GATES[op] * H
    x = rng.standard_normal((B, T, H)).astype(np.float32)
    weights = [(rng.uniform(-1, 1, shape) / H**0.5).astype(np.float32) for shape in ((rows, H), (rows, H), (rows,))]
    dy = rng.standard_normal((B, T, H)).astype(np.float32)
    function = getattr(pyrnn, op)

    def on(backend: str) -> Callable[[], Any]:
        def forward() -> Any:
            return function(x, *weights, backend=backend)

        def train() -> Any:
            outputs, pullback = pyrnn.vjp(function, x, *weights, backend=backend)
            return pullback([dy, *[None] * (len(outputs) - 1)])

        return forward if mode == "forward" else train

    found = {"pyrnn": on("cython")}
    if B * T * rows * H * (2 if mode == "forward" else 6) < REFERENCE_LIMIT:
        found["reference"] = on("reference")
    if find_spec("numba"):
        found["numba"] = on("numba")
    if find_spec("torch"):
        import torch

        torch.set_num_threads(threads)
        layer = getattr(torch.nn, op.upper())(H, H, batch_first=True)
        given, gradient = torch.tensor(x), torch.tensor(dy)
        learning = given.clone().requires_grad_()

        def forward() -> Any:
            with torch.inference_mode():
                return layer(given)

        def train() -> Any:
            layer.zero_grad()
            layer(learning)[0].backward(gradient)

        found["torch"] = forward if mode == "forward" else train
    return found


def measure(runs: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Return each contender's median time in milliseconds over interleaved rounds."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            time.sleep(IDLE)
            run()
            begin = time.perf_counter()
            run()
            times[name].append(1e3 * (time.perf_counter() - begin))
    return {name: statistics.median(values) for name, values in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--ops", default="rnn,lstm,gru")
    parser.add_argument("--shapes", default=SHAPES, help=f"batch x time x hidden, float32 (default: {SHAPES})")
    parser.add_argument("--mode", default="forward,train")
    parser.add_argument("--threads", type=int, default=pyrnn.get_num_threads())
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    ops, modes = arguments.ops.split(","), arguments.mode.split(",")
    if not set(ops) <= set(GATES) or not set(modes) <= {"forward", "train"}:
        parser.error(f"expected --ops among {','.join(GATES)} and --mode among forward,train")
    shapes = [shape.split("x") for shape in arguments.shapes.split(",")]
    if not all(len(shape) == 3 and all(size.isdigit() for size in shape) for shape in shapes):
        parser.error(f"argument --shapes: expected BxTxH, comma-separated, got {arguments.shapes!r}")
    pyrnn.set_num_threads(arguments.threads)
    pyrnn.show_config()
    print(f"{platform.processor() or platform.machine()}, {arguments.threads} threads, {arguments.rounds} rounds\n")
    peers = ("numba", "reference", "torch")
    print(f"| op | mode | B×T×H | pyrnn ms | {' | '.join(f'{peer} ÷' for peer in peers)} |\n|{'---|' * 7}")
    for op in ops:
        for mode in modes:
            for shape in shapes:
                B, T, H = map(int, shape)
                ms = measure(contenders(op, B, T, H, mode, arguments.threads), arguments.rounds)
                ratios = [f"{ms[peer] / ms['pyrnn']:.2f}" if peer in ms else "–" for peer in peers]
                print(f"| {op} | {mode} | {'x'.join(shape)} | {ms['pyrnn']:.3f} | {' | '.join(ratios)} |", flush=True)


if __name__ == "__main__":
    main()
