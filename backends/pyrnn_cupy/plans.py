"""How a recurrent layer is laid over the device: the units and rows of a block, by registers, memory and time."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

from .devices import Device

THREADS = 256
WARPS = THREADS // 32
# Of a thread's 255 registers those for weights: with more some kernel spills. Fewer before a compute capability of 90,
# beside the sums and operands of matrix units, and where weights come from memory as well, with 100 and more still; or
# to many rows.
REGISTERS, OLDER_REGISTERS, MATRIX_REGISTERS = 128, 104, 112
WITH_MEMORY, NEWER_WITH_MEMORY, WITH_MANY_ROWS = 16, 32, 16
FETCHED = 32  # of weights on their way, as in operands.cuh
FEW_ROWS, MANY_ROWS = 4, 16  # that a thread takes at once; a matrix unit always many
STEP = {"tf32": 8, "bfloat16": 16}  # of a matrix unit, in depth
MOST_ROWS = 32  # of a tile
PARTS = (2, 4, 8)  # in which rows come to shared memory, if not whole
# Costs in cycles of one multiprocessor. They are estimates from NVIDIA's figures for Hopper; none was measured.
FLAGS = 1500  # to tell and to hear that a step is done, between blocks
TILE = 200  # to begin and to end one
SHARED_BYTES, CACHE_BYTES, MEMORY_BYTES = 128, 64, 20  # that it gets in a cycle, from where all read at once
CACHE_SHARE = 0.7  # of the second-level cache, that weights may have
CELL = 60  # for each round of cells
PRODUCTS = {None: 128, "tf32": 256, "bfloat16": 512}  # multiply-adds in a cycle
LIBRARY_PRODUCTS = {None: 100, "tf32": 500, "bfloat16": 900}  # of cuBLAS
STEP_FROM_PYTHON, STEP_KERNELS = 40_000, 6_000  # to launch a step, and between the ends of its kernels


class Work(NamedTuple):
    """What a step of a layer is made of.

    Attributes
    ----------
    hidden, batch
        Units of the layer, rows.
    sums, depth
        Of how many terms products are, and how many a unit has. Forward: the gates, of hidden; backward: 1, of gates
        times hidden.
    itemsize
        Bytes of an element.
    compute
        The precision of products.
    states
        Values that a block keeps for each of its cells.
    """

    hidden: int
    batch: int
    sums: int
    depth: int
    itemsize: int
    compute: str | None
    states: int


class Plan(NamedTuple):
    """A launch of ``blocks`` by ``groups`` blocks: what kernels are compiled with, and what is allocated for them.

    Attributes
    ----------
    units
        Of a block.
    rounds, held, in_shared
        In how many rounds a block multiplies by its weights; of how many the weights are in registers, and of how many
        more in shared memory. Those of the others are read in each step.
    at_once
        The rows that a thread multiplies at a time.
    tile, part
        The rows whose operands are in shared memory at a time, and for how many rounds.
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
    in_shared: int
    at_once: int
    tile: int
    part: int
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
            "PART": self.part,
            "AT_ONCE": self.at_once,
            "THREADS": THREADS,
        }


@lru_cache(maxsize=512)
def plan(device: Device, work: Work) -> Plan | None:
    """Return the plan that is estimated to be fastest, or None if a launch for each step is faster."""
    found = [
        candidate
        for units in (1, 2, 4, 8, 16, 32)
        if -(-work.hidden // units) <= device.processors and (units == 1 or units < 2 * work.hidden)
        for at_once in ((FEW_ROWS, MANY_ROWS) if work.compute is None else (MANY_ROWS,))
        for candidate in _candidates(device, work, units, at_once)
    ]
    best = min(found, key=lambda candidate: candidate.cycles, default=None)
    return None if best is None or _cycles_step_by_step(device, work) < best.cycles else best


def _candidates(device: Device, work: Work, units: int, at_once: int) -> Iterator[Plan]:
    """Give the plans with so many units of a block: one for each tile that finds room."""
    hidden, batch, sums, depth, itemsize, compute, states = work
    registers = REGISTERS if device.capability >= 90 else OLDER_REGISTERS
    if compute is None:
        slices, operand = THREADS // units, itemsize
        width, of_a_round, gap = 4 * slices, sums * itemsize, 0
        if at_once == MANY_ROWS:
            registers -= sums * itemsize // 4 * (MANY_ROWS - FEW_ROWS) + WITH_MANY_ROWS
        columns = units
    else:
        operand = 2 if compute == "bfloat16" else 4
        width, of_a_round, gap = STEP[compute] * WARPS, 2 * -(-sums * units // 8), 16
        registers = min(registers, MATRIX_REGISTERS)
        columns = max(units, 8 // sums)
    rounds = -(-depth // width)
    padded = rounds * width
    held = rounds
    if rounds * of_a_round > registers:
        with_memory = NEWER_WITH_MEMORY if device.capability >= 100 else WITH_MEMORY
        held = (registers - _round_up(FETCHED, of_a_round) - with_memory) // of_a_round
    if held < 1 or (compute is None and at_once == MANY_ROWS and held == rounds):
        return
    round_bytes = 4 * of_a_round * THREADS
    blocks = -(-hidden // units)
    groups = max(1, min(-(-batch // at_once), device.processors // blocks))
    rows = -(-batch // groups)
    rounded = _round_up(rows, at_once)
    whole = {(rounded, rounds), (MANY_ROWS, rounds), (at_once, rounds)}
    for tile, part in whole | {(at_once, -(-rounds // parts)) for parts in PARTS}:
        parts = -(-rounds // part)
        buffers = 2 if parts > 1 or tile < rows else 1
        row = part * width * operand + gap
        memory = rows * units * states * itemsize + tile * (buffers * row + WARPS * sums * units * itemsize)
        if memory > device.shared or tile > min(MOST_ROWS, rounded):
            continue
        in_shared = min(rounds - held, (device.shared - memory) // round_bytes)
        scratch = blocks * groups * (rounds - held - in_shared) * round_bytes
        from_memory = CACHE_BYTES if scratch <= CACHE_SHARE * device.cache else MEMORY_BYTES
        cycles = (
            rounded * sums * padded * columns * (itemsize // 4) / PRODUCTS[compute]
            + rows * padded * operand / CACHE_BYTES
            + rounded // at_once * in_shared * round_bytes / SHARED_BYTES
            + rounded // at_once * (rounds - held - in_shared) * round_bytes / from_memory
            + -(-rows * units // THREADS) * CELL * sums
            + -(-rows // tile) * parts * TILE
            + (FLAGS + 2 * blocks if blocks > 1 else 0)
        )
        memory += in_shared * round_bytes
        yield Plan(units, rounds, held, in_shared, at_once, tile, part, padded, blocks, groups, memory, scratch, cycles)


def _cycles_step_by_step(device: Device, work: Work) -> float:
    """Return the cycles of a step in launches of its own: the GPU's, or Python's if these are more."""
    weights = work.hidden * work.sums * work.depth
    size = weights * work.itemsize
    from_memory = size / (CACHE_BYTES if size <= CACHE_SHARE * device.cache else MEMORY_BYTES)
    products = work.batch * weights * (work.itemsize // 4) / LIBRARY_PRODUCTS[work.compute]
    return max(STEP_FROM_PYTHON, max(products, from_memory) / device.processors + STEP_KERNELS)


def _round_up(n: int, to: int) -> int:
    return -(-n // to) * to
