"""How a recurrent layer is laid over the device: the units and rows of a block, by registers, memory and time."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

from .devices import Device

THREADS = 256
WARPS = THREADS // 32
# Of a thread's 255 registers those for weights: with more some kernel spills. Fewer before a compute capability of 90,
# beside the sums and operands of matrix units, for each sum of more rows at once, and beside weights from memory.
REGISTERS, OLDER_REGISTERS, MATRIX_REGISTERS = 128, 104, 112
FETCHED_REGISTERS = 40
FEW_ROWS, MANY_ROWS = 4, 16  # that a thread takes at once; a matrix unit always many
STEP = {"tf32": 8, "bfloat16": 16}  # of a matrix unit, in depth
MOST_ROWS = 32  # of a tile
# Costs in cycles of one multiprocessor. They are estimates from NVIDIA's figures for Hopper; none was measured.
FLAGS = 1500  # to tell and to hear that a step is done, between blocks
TILE = 200  # to begin and to end one
SHARED_BYTES, CACHE_BYTES, MEMORY_BYTES = 128, 64, 20  # that it gets in a cycle, from where all read at once
CACHE_SHARE = 0.7  # of the second-level cache, that weights may have
CELL = 60  # for each round of cells
PRODUCTS = {None: 128, "tf32": 256, "bfloat16": 512}  # multiply-adds in a cycle
LIBRARY_PRODUCTS = {None: 100, "tf32": 500, "bfloat16": 900}  # of cuBLAS
STEP_FROM_PYTHON, STEP_KERNELS = 40_000, 6_000  # to launch a step, and between the ends of its kernels


class Plan(NamedTuple):
    """A launch of ``blocks`` by ``groups`` blocks: what kernels are compiled with, and what is allocated for them.

    Attributes
    ----------
    units
        Of a block.
    rounds, held, shared
        In how many rounds a block multiplies by its weights; of how many the weights are in registers, and of how many
        more in shared memory. Those of the others are read in each step.
    at_once, tile
        The rows that a thread multiplies, and that are in shared memory, at a time.
    padded
        The length of a row of operands.
    blocks, groups
        The blocks for all units, and how often they stand, for so many groups of rows.
    memory, scratch
        Bytes of shared memory of a block; of global memory, of all.
    cycles
        That a step is estimated to take.
    """

    units: int
    rounds: int
    held: int
    shared: int
    at_once: int
    tile: int
    padded: int
    blocks: int
    groups: int
    memory: int
    scratch: int
    cycles: float

    def constants(self) -> dict[str, int]:
        return {
            "UNITS": self.units,
            "ROUNDS": self.rounds,
            "HELD": self.held,
            "AT_ONCE": self.at_once,
            "THREADS": THREADS,
        }


@lru_cache(maxsize=512)
def plan(
    device: Device, hidden: int, batch: int, sums: int, depth: int, itemsize: int, compute: str | None, states: int
) -> Plan | None:
    """Return the fastest plan for products of ``depth`` terms, ``sums`` a unit, or None if a launch a step is faster.

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
    found = [
        candidate
        for units in (1, 2, 4, 8, 16, 32)
        if -(-hidden // units) <= device.processors and (units == 1 or units < 2 * hidden)
        for at_once in ((FEW_ROWS, MANY_ROWS) if compute is None else (MANY_ROWS,))
        for candidate in _candidates(device, hidden, batch, sums, depth, itemsize, compute, states, units, at_once)
    ]
    best = min(found, key=lambda candidate: candidate.cycles, default=None)
    in_steps = _cycles_step_by_step(device, hidden, batch, sums, depth, itemsize, compute)
    return None if best is None or in_steps < best.cycles else best


def _candidates(
    device: Device, hidden: int, batch: int, sums: int, depth: int, itemsize: int, compute: str | None, states: int,
    units: int, at_once: int,
) -> Iterator[Plan]:  # fmt: skip
    """Give the plans with so many units in a block: one for each tile that finds room."""
    registers = REGISTERS if device.capability >= 90 else OLDER_REGISTERS
    if compute is None:
        slices, operand = THREADS // units, itemsize
        rounds, of_a_round = -(-depth // (4 * slices)), sums * itemsize
        padded = row = rounds * 4 * slices
        registers -= sums * itemsize // 4 * (at_once - FEW_ROWS)
        columns = units
    else:
        step, tiles, operand = STEP[compute], -(-sums * units // 8), 2 if compute == "bfloat16" else 4
        rounds, of_a_round = -(-depth // (step * WARPS)), 2 * tiles
        padded = rounds * step * WARPS
        row = padded + 16 // operand
        registers = min(registers, MATRIX_REGISTERS)
        columns = max(units, 8 // sums)
    held = rounds if rounds * of_a_round <= registers else (registers - FETCHED_REGISTERS) // of_a_round
    if held < 1 or (compute is None and at_once == MANY_ROWS and held == rounds):
        return
    round_bytes = 4 * of_a_round * THREADS
    blocks = -(-hidden // units)
    groups = max(1, min(-(-batch // at_once), device.processors // blocks))
    rows = -(-batch // groups)
    rounded = _round_up(rows, at_once)
    for tile, buffers in {(rounded, 1), (MANY_ROWS, 2), (at_once, 2)}:
        memory = rows * units * states * itemsize + tile * (buffers * row * operand + WARPS * sums * units * itemsize)
        if memory > device.shared or tile > MOST_ROWS or (buffers > 1 and tile >= rows):
            continue
        shared = min(rounds - held, (device.shared - memory) // round_bytes)
        scratch = blocks * groups * (rounds - held - shared) * round_bytes
        from_memory = CACHE_BYTES if scratch <= CACHE_SHARE * device.cache else MEMORY_BYTES
        cycles = (
            rounded * sums * padded * columns * (itemsize // 4) / PRODUCTS[compute]
            + rows * padded * operand / CACHE_BYTES
            + rounded // at_once * shared * round_bytes / SHARED_BYTES
            + rounded // at_once * (rounds - held - shared) * round_bytes / from_memory
            + -(-rows * units // THREADS) * CELL * sums
            + -(-rows // tile) * TILE
            + (FLAGS + 2 * blocks if blocks > 1 else 0)
        )
        memory += shared * round_bytes
        yield Plan(units, rounds, held, shared, at_once, tile, padded, blocks, groups, memory, scratch, cycles)


def _cycles_step_by_step(
    device: Device, hidden: int, batch: int, sums: int, depth: int, itemsize: int, compute: str | None
) -> float:
    """Return the cycles of a step in launches of its own: the GPU's, or Python's if these are more."""
    weights = hidden * sums * depth
    from_memory = CACHE_BYTES if weights * itemsize <= CACHE_SHARE * device.cache else MEMORY_BYTES
    products = batch * weights * (itemsize // 4) / LIBRARY_PRODUCTS[compute]
    there = max(products, weights * itemsize / from_memory) / device.processors + STEP_KERNELS
    return max(STEP_FROM_PYTHON, there)


def _round_up(n: int, to: int) -> int:
    return -(-n // to) * to
