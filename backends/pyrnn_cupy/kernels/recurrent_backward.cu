/* A recurrent layer backward: see recurrent.cuh. */
#include "recurrent.cuh"

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
    const int *rows, const int *lengths, const long long *firsts, int B, int T, int H, int reverse, int tile_rows, int in_shared,
    const REAL *w_hh, const REAL *h0, const REAL *c0, const REAL *gates, const REAL *extra, const REAL *y,
    const REAL *dy, const REAL *dh_n, const REAL *dc_n, REAL *d_gates, REAL *dh0, REAL *dc0,
    Rounds::Piece *weights, Operand *exchange, unsigned *flags
) {
    extern __shared__ int4 shared_memory[];
    const Sequence q = {rows, lengths, firsts, B, T, H, reverse};
    const int first = blockIdx.x * UNITS, unit = first + threadIdx.x % UNITS, count = group_rows(B);
    const bool mine = unit < H; /* a thread's cells are all of one unit */
    const Shared shared(shared_memory, in_shared, count, tile_rows);
    REAL *dh = shared.own, *dc = dh + count * UNITS; /* [row][unit] */
    const long long buffer = (long long)B * PADDED, row_step = (long long)gridDim.y * PADDED;
    exchange += (long long)blockIdx.y * PADDED;
    flags += blockIdx.y * gridDim.x;
    Product product(shared.weights, in_shared, weights);
    product.load({w_hh, 0, 1, H, first, H, GATES * H});
    for (int p = threadIdx.x; p < count * UNITS; p += THREADS) {
        const long long at = (long long)q.row(sorted_row(p / UNITS)) * H + unit;
        dh[p] = dh_n && mine ? dh_n[at] : (REAL)0;
        if (CELL == LSTM) dc[p] = dc_n && mine ? dc_n[at] : (REAL)0;
    }
    __syncthreads();
    int active = 0;
    const int steps = count ? q.length(sorted_row(0)) : 0;
    Kept ahead = {};
    for (int s = steps - 1; s >= 0; s--) {
        const int before = active;
        while (active < count && q.length(sorted_row(active)) > s) active++;
        Operand *now = exchange + (s % 2) * buffer;
        for (int p = threadIdx.x; p < active * UNITS && mine; p += THREADS) {
            const int r = p / UNITS;
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
        if (s && threadIdx.x < active * UNITS && mine)
            ahead = load_kept(q, place_of(q, sorted_row(threadIdx.x / UNITS), s - 1), unit, gates, extra, y, h0, c0, dy);
        wait(flags, steps - s);
        const auto fetch = [&](Operand *tile, int r0, int here, int part) {
            stage(tile, now + r0 * row_step, row_step, here, part);
        };
        shared.multiply(product, active, fetch, [&](int r0, int here) {
            for (int p = threadIdx.x; p < here * UNITS; p += THREADS)
                dh[r0 * UNITS + p] += total(shared.parts, p / UNITS, 0, p % UNITS);
        });
        __syncthreads();
    }
    for (int p = threadIdx.x; p < count * UNITS && mine; p += THREADS) {
        const long long at = (long long)q.row(sorted_row(p / UNITS)) * H + unit;
        if (dh0) dh0[at] = dh[p];
        if (CELL == LSTM && dc0) dc0[at] = dc[p];
    }
}
