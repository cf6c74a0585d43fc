"""How much memory something took at its highest, as Linux counts it."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Self

import pyrnn

STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class PeakMemory:
    """A context whose ``peak`` is the most memory, in bytes, that was resident within it, less what was so before.

    Only Linux lets a process set its highest value back, so elsewhere ``peak`` is None.
    """

    peak: int | None = None

    def __enter__(self) -> Self:
        pyrnn.empty_cache()
        if RESET.exists():
            RESET.write_text("5")
            self.before = _bytes("VmRSS")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if RESET.exists():
            self.peak = _bytes("VmHWM") - self.before


def _bytes(field: str) -> int:
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(f"{field}:"))
    return 1024 * int(line.split()[1])
