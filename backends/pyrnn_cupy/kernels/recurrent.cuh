/* A recurrent layer in one launch for the whole sequence: what `recurrent_forward.cu` and `recurrent_backward.cu` share.

   (a) A block has UNITS units, and keeps their recurrent weights. Blocks of a row of the grid (gridDim.x of them) share a group of
       sequences: sorted rows group, group + gridDim.y, ... Groups need nothing of each other.
   (b) In a step a block reads the operands that all blocks of its group have written, makes its products and its units' cells, and
       writes the operands of the next step. Forward these are states, backward the gradients of the gates. They lie in one of
       two buffers: who writes to one has heard that all have read it.
   (c) A block tells that it has come to a step by a flag of its own, and waits for those of the others. So all blocks must
       run at once: a cooperative launch, no larger than the device.
   (d) What a thread's first cell reads from far away is fetched before the wait that it does not depend on.
   (e) Inputs times weights are in `gates` already; gradients of x and of weights are products over the whole sequence,
       afterwards. */
#pragma once

#include "cells.cuh"
#include "flags.cuh"
#include "operands.cuh"

/* A group's rows: local row r is sorted row r * gridDim.y + group. */
__device__ __forceinline__ int sorted_row(int r) { return r * (int)gridDim.y + (int)blockIdx.y; }
__device__ __forceinline__ int group_rows(int B) { return (B - (int)blockIdx.y + (int)gridDim.y - 1) / (int)gridDim.y; }

/* Shared memory: weights; tiles of operands, one of which is fetched while another is multiplied where there is more than one in a
   step; the parts of their products; and what a block keeps of its cells. */
struct Shared {
    Rounds::Piece *weights;
    Operand *tiles;
    REAL *parts, *own;
    int tile_rows;

    __device__ __forceinline__ Shared(int4 *memory, int rounds, int rows, int tile_rows)
        : weights((Rounds::Piece *)memory), tiles((Operand *)(weights + rounds * ROUND_PIECES)),
          parts((REAL *)(tiles + (PARTS > 1 || rows > tile_rows ? 2 : 1) * tile_rows * SHARED_ROW)),
          own(parts + tile_rows * WARPS * COLUMNS), tile_rows(tile_rows) {}

    /* Multiply so many rows, tile by tile: fetch(tile, first, count, part) begins to bring in a part of rows, finish(first, count)
       has what their products are made of. A tile that comes in parts has AT_ONCE rows. */
    template <typename Fetch, typename Finish>
    __device__ __forceinline__ void multiply(const Product &product, int rows, Fetch fetch, Finish finish) const {
        Operand *tile = tiles, *other = tiles + tile_rows * SHARED_ROW;
        fetch(tile, 0, min(tile_rows, rows), 0);
        copies_begun();
        for (int first = 0; first < rows; first += tile_rows) {
            const int next = first + tile_rows, count = min(tile_rows, rows - first);
            Sums sums = {};
#pragma unroll
            for (int part = 0; part < PARTS; part++) {
                if (part + 1 < PARTS) fetch(other, first, count, part + 1);
                else if (next < rows) fetch(other, next, min(tile_rows, rows - next), 0);
                copies_begun();
                await_copies(1);
                __syncthreads();
                if (PARTS > 1) product.add(sums, part, tile, 0);
                else
                    for (int r0 = 0; r0 < count; r0 += AT_ONCE) {
                        sums = {};
                        product.add(sums, 0, tile, r0);
                        sums.write(parts, r0);
                    }
                if (part + 1 < PARTS) __syncthreads();
                Operand *const done = tile;
                tile = other;
                other = done;
            }
            if (PARTS > 1) sums.write(parts, 0);
            __syncthreads();
            finish(first, count);
        }
    }
};

struct Gates {
    REAL of[GATES];
};
__device__ __forceinline__ Gates load_gates(const REAL *gates, long long packed, int H, int unit) {
    Gates g;
#pragma unroll
    for (int i = 0; i < GATES; i++) g.of[i] = gates[(packed * GATES + i) * H + unit];
    return g;
}
