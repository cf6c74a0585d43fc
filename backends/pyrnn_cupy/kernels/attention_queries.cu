#include "attention_row_scores.cuh"

/* The gradient of queries. */
extern "C" __global__ void __launch_bounds__(THREADS, 2) attention_queries(
    const Call c, const REAL *q, const REAL *k, const REAL *v, const REAL *dy, const REAL *bias, const unsigned char *mask,
    const long long *rows_info, const REAL *stats, const REAL *along, const REAL *given, const REAL *dgiven, REAL *dq
) {
    extern __shared__ int4 shared_memory[];
    __shared__ Queries queries;
    __shared__ Kept kept_rows[ROWS];
    __shared__ int spoilt;
    const int q_length = SCORE == GIVEN ? 0 : row_length(c.D);
    Element *q_own = (Element *)shared_memory, *dy_own = q_own + ROWS * q_length, *tile = dy_own + ROWS * row_length(c.Dv);
    REAL *weights = (REAL *)(tile + TILE);
    const Rows rows = rows_of_block(c, blockIdx.x);
    const Bounds bounds = bounds_of(c, rows_info, rows.b);
    const RowScores scores = {rows, bounds, queries, kept_rows, q_own, dy_own};
    const Back back = {{bias, mask, rows_info}, given, dgiven, (REAL)(c.scale * (double)LOG2E)};
    describe(queries, c, bounds, rows);
    describe_kept(kept_rows, c, rows, stats, along);
    if (threadIdx.x == 0) spoilt = 0;
    scores.stage(c, q_own, dy_own, q, dy);
    __syncthreads();
    Staged staged = {tile, &spoilt, 0, 0, 0, false};
    REAL sums[OUT][TM][EACH] = {};
    const Range seen = rows.seen(c, bounds);
    for (int key = seen.first / COLUMNS * COLUMNS; key < seen.last; key += COLUMNS) {
        REAL d[TM][TN] = {};
        scores.compute(c, back, k, v, key, staged, d);
        const Weighed pulls(d, weights);
#pragma unroll
        for (int o = OUT - 1; o >= 0; o--) { /* from the last chunk, which is there already */
            if ((c.first + o) * CHUNK >= c.D) continue;
            staged.bring(c, OF_K, scores.tile_of(c, k, c.k, key), c.first + o, c.D);
            pulls.multiply(sums[o], staged);
        }
    }
#pragma unroll
    for (int i = 0; i < TM; i++) {
        const int r = row_number(i);
        if (r >= rows.count(c)) continue;
        REAL *out = at3(dq, c.dq, rows.b, rows.head(c, r), rows.index(c, r));
#pragma unroll
        for (int o = 0; o < OUT; o++)
#pragma unroll
            for (int j = 0; j < EACH; j++) {
                const int column = (c.first + o) * CHUNK + output_column(j);
                if (column < c.D) out[column] = sums[o][i][j] * (REAL)c.scale;
            }
    }
}
