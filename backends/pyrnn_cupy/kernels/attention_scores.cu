#include "attention_row_scores.cuh"

/* The gradient of scores, (B, heads, N, M), summed over the dimensions in which c.bias_shape is 1: rows and keys within a tile
   only, so the output has a row, or a column, for each tile where those are to be summed. A block has a tile of it. With one
   head what is not seen is given as -0. */
extern "C" __global__ void __launch_bounds__(THREADS, 2) attention_scores(
    const Call c, const REAL *q, const REAL *k, const REAL *v, const REAL *dy, const REAL *bias, const unsigned char *mask,
    const long long *rows_info, const REAL *stats, const REAL *along, const REAL *given, const REAL *dgiven, REAL *out
) {
    extern __shared__ int4 shared_memory[];
    __shared__ Queries queries;
    __shared__ Kept kept_rows[ROWS];
    __shared__ int spoilt;
    const int q_length = SCORE == GIVEN ? 0 : row_length(c.D), heads = c.heads * c.group;
    Element *q_own = (Element *)shared_memory, *dy_own = q_own + ROWS * q_length, *tile = dy_own + ROWS * row_length(c.Dv);
    REAL *weights = (REAL *)(tile + TILE);
    const Back back = {{bias, mask, rows_info}, given, dgiven, (REAL)(c.scale * (double)LOG2E)};
    const int row_tiles = (c.N + ROWS - 1) / ROWS, key_tiles = (c.M + COLUMNS - 1) / COLUMNS;
    const int key_tile = blockIdx.x % key_tiles, row_tile = blockIdx.x / key_tiles % row_tiles;
    const int of = blockIdx.x / key_tiles / row_tiles, of_b = of / c.bias_shape[1], of_head = of % c.bias_shape[1];
    const int b0 = c.bias_shape[0] > 1 ? of_b : 0, b1 = c.bias_shape[0] > 1 ? of_b + 1 : c.B;
    const int head0 = c.bias_shape[1] > 1 ? of_head : 0, head1 = c.bias_shape[1] > 1 ? of_head + 1 : heads;
    const int key = key_tile * COLUMNS, row = row_tile * ROWS, last = min(c.N, row + ROWS) - 1;
    Staged staged = {tile, &spoilt, 0, 0, 0, false};
    if (threadIdx.x == 0) spoilt = 0;
    REAL sums[TM][TN];
#pragma unroll
    for (int i = 0; i < TM; i++)
#pragma unroll
        for (int j = 0; j < TN; j++) sums[i][j] = -(REAL)0;
    for (int b = b0; b < b1; b++)
        for (int head = head0; head < head1; head++) {
            /* Those past the head's queries are another head's, and are left out below. */
            const Rows rows = {b, head / c.group, head % c.group * c.N + row};
            const Bounds bounds = bounds_of(c, rows_info, b);
            const Range seen = keys_seen(c, bounds, row, last);
            if (seen.first >= key + COLUMNS || seen.last <= key) continue;
            const RowScores scores = {rows, bounds, queries, kept_rows, q_own, dy_own};
            __syncthreads();
            describe(queries, c, bounds, rows);
            describe_kept(kept_rows, c, rows, stats, along);
            scores.stage(c, q_own, dy_own, q, dy);
            __syncthreads();
            REAL d[TM][TN] = {};
            scores.compute(c, back, k, v, key, staged, d);
#pragma unroll
            for (int i = 0; i < TM; i++)
#pragma unroll
                for (int j = 0; j < TN; j++) sums[i][j] += d[i][j];
        }
    write_weights<false>(weights, sums);
    __syncthreads();
    const bool each_row = c.bias_shape[2] > 1, each_key = c.bias_shape[3] > 1;
    const int rows_here = last - row + 1, keys_here = min(COLUMNS, c.M - key);
    const int out_rows = each_row ? rows_here : 1, out_keys = each_key ? keys_here : 1;
    const long long out_M = each_key ? c.M : key_tiles, out_N = each_row ? c.N : row_tiles;
    for (int at = threadIdx.x; at < out_rows * out_keys; at += THREADS) {
        const int r = at / out_keys, j = at % out_keys;
        REAL sum = -(REAL)0;
        for (int r2 = each_row ? r : 0; r2 < (each_row ? r + 1 : rows_here); r2++)
            for (int j2 = each_key ? j : 0; j2 < (each_key ? j + 1 : keys_here); j2++)
                sum += weights[place<TM, ROWS>(r2) * WEIGHTS_ROW + j2];
        out[(of * out_N + (each_row ? row + r : row_tile)) * out_M + (each_key ? key + j : key_tile)] = sum;
    }
}
