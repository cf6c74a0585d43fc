"""What each kernel of the GPU plugin needs of a GPU, in the forms that calls of many sizes have: run it for a table.

Nothing else runs: the plugin plans its launches on the stand-in for CuPy as on a GPU of the architecture, each source
that it would have compiled is noted down, and NVRTC compiles it.
"""

from __future__ import annotations

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


MODES = ((np.float32, None), (np.float32, "tf32"), (np.float32, "bfloat16"), (np.float64, None))
HIDDEN = {(np.float32, None): (32, 256, 1024, 2048), (np.float64, None): (256, 1024)}  # by mode; else:
OTHERWISE = (256, 2048)


def calls(backend: Any) -> None:
    """Call every op forward and backward, in sizes whose plans differ."""
    from pyrnn_cupy.modules import kernel

    kernel("rounds.cu", "tell_and_wait", cooperative=True)  # of benchmarks
    for mode in MODES:
        for batch, hidden in ((16, hidden) for hidden in HIDDEN.get(mode, OTHERWISE)):
            _recurrent(backend, mode, batch, hidden)
        for features in (64, 128, 256) if mode == MODES[0] else (64,):
            _attention(backend, mode, features)
        _conv(backend, mode)
        _basic(backend, mode)


def _call(backend: Any, mode: Any, op: Any, *shapes: tuple[int, ...] | None, **config: Any) -> None:
    dtype, compute = mode
    arrays = [None if shape is None else backend.xp.zeros(shape, dtype) for shape in shapes]
    with pyrnn.use_backend(backend, compute=compute):
        outputs, pullback = pyrnn.vjp(op, *arrays, **config)
        pullback(list(outputs) if isinstance(outputs, tuple) else outputs)


def _recurrent(backend: Any, mode: Any, batch: int, hidden: int) -> None:
    for gates, op in ((1, pyrnn.rnn), (4, pyrnn.lstm), (3, pyrnn.gru)):
        weights = ((batch, 1, 8), (gates * hidden, 8), (gates * hidden, hidden), (gates * hidden,))
        bias = ((hidden,),) if op is pyrnn.gru else ()
        state = ((batch, hidden),) * (2 if op is pyrnn.lstm else 1)
        _call(backend, mode, op, *weights, *bias, *state)
    _call(backend, mode, pyrnn.gru, *weights, None, *state, reset_after=False)
    _call(backend, mode, pyrnn.rnn, (batch, 1, 8), (hidden, 8), (hidden, hidden), activation="relu")


def _attention(backend: Any, mode: Any, features: int) -> None:
    heads = (2, 4, 96, features)
    _call(backend, mode, pyrnn.attention, heads, heads, heads, causal=True)
    _call(backend, mode, pyrnn.attention, heads, heads, heads, (1, 4, 96, 96), dropout=0.5, seed=0)
    _call(backend, mode, pyrnn.attention, (2, 4, 1, features), heads, heads)  # one token
    rows, size = (2, 96, features), features
    _call(backend, mode, pyrnn.additive_attention, rows, rows, rows, (size, size), (size, size), (size,))
    _call(backend, mode, pyrnn.multiplicative_attention, rows, rows, rows)


def _conv(backend: Any, mode: Any) -> None:
    for channels, groups in ((8, 1), (256, 1), (64, 64), (64, 4)):
        _call(backend, mode, pyrnn.causal_conv1d, (4, 200, channels), (channels, channels // groups, 3), groups=groups)


def _basic(backend: Any, mode: Any) -> None:
    rows, xp = (8, 100), backend.xp
    _call(backend, mode, pyrnn.linear, rows, (30, 100), (30,))
    _call(backend, mode, pyrnn.layer_norm, rows, (100,), (100,))
    _call(backend, mode, pyrnn.softmax, rows)
    _call(backend, mode, pyrnn.embedding, rows, indices=xp.zeros(5, np.int64))
    _call(backend, mode, pyrnn.cross_entropy, rows, targets=xp.zeros(8, np.int64))


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
    """Print, for each kernel and architecture, in how many forms it is compiled and the most registers one takes."""
    print(f"| kernel | forms | {' | '.join(GPUS)} |\n|---|---|{'---|' * len(GPUS)}", flush=True)
    found: dict[str, dict[str, list[nvrtc.Resources]]] = {}
    for arch in GPUS:
        for name, _, needs in table(arch):
            found.setdefault(name, {gpu: [] for gpu in GPUS})[arch].append(needs)
    for name, by_gpu in sorted(found.items()):
        most = [
            f"{max(need.registers for need in needs)}" + (" spilled" if any(need.stack for need in needs) else "")
            for needs in by_gpu.values()
        ]
        print(f"| `{name}` | {max(map(len, by_gpu.values()))} | {' | '.join(most)} |")


if __name__ == "__main__":
    main()
