#include "attention_back.cuh"

/* The gradients of keys and values, each where it is asked for: a block's rows are keys, and queries its columns. */
extern "C" __global__ void __launch_bounds__(THREADS, 2) attention_keys(
    const Call c, const REAL *q, const REAL *k, const REAL *v, const REAL *dy, const REAL *bias, const unsigned char *mask,
    const long long *rows_info, const REAL *stats, const REAL *along, const REAL *given, const REAL *dgiven, REAL *dk, REAL *dv
) {
#if WANT_K
    REAL sums_k[OUT][TM][EACH] = {};
#endif
#if WANT_V
    REAL sums_v[OUT][TM][EACH] = {};
#endif
    extern __shared__ int4 shared_memory[];
    __shared__ Query queries[COLUMNS];
    __shared__ Kept kept_rows[COLUMNS];
    __shared__ int spoilt;
    const int k_length = SCORE == GIVEN ? 0 : row_length(c.D), v_length = row_length(c.Dv);
    Element *k_own = (Element *)shared_memory, *v_own = k_own + ROWS * k_length, *tile = v_own + (WANT_K ? ROWS * v_length : 0);
    REAL *weights = (REAL *)(tile + TILE);
    const int tiles = (c.M + ROWS - 1) / ROWS, key = (int)(blockIdx.x % tiles) * ROWS;
    const int b = (int)(blockIdx.x / tiles / c.heads), shared = (int)(blockIdx.x / tiles % c.heads);
    const Bounds bounds = bounds_of(c, rows_info, b);
    const Back back = {{bias, mask, rows_info}, given, dgiven, (REAL)(c.scale * (double)LOG2E)};
    const auto own = [&](const REAL *array, const long long(&step)[3]) {
        const REAL *from = at3(array, step, b, shared, key);
        return [=, &c, &step](int r) { return key + r < c.M ? from + r * step[2] : nullptr; };
    };
    if (SCORE != GIVEN) stage_own(k_own, own(k, c.k), c.D, c.aligned & OF_K);
    if (WANT_K) stage_own(v_own, own(v, c.v), c.Dv, c.aligned & OF_V);
    if (threadIdx.x == 0) spoilt = 0;
    Staged staged = {tile, &spoilt, 0, 0, 0, false};
    const Range seeing = queries_seeing(c, bounds, key, min(c.M, key + ROWS) - 1);
    for (int head = shared * c.group; head < (shared + 1) * c.group; head++)
        for (int first = seeing.first; first < seeing.last; first += COLUMNS) {
            staged.array = 0;
            const auto at = [&](const REAL *array, const long long(&step)[3]) {
                const REAL *from = at3(array, step, b, head, first);
                return [=, &seeing, &step](int r) { return first + r < seeing.last ? from + r * step[2] : nullptr; };
            };
            __syncthreads();
            for (int r = threadIdx.x; r < COLUMNS; r += THREADS) {
                Query query = {head, first + r, {0, 0}};
                Kept row = {};
                if (first + r < seeing.last) {
                    query.seen = keys_seen(c, bounds, first + r, first + r);
                    row = kept_of(stats, along, ((long long)b * c.heads * c.group + head) * c.N + first + r);
                }
                queries[r] = query;
                kept_rows[r] = row;
            }
            __syncthreads();
            REAL s[TM][TN] = {}, d[TM][TN] = {};
            for (int f = 0; SCORE != GIVEN && f < c.D; f += CHUNK) {
                staged.bring(c, OF_Q, at(q, c.q), f / CHUNK, c.D);
                multiply_rows(s, k_own + f, k_length, tile);
            }
            for (int f = 0; WANT_K && dy && f < c.Dv; f += CHUNK) {
                staged.bring(c, OF_DY, at(dy, c.dy), f / CHUNK, c.Dv);
                multiply_rows(d, v_own + f, v_length, tile);
            }
#pragma unroll
            for (int j = 0; j < TN; j++) {
                const Query query = queries[column_number(j)];
                const Kept row = kept_rows[column_number(j)];
                unsigned four = 15;
#pragma unroll
                for (int i = 0; i < TM; i++) {
                    const int at_key = key + row_number(i);
                    if (!PLAIN && c.drop_below && i % ROW_RUN == 0)
                        four = kept_of_four(c, at_key / 4, bounds.start + query.i, head, b);
                    pull_score(c, back, b, query, at_key, row, PLAIN ? (REAL)1 : kept(c, four, at_key), s[i][j], d[i][j]);
                }
            }
#if WANT_V
            const Weighed shares(s, weights);
#pragma unroll
            for (int o = OUT - 1; o >= 0; o--) { /* from the last chunk, which is there already */
                if ((c.first + o) * CHUNK >= c.Dv) continue;
                staged.bring(c, OF_DY, at(dy, c.dy), c.first + o, c.Dv);
                shares.multiply(sums_v[o], staged);
            }
#endif
#if WANT_K
            const Weighed pulls(d, weights);
#pragma unroll
            for (int o = OUT - 1; o >= 0; o--) {
                if ((c.first + o) * CHUNK >= c.D) continue;
                staged.bring(c, OF_Q, at(q, c.q), c.first + o, c.D);
                pulls.multiply(sums_k[o], staged);
            }
#endif
        }
#pragma unroll
    for (int i = 0; i < TM; i++) {
        const int at_key = key + row_number(i);
        if (at_key >= c.M) continue;
#pragma unroll
        for (int o = 0; o < OUT; o++)
#pragma unroll
            for (int j = 0; j < EACH; j++) {
                const int column = (c.first + o) * CHUNK + output_column(j);
#if WANT_K
                if (column < c.D) at3(dk, c.dk, b, shared, at_key)[column] = sums_k[o][i][j] * (REAL)c.scale;
#endif
#if WANT_V
                if (column < c.Dv) at3(dv, c.dv, b, shared, at_key)[column] = sums_v[o][i][j];
#endif
            }
    }
}
