/* A recurrent layer step by step, where its weights are too many for `recurrent.cu`: the products are left to a matrix library,
   and these kernels do the cells. A GRU that resets before the product takes two phases a step.

   `active` rows have step s; what goes from step to step, `h`, `c` and products, is in sorted order. */
#include "cells.cuh"

/* recurrent: the products of the step, [active][GATES][H]. operand: of GRU_BEFORE, r·h. */
extern "C" __global__ void forward_step(
    const int *rows, const int *lengths, const long long *firsts, int B, int T, int H, int reverse, int active, int s, int phase,
    const REAL *recurrent, const REAL *b, const REAL *b_hn, REAL *h, REAL *c, REAL *operand, REAL *gates, REAL *extra, REAL *y, REAL *h_n, REAL *c_n
) {
    const Sequence q = {rows, lengths, firsts, B, T, H, reverse};
    const long long at = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (at >= (long long)active * H) return;
    const int m = (int)(at / H), unit = (int)(at % H);
    const Place place = place_of(q, m, s);
    REAL gate[GATES], product[GATES], more = 0;
#pragma unroll
    for (int g = 0; g < GATES; g++) {
        gate[g] = gates[(place.packed * GATES + g) * H + unit];
        if (b && (CELL != GRU_BEFORE || g == 2 || phase == 0)) gate[g] += b[(long long)g * H + unit];
        product[g] = recurrent[((long long)m * GATES + g) * H + unit];
    }
#if CELL == GRU_BEFORE
    if (phase == 0) {
#pragma unroll
        for (int g = 0; g < 2; g++) gates[(place.packed * GATES + g) * H + unit] = sigmoid(gate[g] + product[g]);
        operand[at] = sigmoid(gate[0] + product[0]) * h[at];
        if (extra) extra[place.packed * H + unit] = operand[at];
        return;
    }
#endif
    const Unit after = step_forward(gate, product, {h[at], CELL == LSTM ? c[at] : (REAL)0}, b_hn ? b_hn[unit] : (REAL)0, more);
    h[at] = after.h;
    if (CELL == LSTM) c[at] = after.c;
#pragma unroll
    for (int g = 0; g < GATES; g++) gates[(place.packed * GATES + g) * H + unit] = gate[g];
    if (extra && CELL != GRU_BEFORE) extra[place.packed * H + unit] = more;
    y[unpacked(q, place, unit)] = after.h;
    if (s == q.length(m) - 1) {
        h_n[(long long)place.row * H + unit] = after.h;
        if (CELL == LSTM) c_n[(long long)place.row * H + unit] = after.c;
    }
}

/* d_recurrent: what the products take, [active][GATES][H]. d_operand: of GRU_BEFORE, the gradient of r·h. */
extern "C" __global__ void backward_step(
    const int *rows, const int *lengths, const long long *firsts, int B, int T, int H, int reverse, int active, int s, int phase,
    const REAL *h0, const REAL *c0, const REAL *gates, const REAL *extra, const REAL *y, const REAL *dy, const REAL *d_operand,
    REAL *dh, REAL *dc, REAL *d_recurrent, REAL *d_gates
) {
    const Sequence q = {rows, lengths, firsts, B, T, H, reverse};
    const long long at = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (at >= (long long)active * H) return;
    const int m = (int)(at / H), unit = (int)(at % H);
    const Place place = place_of(q, m, s);
    const Unit before = state_before(q, place, unit, y, extra, h0, c0);
    REAL gate[GATES], d[GRADIENTS];
#pragma unroll
    for (int g = 0; g < GATES; g++) gate[g] = gates[(place.packed * GATES + g) * H + unit];
#if CELL == GRU_BEFORE
    if (phase == 1) {
        const REAL dr = d_operand[at] * before.h * gate[0] * (1 - gate[0]);
        d_gates[place.packed * GRADIENTS * H + unit] = d_recurrent[(long long)m * GATES * H + unit] = dr;
        dh[at] += d_operand[at] * gate[0];
        return;
    }
#endif
    const REAL given = dy ? dy[unpacked(q, place, unit)] : (REAL)0;
    const Unit back = step_backward(
        gate, HAS_EXTRA ? extra[place.packed * H + unit] : (REAL)0, before, dh[at] + given, CELL == LSTM ? dc[at] : (REAL)0, d);
    dh[at] = back.h;
    if (CELL == LSTM) dc[at] = back.c;
#pragma unroll
    for (int g = 0; g < GRADIENTS; g++) d_gates[(place.packed * GRADIENTS + g) * H + unit] = d[g];
#pragma unroll
    for (int g = 0; g < GATES; g++) d_recurrent[((long long)m * GATES + g) * H + unit] = d[g];
}

/* The h before each packed step, of which the gradient of the recurrent weights is made. */
extern "C" __global__ void states_before(
    const int *rows, const int *lengths, const long long *firsts, int B, int T, int H, int reverse, const REAL *y, const REAL *h0,
    REAL *before
) {
    const Sequence q = {rows, lengths, firsts, B, T, H, reverse};
    const long long stride = (long long)gridDim.x * blockDim.x;
    for (long long at = (long long)blockIdx.x * blockDim.x + threadIdx.x; at < (long long)B * T * H; at += stride) {
        const int unit = (int)(at % H), s = (int)(at / H % T), m = (int)(at / H / T);
        if (s >= q.length(m)) continue;
        const Place place = place_of(q, m, s);
        REAL value = 0;
        if (place.before >= 0) value = y[unpacked(q, place, unit) + (reverse ? H : -H)];
        else if (h0) value = h0[(long long)place.row * H + unit];
        before[place.packed * H + unit] = value;
    }
}
