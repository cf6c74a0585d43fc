/* A recurrent layer in one launch for the whole sequence, forward or backward.

   (a) A block has UNITS units, and keeps their recurrent weights in registers. Blocks of a row of the grid (gridDim.x of them)
       share a group of sequences: sorted rows group, group + gridDim.y, ... Groups need nothing of each other.
   (b) In a step a block reads the operands that all blocks of its group have written, makes its products and its units' cells, and
       writes the operands of the next step. Forward these are states, backward the gradients of the gates. They lie in one of
       two buffers: who writes to one has heard that all have read it.
   (c) A block tells that it has come to a step by a flag of its own, and waits for those of the others. So all blocks must
       run at once: a cooperative launch, no larger than the device.
   (d) What a thread's first cell reads from far away is fetched before the wait that it does not depend on.
   (e) Inputs times weights and biases are in `gates` already; gradients of x and of weights are products over the whole
       sequence, afterwards. */
#include "device.cuh"
#include "cells.cuh"
#include "operands.cuh"

/* A group's rows: local row r is sorted row r * gridDim.y + group. */
__device__ __forceinline__ int sorted_row(int r) { return r * (int)gridDim.y + (int)blockIdx.y; }
__device__ __forceinline__ int group_rows(int B) { return (B - (int)blockIdx.y + (int)gridDim.y - 1) / (int)gridDim.y; }

extern __shared__ int4 shared_memory[];

struct Gates {
    REAL of[GATES];
};
__device__ __forceinline__ Gates load_gates(const REAL *gates, long long packed, int H, int unit) {
    Gates g;
#pragma unroll
    for (int i = 0; i < GATES; i++) g.of[i] = gates[(packed * GATES + i) * H + unit];
    return g;
}

extern "C" __global__ void __launch_bounds__(THREADS, 1) forward_sequence(
    const int *rows, const int *lengths, const long long *firsts, int B, int T, int H, int reverse,
    const REAL *w_hh, const REAL *b_hn, const REAL *h0, const REAL *c0, REAL *gates, REAL *extra, int keep,
    REAL *y, REAL *h_n, REAL *c_n, Operand *exchange, unsigned *flags
) {
    const Sequence q = {rows, lengths, firsts, B, T, H, reverse};
    Operand *tile = (Operand *)shared_memory;
    REAL *parts = (REAL *)(tile + TILE * SHARED_ROW), *own = parts + WARPS * TILE * COLUMNS; /* [row][unit]: c, or h */
    const int first = blockIdx.x * UNITS, count = group_rows(B);
    const long long buffer = (long long)B * PADDED, row_step = (long long)gridDim.y * PADDED;
    exchange += (long long)blockIdx.y * PADDED;
    flags += blockIdx.y * gridDim.x;
    Product product;
    product.load({w_hh, (long long)H * H, H, 1, first, H});
    for (int p = threadIdx.x; p < count * UNITS; p += THREADS) {
        const int unit = first + p % UNITS;
        const REAL *from = CELL == LSTM ? c0 : h0;
        own[p] = from && unit < H ? from[(long long)rows[sorted_row(p / UNITS)] * H + unit] : (REAL)0;
    }
    int active = count;
    const int steps = count ? lengths[sorted_row(0)] : 0;
    for (int s = 0; s < steps; s++) {
        while (lengths[sorted_row(active - 1)] <= s) active--;
        Gates ahead = {};
        if (threadIdx.x < active * UNITS && first + threadIdx.x % UNITS < H)
            ahead = load_gates(gates, place_of(q, sorted_row(threadIdx.x / UNITS), s).packed, H, first + threadIdx.x % UNITS);
        if (s) wait(flags, s);
        const Operand *now = exchange + (s % 2) * buffer;
        Operand *next = exchange + (1 - s % 2) * buffer;
        for (int r0 = 0; r0 < active; r0 += TILE) {
            const int here = min(TILE, active - r0);
            if (s) stage(tile, now + r0 * row_step, row_step, here);
            else
                for (int i = threadIdx.x; i < here * PADDED; i += THREADS) {
                    const int k = i % PADDED;
                    const REAL h = h0 && k < H ? h0[(long long)rows[sorted_row(r0 + i / PADDED)] * H + k] : (REAL)0;
                    tile[i / PADDED * SHARED_ROW + k] = to_operand(h);
                }
            __syncthreads();
            product.run(tile, here, parts);
            __syncthreads();
            for (int p = threadIdx.x; p < here * UNITS; p += THREADS) {
                const int r = p / UNITS, unit = first + p % UNITS, m = sorted_row(r0 + r);
                if (unit >= H) continue;
                const Place place = place_of(q, m, s);
                Gates gate = r0 == 0 && p < THREADS ? ahead : load_gates(gates, place.packed, H, unit);
                REAL recurrent[GATES], more = 0;
#pragma unroll
                for (int g = 0; g < GATES; g++) recurrent[g] = total(parts, r, g, p % UNITS);
                REAL &mine = own[(r0 + r) * UNITS + p % UNITS];
                const Unit after = step_forward(gate.of, recurrent, {mine, mine}, b_hn ? b_hn[unit] : (REAL)0, more);
                mine = CELL == LSTM ? after.c : after.h;
                if (keep) {
#pragma unroll
                    for (int g = 0; g < GATES; g++) gates[(place.packed * GATES + g) * H + unit] = gate.of[g];
                    if (HAS_EXTRA) extra[place.packed * H + unit] = more;
                }
                y[unpacked(q, place, unit)] = after.h;
                next[(r0 + r) * row_step + unit] = to_operand(after.h);
                if (s == lengths[m] - 1) {
                    h_n[(long long)place.row * H + unit] = after.h;
                    if (CELL == LSTM) c_n[(long long)place.row * H + unit] = after.c;
                }
            }
        }
        tell(flags, s + 1);
    }
}

/* What the cell of a step reads of it, going back. */
struct Kept {
    Gates gate;
    Unit before;
    REAL extra, dy;
};
__device__ __forceinline__ Kept load_kept(
    const Sequence &q, const Place &place, int unit, const REAL *gates, const REAL *extra, const REAL *y, const REAL *h0,
    const REAL *c0, const REAL *dy
) {
    return {
        load_gates(gates, place.packed, q.H, unit), state_before(q, place, unit, y, extra, h0, c0),
        HAS_EXTRA ? extra[place.packed * q.H + unit] : (REAL)0, dy ? dy[unpacked(q, place, unit)] : (REAL)0};
}

extern "C" __global__ void __launch_bounds__(THREADS, 1) backward_sequence(
    const int *rows, const int *lengths, const long long *firsts, int B, int T, int H, int reverse,
    const REAL *w_hh, const REAL *h0, const REAL *c0, const REAL *gates, const REAL *extra, const REAL *y,
    const REAL *dy, const REAL *dh_n, const REAL *dc_n, REAL *d_gates, REAL *dh0, REAL *dc0, Operand *exchange, unsigned *flags
) {
    const Sequence q = {rows, lengths, firsts, B, T, H, reverse};
    const int first = blockIdx.x * UNITS, count = group_rows(B);
    Operand *tile = (Operand *)shared_memory;
    REAL *parts = (REAL *)(tile + TILE * SHARED_ROW), *dh = parts + WARPS * TILE * COLUMNS, *dc = dh + count * UNITS;
    const long long buffer = (long long)B * PADDED, row_step = (long long)gridDim.y * PADDED;
    exchange += (long long)blockIdx.y * PADDED;
    flags += blockIdx.y * gridDim.x;
    Product product;
    product.load({w_hh, 0, 1, H, first, H});
    for (int p = threadIdx.x; p < count * UNITS; p += THREADS) {
        const int unit = first + p % UNITS;
        const long long at = (long long)rows[sorted_row(p / UNITS)] * H + unit;
        dh[p] = dh_n && unit < H ? dh_n[at] : (REAL)0;
        if (CELL == LSTM) dc[p] = dc_n && unit < H ? dc_n[at] : (REAL)0;
    }
    __syncthreads();
    int active = 0;
    const int steps = count ? lengths[sorted_row(0)] : 0;
    Kept ahead = {};
    for (int s = steps - 1; s >= 0; s--) {
        const int before = active;
        while (active < count && lengths[sorted_row(active)] > s) active++;
        Operand *now = exchange + (s % 2) * buffer;
        for (int p = threadIdx.x; p < active * UNITS; p += THREADS) {
            const int r = p / UNITS, unit = first + p % UNITS;
            if (unit >= H) continue;
            const Place place = place_of(q, sorted_row(r), s);
            const Kept kept = p < THREADS && r < before ? ahead : load_kept(q, place, unit, gates, extra, y, h0, c0, dy);
            REAL d[GRADIENTS];
            const Unit back =
                step_backward(kept.gate.of, kept.extra, kept.before, dh[p] + kept.dy, CELL == LSTM ? dc[p] : (REAL)0, d);
            dh[p] = back.h;
            if (CELL == LSTM) dc[p] = back.c;
#pragma unroll
            for (int g = 0; g < GRADIENTS; g++) d_gates[(place.packed * GRADIENTS + g) * H + unit] = d[g];
#pragma unroll
            for (int g = 0; g < GATES; g++) now[r * row_step + g * H + unit] = to_operand(d[g]);
        }
        tell(flags, steps - s);
        if (s && threadIdx.x < active * UNITS && first + threadIdx.x % UNITS < H)
            ahead = load_kept(
                q, place_of(q, sorted_row(threadIdx.x / UNITS), s - 1), first + threadIdx.x % UNITS, gates, extra, y, h0, c0, dy);
        wait(flags, steps - s);
        for (int r0 = 0; r0 < active; r0 += TILE) {
            const int here = min(TILE, active - r0);
            stage(tile, now + r0 * row_step, row_step, here);
            __syncthreads();
            product.run(tile, here, parts);
            __syncthreads();
            for (int p = threadIdx.x; p < here * UNITS; p += THREADS) dh[r0 * UNITS + p] += total(parts, p / UNITS, 0, p % UNITS);
        }
        __syncthreads();
    }
    for (int p = threadIdx.x; p < count * UNITS; p += THREADS) {
        const int unit = first + p % UNITS;
        if (unit >= H) continue;
        const long long at = (long long)rows[sorted_row(p / UNITS)] * H + unit;
        if (dh0) dh0[at] = dh[p];
        if (CELL == LSTM && dc0) dc0[at] = dc[p];
    }
}
