/* A recurrent layer forward: see recurrent.cuh. */
#include "recurrent.cuh"

extern "C" __global__ void __launch_bounds__(THREADS, 1) forward_sequence(
    const int *rows, const int *lengths, const long long *firsts, int B, int T, int H, int reverse, int tile_rows, int in_shared,
    const REAL *w_hh, const REAL *b, const REAL *b_hn, const REAL *h0, const REAL *c0, REAL *gates, REAL *extra, int keep,
    REAL *y, REAL *h_n, REAL *c_n, Rounds::Piece *weights, Operand *exchange, unsigned *flags
) {
    extern __shared__ int4 shared_memory[];
    const Sequence q = {rows, lengths, firsts, B, T, H, reverse};
    const int first = blockIdx.x * UNITS, unit = first + threadIdx.x % UNITS, count = group_rows(B);
    const bool mine = unit < H; /* a thread's cells are all of one unit */
    const Shared shared(shared_memory, in_shared, count, tile_rows);
    REAL *own = shared.own; /* [row][unit]: c, or h */
    const long long buffer = (long long)B * PADDED, row_step = (long long)gridDim.y * PADDED;
    exchange += (long long)blockIdx.y * PADDED;
    flags += blockIdx.y * gridDim.x;
    Product product(shared.weights, in_shared, weights);
    product.load({w_hh, (long long)H * H, H, 1, first, H, H});
    Gates bias = {};
    if (b && mine) bias = load_gates(b, 0, H, unit);
    const REAL candidate_bias = b_hn && mine ? b_hn[unit] : (REAL)0;
    const REAL *from = CELL == LSTM ? c0 : h0;
    for (int p = threadIdx.x; p < count * UNITS; p += THREADS)
        own[p] = from && mine ? from[(long long)q.row(sorted_row(p / UNITS)) * H + unit] : (REAL)0;
    int active = count;
    const int steps = count ? q.length(sorted_row(0)) : 0;
    for (int s = 0; s < steps; s++) {
        while (q.length(sorted_row(active - 1)) <= s) active--;
        Gates ahead = {};
        if (threadIdx.x < active * UNITS && mine)
            ahead = load_gates(gates, place_of(q, sorted_row(threadIdx.x / UNITS), s).packed, H, unit);
        if (s) wait(flags, s);
        const Operand *now = exchange + (s % 2) * buffer;
        Operand *next = exchange + (1 - s % 2) * buffer;
        const auto fetch = [&](Operand *tile, int r0, int here, int part) {
            if (s) stage(tile, now + r0 * row_step, row_step, here, part);
            else
                for (int i = threadIdx.x; i < here * PART * WIDTH; i += THREADS) {
                    const int row = i / (PART * WIDTH), at = i % (PART * WIDTH), k = part * PART * WIDTH + at;
                    const REAL h = h0 && k < H ? h0[(long long)q.row(sorted_row(r0 + row)) * H + k] : (REAL)0;
                    tile[row * SHARED_ROW + at] = to_operand(h);
                }
        };
        shared.multiply(product, active, fetch, [&](int r0, int here) {
            for (int p = threadIdx.x; p < here * UNITS && mine; p += THREADS) {
                const int r = p / UNITS, m = sorted_row(r0 + r);
                const Place place = place_of(q, m, s);
                Gates gate = r0 == 0 && p < THREADS ? ahead : load_gates(gates, place.packed, H, unit);
                REAL recurrent[GATES], more = 0;
#pragma unroll
                for (int g = 0; g < GATES; g++) {
                    gate.of[g] += bias.of[g];
                    recurrent[g] = total(shared.parts, r, g, p % UNITS);
                }
                REAL &state = own[r0 * UNITS + p];
                const Unit after = step_forward(gate.of, recurrent, {state, state}, candidate_bias, more);
                state = CELL == LSTM ? after.c : after.h;
                if (keep) {
#pragma unroll
                    for (int g = 0; g < GATES; g++) gates[(place.packed * GATES + g) * H + unit] = gate.of[g];
                    if (HAS_EXTRA) extra[place.packed * H + unit] = more;
                }
                y[unpacked(q, place, unit)] = after.h;
                next[(r0 + r) * row_step + unit] = to_operand(after.h);
                if (s == q.length(m) - 1) {
                    h_n[(long long)place.row * H + unit] = after.h;
                    if (CELL == LSTM) c_n[(long long)place.row * H + unit] = after.c;
                }
            }
        });
        tell(flags, s + 1);
    }
}
