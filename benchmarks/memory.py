"""Peak memory of a training call, each contender in a fresh process.

``python -m benchmarks.memory CONTENDER OP BxTxIxH DTYPE THREADS`` prints the bytes that one forward and backward
pass took at most beyond what the process held before it: library, weights and arrays. A call on a tiny shape goes
before, so that thread pools and tables made once don't count.
"""

from __future__ import annotations

import resource
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyrnn

from .cases import Case, draw_data
from .contenders import ours, prepare


def measure(contender: str, case: Case, threads: int) -> int:
    """Return the bytes that a contender's training takes at most, measured in a process of its own.

    Raises
    ------
    RuntimeError
        The process failed; the message has what it said.
    """
    shape = f"{case.B}x{case.T}x{case.I}x{case.H}"
    command = [sys.executable, "-m", f"{__package__}.memory", contender, case.op, shape, case.dtype, str(threads)]
    root = Path(__file__).parents[1]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=root)
    if done.returncode:
        raise RuntimeError(f"{contender}, {case.op} {shape}: {done.stderr.strip().splitlines()[-1]}")
    return int(done.stdout)


def floor(case: Case) -> float:
    """Return the bytes of what training must hold at the end: y and the gradients of x, the states and the weights."""
    return case.bytes / 2


def _training(contender: str, case: Case, threads: int) -> Any:
    data = draw_data(case)
    runs = ours.prepare_pyrnn(case, data, threads) if contender == "pyrnn" else prepare(contender, case, data, threads)
    return runs[contender].call


def _peak_of(call: Any) -> int:
    status, reset = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    if not reset.exists():  # macOS, which counts in bytes
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        held = call()
        del held
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    # Linux gives ru_maxrss of the process that started this one, if that was larger, so VmHWM is read instead; 5 sets
    # it back to what is held now.
    reset.write_text("5")
    before = _kilobytes(status, "VmRSS")
    held = call()
    del held
    return 1024 * (_kilobytes(status, "VmHWM") - before)


def _kilobytes(status: Path, field: str) -> int:
    return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith(f"{field}:"))


def main() -> None:
    contender, op, shape, dtype, threads = sys.argv[1:]
    B, T, I, H = map(int, shape.split("x"))
    case = Case(op, "memory", B, T, I, H, dtype)
    pyrnn.set_num_threads(int(threads))
    _training(contender, replace(case, B=2, T=2), int(threads))()
    print(_peak_of(_training(contender, case, int(threads))))


if __name__ == "__main__":
    main()
