"""Peak memory of a call, each contender in a fresh process.

``python -m benchmarks.memory CONTENDER FAMILY OP MODE SHAPE DTYPE THREADS`` prints the bytes that one call, in training
forward and backward, took at most beyond what the process held before it: library, weights and arrays. A call on a tiny
shape goes before, so that thread pools and tables made once don't count.
"""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyrnn

from .cases import FAMILIES
from .contenders import prepare, prepare_pyrnn


def measure(contender: str, case: Any, threads: int) -> int:
    """Return the bytes that a contender's call takes at most, measured in a process of its own.

    Raises
    ------
    RuntimeError
        The process failed; the message has what it said.
    """
    words = [contender, case.family, case.op, case.mode, case.shape, case.dtype, str(threads)]
    command = [sys.executable, "-m", f"{__package__}.memory", *words]
    root = Path(__file__).parents[1]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=root)
    if done.returncode:
        raise RuntimeError(f"{contender}, {case.op} {case.shape}: {done.stderr.strip().splitlines()[-1]}")
    return int(done.stdout)


def _call(contender: str, case: Any, threads: int) -> Any:
    data = FAMILIES[case.family].draw_data(case)
    runs = prepare_pyrnn(case, data, threads) if contender == "pyrnn" else prepare(contender, case, data, threads)
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
    contender, name, op, mode, shape, dtype, threads = sys.argv[1:]
    family = FAMILIES[name]
    case = family.Case(op, mode, *family.parse_shapes(shape)[0], dtype)
    pyrnn.set_num_threads(int(threads))
    _call(contender, case.tiny(), int(threads))()
    print(_peak_of(_call(contender, case, int(threads))))


if __name__ == "__main__":
    main()
