/* The formulas of the cells, forward and backward, of one unit of one row.

   Compiled with -DREAL=float|double and -DCELL=RNN_TANH|RNN_RELU|LSTM|GRU|GRU_BEFORE. `gate` holds the sums of inputs and
   biases before, and what the gates give after; `recurrent` the products with the state before. */
#pragma once

#define RNN_TANH 0
#define RNN_RELU 1
#define LSTM 2
#define GRU 3        /* resets after the product */
#define GRU_BEFORE 4 /* or before it */

#if CELL == LSTM
#define GATES 4
#elif CELL >= GRU
#define GATES 3
#else
#define GATES 1
#endif
/* Gradients of a unit: those of the gates, and the candidate's of a GRU that resets after twice, since the inputs and the
   state see different ones: [dr, dz, dq, dn], of which the state sees the first three. */
#define GRADIENTS (CELL == GRU ? 4 : GATES)
#define HAS_EXTRA (CELL >= LSTM) /* kept beside the gates: an LSTM's c; a GRU's q, or its r·h */

__device__ __forceinline__ REAL sigmoid(REAL x) { return (REAL)1 / ((REAL)1 + exp(-x)); }

/* The state of a unit: h, and an LSTM's c. */
struct Unit {
    REAL h, c;
};

/* One step forward. `extra`: what is kept beside the gates; `b_hn` only of a GRU. */
__device__ __forceinline__ Unit step_forward(REAL (&gate)[GATES], const REAL (&recurrent)[GATES], Unit before, REAL b_hn, REAL &extra) {
#if CELL == LSTM
    gate[0] = sigmoid(gate[0] + recurrent[0]);
    gate[1] = sigmoid(gate[1] + recurrent[1]);
    gate[2] = tanh(gate[2] + recurrent[2]);
    gate[3] = sigmoid(gate[3] + recurrent[3]);
    extra = gate[1] * before.c + gate[0] * gate[2];
    return {gate[3] * tanh(extra), extra};
#elif CELL == GRU
    gate[0] = sigmoid(gate[0] + recurrent[0]);
    gate[1] = sigmoid(gate[1] + recurrent[1]);
    extra = recurrent[2] + b_hn;
    gate[2] = tanh(gate[2] + gate[0] * extra);
    return {(1 - gate[1]) * gate[2] + gate[1] * before.h, 0};
#elif CELL == GRU_BEFORE /* the gates r and z are done already */
    gate[2] = tanh(gate[2] + recurrent[2]);
    return {(1 - gate[1]) * gate[2] + gate[1] * before.h, 0};
#elif CELL == RNN_TANH
    gate[0] = tanh(gate[0] + recurrent[0]);
    return {gate[0], 0};
#else
    const REAL sum = gate[0] + recurrent[0];
    gate[0] = sum > 0 || sum != sum ? sum : 0;
    return {gate[0], 0};
#endif
}

/* One step back. `dh` and `dc` are the gradients of the state after the step; given back are that of the c before it, and
   the part of that of the h before it that does not go through the products. */
__device__ __forceinline__ Unit step_backward(
    const REAL (&gate)[GATES], REAL extra, Unit before, REAL dh, REAL dc, REAL (&d)[GRADIENTS]
) {
#if CELL == LSTM
    const REAL t = tanh(extra);
    dc += dh * gate[3] * (1 - t * t);
    d[0] = dc * gate[2] * gate[0] * (1 - gate[0]);
    d[1] = dc * before.c * gate[1] * (1 - gate[1]);
    d[2] = dc * gate[0] * (1 - gate[2] * gate[2]);
    d[3] = dh * t * gate[3] * (1 - gate[3]);
    return {0, dc * gate[1]};
#elif CELL == GRU
    const REAL dn = dh * (1 - gate[1]) * (1 - gate[2] * gate[2]);
    d[0] = dn * extra * gate[0] * (1 - gate[0]);
    d[1] = dh * (before.h - gate[2]) * gate[1] * (1 - gate[1]);
    d[2] = dn * gate[0];
    d[3] = dn;
    return {dh * gate[1], 0};
#elif CELL == GRU_BEFORE /* d[0] waits for the gradient of r·h */
    d[0] = 0;
    d[1] = dh * (before.h - gate[2]) * gate[1] * (1 - gate[1]);
    d[2] = dh * (1 - gate[1]) * (1 - gate[2] * gate[2]);
    return {dh * gate[1], 0};
#elif CELL == RNN_TANH
    d[0] = dh * (1 - gate[0] * gate[0]);
    return {0, 0};
#else
    d[0] = gate[0] > 0 ? dh : 0;
    return {0, 0};
#endif
}

/* What a call is about, the same for every kernel of it. Rows are sorted, the longest first: sorted row m is row row(m) of the
   arrays, has length(m) steps, and its step t lies at first(m) + t of what is packed without padding. Where every row has all
   steps, `rows`, `lengths` and `firsts` are null. */
struct Sequence {
    const int *rows, *lengths;
    const long long *firsts;
    int B, T, H, reverse;

    __device__ __forceinline__ int row(int m) const { return rows ? rows[m] : m; }
    __device__ __forceinline__ int length(int m) const { return lengths ? lengths[m] : T; }
    __device__ __forceinline__ long long first(int m) const { return firsts ? firsts[m] : (long long)m * T; }
};

/* Where step s of sorted row m lies, in the order of processing. */
struct Place {
    int row, time;
    long long packed, before; /* this step and that before it; before is -1 at the first */
};
__device__ __forceinline__ Place place_of(const Sequence &q, int m, int s) {
    const int t = q.reverse ? q.length(m) - 1 - s : s;
    const long long at = q.first(m) + t;
    return {q.row(m), t, at, s ? at + (q.reverse ? 1 : -1) : -1};
}
__device__ __forceinline__ long long unpacked(const Sequence &q, const Place &p, int unit) {
    return ((long long)p.row * q.T + p.time) * q.H + unit;
}

/* The state before a step, as backward needs it: from what forward gave and kept. */
__device__ __forceinline__ Unit state_before(
    const Sequence &q, const Place &p, int unit, const REAL *y, const REAL *extra, const REAL *h0, const REAL *c0
) {
    Unit before = {0, 0};
#if CELL == LSTM
    if (p.before >= 0) before.c = extra[p.before * q.H + unit];
    else if (c0) before.c = c0[(long long)p.row * q.H + unit];
#elif CELL >= GRU
    if (p.before >= 0) before.h = y[unpacked(q, p, unit) + (q.reverse ? q.H : -q.H)];
    else if (h0) before.h = h0[(long long)p.row * q.H + unit];
#endif
    return before;
}
