"""How a recurrent layer is laid over the device: the units and rows of a block, by registers, memory and time."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

from .devices import Device

THREADS = 256
WARPS = THREADS // 32
# Of a thread's 255 for weights: with more some kernel spills. Fewer before a compute capability of 90, and beside the
# sums and operands of matrix units.
REGISTERS, OLDER_REGISTERS, MATRIX_REGISTERS = 128, 104, 112
ROWS_AT_ONCE = {None: 4, "tf32": 16, "bfloat16": 16}  # that a thread, or a matrix unit, takes
STEP = {"tf32": 8, "bfloat16": 16}  # of a matrix unit, in depth
MOST_ROWS = 32  # of a tile
# Costs in cycles of one multiprocessor. They are estimates from NVIDIA's figures for Hopper; none was measured.
FLAGS = 1500  # to tell and to hear that a step is done, between blocks
BYTES = 64  # that a block gets from the second-level cache in a cycle
CELL = 60  # for each round of cells
PRODUCTS = {None: 128, "tf32": 256, "bfloat16": 512}  # multiply-adds


class Plan(NamedTuple):
    """A launch of ``blocks`` by ``groups`` blocks: what kernels are compiled with, and what is allocated for them."""

    units: int
    rounds: int
    tile: int  # rows
    padded: int  # the length of a row of operands
    blocks: int
    groups: int
    shared: int
    cycles: float

    def constants(self) -> dict[str, int]:
        return {"UNITS": self.units, "ROUNDS": self.rounds, "THREADS": THREADS}


def _round_up(n: int, to: int) -> int:
    return -(-n // to) * to


@lru_cache(maxsize=512)
def plan(
    device: Device, hidden: int, batch: int, sums: int, depth: int, itemsize: int, compute: str | None, states: int
) -> Plan | None:
    """Return the fastest plan for products of ``depth`` terms, ``sums`` a unit, or None if the weights find no room.

    Parameters
    ----------
    device
        The device.
    hidden, batch
        Units of the layer, rows.
    sums, depth
        Forward: the gates, and hidden; backward: 1, and gates times hidden.
    itemsize
        Bytes of an element.
    compute
        The precision of products.
    states
        Values that a block keeps for each of its cells.
    """
    most = REGISTERS if device.capability >= 90 else OLDER_REGISTERS
    plans = []
    for units in (1, 2, 4, 8, 16, 32):
        blocks = -(-hidden // units)
        if blocks > device.processors or (units > 1 and units >= 2 * hidden):
            continue
        if compute is None:
            slices, operand = THREADS // units, itemsize
            rounds = -(-depth // (4 * slices))
            registers, allowed = rounds * sums * 4 * itemsize // 4, most
            padded = row = rounds * 4 * slices
        else:
            step, tiles, operand = STEP[compute], -(-sums * units // 8), 2 if compute == "bfloat16" else 4
            rounds = -(-depth // (step * WARPS))
            registers, allowed = rounds * tiles * 2, min(most, MATRIX_REGISTERS)
            padded = rounds * step * WARPS
            row = padded + 16 // operand
        if registers > allowed:
            continue
        least = ROWS_AT_ONCE[compute]
        groups = max(1, min(-(-batch // least), device.processors // blocks))
        rows = -(-batch // groups)
        fixed = rows * units * states * itemsize
        rounded, parts = _round_up(rows, least), WARPS * sums * units * itemsize
        for tile, buffers in ((rounded, 1), (16, 2), (least, 2)):
            shared = fixed + tile * (buffers * row * operand + parts)
            if shared <= device.shared and tile <= MOST_ROWS and (buffers == 1 or tile < rows):
                break
        else:
            continue
        work = rounded * sums * padded * (units if compute is None else max(units, 8 // sums)) * (itemsize // 4)
        cycles = (
            work / PRODUCTS[compute]
            + rows * padded * operand / BYTES
            + -(-rows * units // THREADS) * CELL * sums
            + (FLAGS + 2 * blocks if blocks > 1 else 0)
        )
        plans.append(Plan(units, rounds, tile, padded, blocks, groups, shared, cycles))
    return min(plans, key=lambda p: p.cycles, default=None)
