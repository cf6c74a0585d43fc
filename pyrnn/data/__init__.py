"""Feeding sequences to models: ragged batches, loaders with little padding, sliding windows.

- `ragged`: `pad` and `unpad` lists of sequences of unequal length, `pack` and `unpack` batches.
- `loader`: `Loader`, the seeded and resumable base of all loaders, and `Batches` over arrays.
- `batching`: `Buckets` and `TokenBatches`, which put sequences of similar length together.
- `report`: `padding_report` and `compare_padding` count what that saves.
- `windows`: `windows`, the sliding windows of a series, with targets.
"""

from __future__ import annotations

from .batching import Buckets, TokenBatches
from .loader import Batches, Loader
from .ragged import Packed, Padded, pack, pad, unpack, unpad
from .report import PaddingReport, compare_padding, padding_report
from .windows import Windows, windows

__all__ = [
    "Batches",
    "Buckets",
    "Loader",
    "Packed",
    "Padded",
    "PaddingReport",
    "TokenBatches",
    "Windows",
    "compare_padding",
    "pack",
    "pad",
    "padding_report",
    "unpack",
    "unpad",
    "windows",
]
