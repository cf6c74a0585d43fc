/* A call of attention: how its arrays lie, who sees what, and what is dropped. Compiled with -DREAL=float|double. */
#pragma once

#include "philox.cuh"

#define THREADS 128
#define LOG2E ((REAL)1.4426950408889634)
#define NOT_SEEN (-(REAL)__int_as_float(0x7f800000)) /* as a score: -inf */

#define OF_Q 1
#define OF_K 2
#define OF_V 4
#define OF_DY 8

/* A call, and how its arrays lie: elements from a batch, head and row to the next. Features lie side by side. */
struct Call {
    int B, heads, group, N, M, D, Dv;      /* heads of keys; of queries for each of them */
    int splits;                            /* of keys, dealt out to blocks */
    int aligned;                           /* the arrays whose rows can be read 16 bytes at a time: OF_Q, ... */
    int first;                             /* chunk of the output that is computed */
    int bias_shape[4];                     /* of the gradient of the bias */
    long long q_start, left, right;        /* position of the first query; how far before and after itself one sees */
    long long q[3], k[3], v[3], y[3], dy[3], dq[3], dk[3], dv[3], bias[4], mask[4];
    unsigned long long seed, drop_below;
    double scale, keep;                    /* of scores; of weights that are not dropped */
};

/* What steers the scores beside q and k, each perhaps null; `rows` has q_start, lengths and q_lengths, (B,) each. */
struct Steering {
    const REAL *bias;
    const unsigned char *mask;
    const long long *rows;
};

template <typename T> __device__ __forceinline__ T *at3(T *array, const long long (&step)[3], int b, int head, int row) {
    return array + b * step[0] + head * step[1] + row * step[2];
}

/* --- who sees what ----------------------------------------------------------------------------------------------- */

/* A row of the batch: where its queries begin, how many keys and queries count. */
struct Bounds {
    long long start;
    int keys, queries;
};
__device__ __forceinline__ Bounds bounds_of(const Call &c, const long long *rows, int b) {
    if (!rows) return {c.q_start, c.M, c.N};
    return {rows[b], (int)rows[c.B + b], (int)rows[2 * c.B + b]};
}

/* Keys or queries from first to last. */
struct Range {
    int first, last;
};
__device__ __forceinline__ Range range(long long first, long long last) {
    return first < last ? Range{(int)first, (int)last} : Range{0, 0};
}

/* The keys that some query of [i0, i1] sees as far as its position and the lengths say. */
__device__ __forceinline__ Range keys_seen(const Call &c, const Bounds &s, int i0, int i1) {
    i1 = min(i1, s.queries - 1);
    if (i0 > i1) return {0, 0};
    return range(max(0LL, s.start + i0 - c.left), min((long long)s.keys, s.start + i1 + c.right + 1));
}

/* The queries that see some key of [j0, j1]. */
__device__ __forceinline__ Range queries_seeing(const Call &c, const Bounds &s, int j0, int j1) {
    j1 = min(j1, s.keys - 1);
    if (j0 > j1) return {0, 0};
    return range(max(0LL, j0 - c.right - s.start), min((long long)s.queries, j1 + c.left + 1 - s.start));
}

/* --- dropout ----------------------------------------------------------------------------------------------------- */

/* Bits 0 to 3: whether the weights of four keys, from 4 * quad, are kept. */
__device__ __forceinline__ unsigned kept_of_four(const Call &c, int quad, long long at, int head, int b) {
    unsigned word[4] = {(unsigned)quad, (unsigned)at, (unsigned)head, (unsigned)b};
    philox(word, (unsigned)c.seed, (unsigned)(c.seed >> 32));
    unsigned kept = 0;
#pragma unroll
    for (int i = 0; i < 4; i++) kept |= (unsigned)(word[i] >= c.drop_below) << i;
    return kept;
}
