"""How much of a way of batching is padding."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from .._checks import check_lengths, describe_array
from .loader import Loader


class PaddingReport(NamedTuple):
    """Steps of the batches of an epoch, each padded to its longest sequence.

    Attributes
    ----------
    batches : int
        Number of batches.
    valid_steps : int
        Steps that belong to sequences.
    padding_steps : int
        Steps that do not.
    """

    batches: int
    valid_steps: int
    padding_steps: int

    @property
    def fill(self) -> float:
        """Fraction of all steps that is valid; 1 if there are no steps."""
        steps = self.valid_steps + self.padding_steps
        return self.valid_steps / steps if steps else 1.0

    def __str__(self) -> str:
        return (
            f"{self.batches:,} batches, {self.valid_steps:,} valid steps, "
            f"{self.padding_steps:,} padding steps, {self.fill:.1%} full"
        )


def padding_report(lengths: ArrayLike, batches: Iterable[ArrayLike]) -> PaddingReport:
    """Count the valid and the padding steps of batches.

    Parameters
    ----------
    lengths : array_like of int, shape (sequences,)
        Length of each sequence.
    batches : iterable of array_like of int, shapes (batch,)
        Indices of the sequences of each batch. Of a loader, such as `Buckets`, it is the epoch
        that comes next, and the loader is not advanced.

    Returns
    -------
    PaddingReport

    Raises
    ------
    TypeError, ValueError
        If `lengths` are not non-negative integers, or a batch not indices of theirs.

    Examples
    --------
    >>> print(padding_report([3, 5, 5], [[0, 1], [2]]))
    2 batches, 13 valid steps, 2 padding steps, 86.7% full
    """
    lengths = check_lengths("lengths", np.asarray(lengths))
    if isinstance(batches, Loader):
        batches = copy.copy(batches)
    count = valid = total = 0
    for count, batch in enumerate(batches, start=1):
        index = np.asarray(batch)
        if index.size == 0:
            continue
        if index.ndim != 1 or index.dtype.kind not in "iu":
            raise TypeError(
                f"batches[{count - 1}]: expected integer indices of shape (B,), got {describe_array(index)}"
            )
        if index.min() < 0 or index.max() >= len(lengths):
            raise ValueError(
                f"batches[{count - 1}]: expected indices of the {len(lengths)} lengths, "
                f"got {index.min()} to {index.max()}"
            )
        valid += int(lengths[index].sum())
        total += len(index) * int(lengths[index].max())
    return PaddingReport(count, valid, total - valid)


def compare_padding(lengths: ArrayLike, strategies: Mapping[str, Iterable[ArrayLike]]) -> str:
    """Set the padding of several ways of batching the same sequences side by side.

    Parameters
    ----------
    lengths : array_like of int, shape (sequences,)
        Length of each sequence.
    strategies : mapping of str to iterable of array_like of int
        Batches by the name of the strategy, as `padding_report` takes them.

    Returns
    -------
    str
        A table to print; its last column is the padding saved, against the first strategy.

    Raises
    ------
    TypeError, ValueError
        As `padding_report`.

    Examples
    --------
    >>> print(compare_padding([3, 5, 3], {"plain": [[0, 1], [2]], "sorted": [[0, 2], [1]]}))
    strategy  batches  valid  padding    fill   saved
    plain           2     11        2   84.6%    0.0%
    sorted          2     11        0  100.0%  100.0%
    """
    reports = {name: padding_report(lengths, batches) for name, batches in strategies.items()}
    rows = [("strategy", "batches", "valid", "padding", "fill", "saved")]
    baseline = next((report.padding_steps for report in reports.values()), 0)
    for name, report in reports.items():
        saved = f"{1 - report.padding_steps / baseline:.1%}" if baseline else "-"
        steps = (f"{report.batches:,}", f"{report.valid_steps:,}", f"{report.padding_steps:,}")
        rows.append((name, *steps, f"{report.fill:.1%}", saved))
    name_width, *widths = (max(map(len, column)) for column in zip(*rows, strict=True))
    return "\n".join("  ".join([name.ljust(name_width), *map(str.rjust, cells, widths)]) for name, *cells in rows)
