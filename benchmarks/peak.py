"""What the machine gives at best, measured in the same run: the multiply-add peak and the memory's bandwidth.

``peak.c`` is compiled here, for the instruction set that pyrnn's kernels use (so ``PYRNN_ISA=v3`` gives the peak of
AVX2), and called through ctypes.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import tempfile
from pathlib import Path

import numpy as np

from pyrnn._core import runtime

FLAGS = {
    "v4": ["-march=x86-64-v4", "-mprefer-vector-width=512", "-DWIDTH=64"],
    "v3": ["-march=x86-64-v3", "-DWIDTH=32"],
    "v2": ["-march=x86-64-v2", "-DWIDTH=16"],
    "base": ["-DWIDTH=16"],
}
READ = 1 << 29  # bytes: beyond most last-level caches


class Machine:
    """The peak and the bandwidth of a number of threads.

    Parameters
    ----------
    threads : int

    Raises
    ------
    RuntimeError
        The compiler (``CC``, or cc) can't be run, or refuses the file.
    """

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self.level = runtime.isa_level()
        self._library = _build(FLAGS[self.level])
        self._library.pyrnn_peak.restype = self._library.pyrnn_bandwidth.restype = ctypes.c_double
        self._count = 1 << 21

    def peak(self, dtype: str = "float32") -> float:
        """Return the multiply-add peak now, in GFLOP/s, from some milliseconds of work."""
        rate = self._library.pyrnn_peak(int(dtype == "float64"), self.threads, ctypes.c_long(self._count))
        return _checked(rate, self.threads)

    def bandwidth(self) -> float:
        """Return the rate at which memory is read, in GB/s: the best of five readings."""
        block = np.ones(READ + 64, np.uint8)
        start = -block.ctypes.data % 64
        data = ctypes.c_void_p(block.ctypes.data + start)
        read = lambda: self._library.pyrnn_bandwidth(self.threads, data, ctypes.c_size_t(READ))  # noqa: E731
        return max(_checked(read(), self.threads) for _ in range(5))


def _checked(rate: float, threads: int) -> float:
    if rate < 0:
        raise RuntimeError(f"the operating system gave fewer than {threads} threads")
    return rate


def _build(flags: list[str]) -> ctypes.CDLL:
    source = Path(__file__).with_name("peak.c")
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder, "peak.so")
        compiler = os.environ.get("CC", "cc").split()
        options = ["-std=gnu11", "-O3", "-ffp-contract=fast", "-fPIC", "-shared", "-pthread", *flags]
        try:
            done = subprocess.run(
                [*compiler, *options, str(source), "-o", str(library)], capture_output=True, text=True, check=False
            )
        except OSError as error:
            raise RuntimeError(
                f"the peak is measured by a C program, and {compiler[0]} can't be run: {error}"
            ) from None
        if done.returncode:
            raise RuntimeError(f"{compiler[0]} could not build {source.name}:\n{done.stderr}")
        return ctypes.CDLL(str(library))
