/* Weights and gradients of scores of a block whose rows are queries. */
#pragma once
#include "attention_back.cuh"
#include "attention_rows.cuh"

__device__ __forceinline__ void describe_kept(
    Kept *kept_rows, const Call &c, const Rows &rows, const REAL *stats, const REAL *along
) {
    for (int r = threadIdx.x; r < ROWS; r += THREADS)
        kept_rows[r] = r < rows.count(c) ? kept_of(stats, along, rows.number(c, r)) : Kept{0, 0, 0, 0};
}

/* The gradients of scores of a block's rows, as queries, and of the keys of a tile. */
struct RowScores {
    const Rows &rows;
    const Bounds &bounds;
    const Queries &queries;
    const Kept *kept_rows;
    const Element *q_own, *dy_own;

    __device__ __forceinline__ void compute(
        const Call &c, const Back &back, const REAL *k, const REAL *v, int key, Staged &staged, REAL (&d)[TM][TN]
    ) const {
        REAL s[TM][TN] = {};
        staged.array = 0;
        for (int f = 0; f < c.Dv; f += CHUNK) {
            staged.bring(c, OF_V, tile_of(c, v, c.v, key), f / CHUNK, c.Dv);
            multiply_rows(d, dy_own + f, row_length(c.Dv), staged.tile);
        }
        for (int f = 0; SCORE != GIVEN && f < c.D; f += CHUNK) {
            staged.bring(c, OF_K, tile_of(c, k, c.k, key), f / CHUNK, c.D);
            multiply_rows(s, q_own + f, row_length(c.D), staged.tile);
        }
#pragma unroll
        for (int i = 0; i < TM; i++) {
            const Query query = queries.at[row_number(i)];
            const Kept row = kept_rows[row_number(i)];
            unsigned four = 15;
#pragma unroll
            for (int j = 0; j < TN; j++) {
                const int at_key = key + column_number(j);
                if (!PLAIN && c.drop_below && j % RUN == 0)
                    four = kept_of_four(c, at_key / 4, bounds.start + query.i, query.head, rows.b);
                pull_score(c, back, rows.b, query, at_key, row, PLAIN ? (REAL)1 : kept(c, four, at_key), s[i][j], d[i][j]);
            }
        }
    }

    /* Where rows of keys or values from `key` lie. */
    struct At {
        const REAL *from;
        long long step;
        int count;
        __device__ __forceinline__ const REAL *operator()(int r) const { return r < count ? from + r * step : nullptr; }
    };
    __device__ __forceinline__ At tile_of(const Call &c, const REAL *array, const long long (&step)[3], int key) const {
        return {at3(array, step, rows.b, rows.shared, key), step[2], c.M - key};
    }

    __device__ __forceinline__ void stage(const Call &c, Element *q_to, Element *dy_to, const REAL *q, const REAL *dy) const {
        if (SCORE != GIVEN) stage_own(q_to, [&](int r) { return rows.at(c, q, c.q, r); }, c.D, c.aligned & OF_Q);
        if (dy) stage_own(dy_to, [&](int r) { return rows.at(c, dy, c.dy, r); }, c.Dv, c.aligned & OF_DY);
        else
            for (int i = threadIdx.x; i < ROWS * row_length(c.Dv); i += THREADS) dy_to[i] = 0;
    }
};
