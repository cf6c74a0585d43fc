"""The kernels that the GPU plugin compiles for calls of many sizes, and what each needs of a GPU: `python registers.py` prints it.

Nothing runs: the plugin plans its launches on the stand-in for CuPy as on a GPU of the architecture, each source that it would
have compiled is noted down, and NVRTC compiles it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import fake_cupy
import numpy as np
import nvrtc

import pyrnn

GPUS = {  # multiprocessors, bytes of shared memory for a block
    "sm_80": {"MultiProcessorCount": 108, "MaxSharedMemoryPerBlockOptin": 163 << 10},
    "sm_90": {"MultiProcessorCount": 132, "MaxSharedMemoryPerBlockOptin": 227 << 10},
    "sm_100": {"MultiProcessorCount": 148, "MaxSharedMemoryPerBlockOptin": 227 << 10},
}
COMPUTE = (None, "tf32", "bfloat16")
Source = tuple[str, tuple[str, ...]]


class _Noted:
    """In place of a RawModule: its kernels do nothing."""

    def __init__(self, code: str, options: tuple[str, ...] = (), **_: Any) -> None:
        self.sources.setdefault((code, tuple(options)), None)

    sources: dict[Source, None]

    def get_function(self, name: str) -> Callable[..., None]:
        def run(*_: Any, **__: Any) -> None:
            return None

        return run


@contextmanager
def noted(arch: str) -> Iterator[tuple[Any, dict[Source, None]]]:
    """Give a backend that notes down what it would compile for an architecture, and the sources noted."""
    found: dict[Source, None] = {}
    with fake_cupy.installed(attributes=GPUS[arch], compute_capability=arch[3:]) as cupy:
        raw, cupy.RawModule = cupy.RawModule, type("Noted", (_Noted,), {"sources": found})
        try:
            from pyrnn_cupy import CupyBackend

            yield CupyBackend(), found
        finally:
            cupy.RawModule = raw
            for name in [name for name in sys.modules if name.partition(".")[0] == "pyrnn_cupy"]:
                del sys.modules[name]


def calls(backend: Any) -> None:
    """Call every op forward and backward, in sizes whose plans differ."""
    xp = backend.xp

    def zeros(*shape: int, dtype: Any = np.float32) -> Any:
        return xp.zeros(shape, dtype)

    def both(op: Any, *arrays: Any, compute: str | None = None, **config: Any) -> None:
        with pyrnn.use_backend(backend, compute=compute):
            outputs, pullback = pyrnn.vjp(op, *arrays, **config)
            pullback(list(outputs) if isinstance(outputs, tuple) else outputs)

    for dtype, compute in ((np.float64, None), *((np.float32, mode) for mode in COMPUTE)):
        for batch, hidden in ((1, 32), (1, 512), (16, 128), (16, 256), (16, 768), (16, 1024), (16, 2048), (64, 512), (256, 1024)):
            for gates, op, states in ((1, pyrnn.rnn, 1), (4, pyrnn.lstm, 2), (3, pyrnn.gru, 1)):
                shapes = ((batch, 1, 8), (gates * hidden, 8), (gates * hidden, hidden), (gates * hidden,))
                arrays = [zeros(*shape, dtype=dtype) for shape in shapes]
                if op is pyrnn.gru:
                    both(op, *arrays, None, zeros(batch, hidden, dtype=dtype), compute=compute, reset_after=False)
                    arrays.append(zeros(hidden, dtype=dtype))
                both(op, *arrays, *(zeros(batch, hidden, dtype=dtype) for _ in range(states)), compute=compute)
                if op is pyrnn.rnn:
                    both(op, *arrays, zeros(batch, hidden, dtype=dtype), compute=compute, activation="relu")


def table(arch: str) -> list[tuple[str, str, nvrtc.Resources]]:
    """Return for each kernel compiled its name, constants and needs."""
    with noted(arch) as (backend, sources):
        calls(backend)
    rows = []
    for code, options in sources:
        constants = " ".join(option[2:] for option in options if option.startswith("-D"))
        for name, needs in nvrtc.compile(code, arch, options).kernels.items():
            rows.append((name, constants, needs))
    return sorted(rows, key=lambda row: row[:2])


def main() -> None:
    """Print, for each kernel and architecture, in how many forms it is compiled, and the most that one needs."""
    print("| kernel | architecture | forms | registers, at most | bytes spilled |\n|---|---|---|---|---|")
    found: dict[tuple[str, str], list[nvrtc.Resources]] = {}
    for arch in GPUS:
        for name, _, needs in table(arch):
            found.setdefault((name, arch), []).append(needs)
    for (name, arch), needs in sorted(found.items(), key=lambda item: (item[0][0], list(GPUS).index(item[0][1]))):
        spilled = sum(need.spill_loads + need.spill_stores for need in needs)
        print(f"| `{name}` | {arch} | {len(needs)} | {max(need.registers for need in needs)} | {spilled} |")


if __name__ == "__main__":
    main()
