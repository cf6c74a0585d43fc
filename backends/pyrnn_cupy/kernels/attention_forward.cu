/* Attention forward: y = softmax(scale·q kᵀ + bias) v over the keys that a query sees.

   (a) Where there are too few rows to fill the device, keys are dealt out to `splits` blocks each, and what they give is merged.
   (b) Of each row its largest score is kept and the inverse of the sum of its powers, 0 where it sees nothing. */
#include "attention_rows.cuh"

extern "C" __global__ void __launch_bounds__(THREADS, 2) attention_forward(
    const Call c, const REAL *q, const REAL *k, const REAL *v, const REAL *hidden, const REAL *bias, const unsigned char *mask,
    const long long *rows_info, REAL *y, REAL *stats, REAL *scores, REAL *parts
) {
    extern __shared__ int4 shared_memory[];
    __shared__ Queries queries;
    __shared__ int spoilt;
    Element *own = (Element *)shared_memory, *tile = own + ROWS * row_length(c.D);
    REAL *weights = (REAL *)(tile + TILE);
    const int split = blockIdx.x % c.splits, own_length = row_length(c.D);
    const Rows rows = rows_of_block(c, blockIdx.x / c.splits);
    const Bounds bounds = bounds_of(c, rows_info, rows.b);
    const Steering steering = {bias, mask, rows_info};
    const REAL factor = (REAL)(c.scale * (double)LOG2E);
    describe(queries, c, bounds, rows);
    if (threadIdx.x == 0) spoilt = 0;
    stage_own(own, [&](int r) { return rows.at(c, q, c.q, r); }, c.D, c.aligned & OF_Q);
    Staged staged = {tile, &spoilt, 0, 0, 0, false};
    REAL sums[OUT][TM][EACH] = {}, largest[TM], total[TM] = {};
#pragma unroll
    for (int i = 0; i < TM; i++) largest[i] = NOT_SEEN;

    Range seen = rows.seen(c, bounds);
    seen.first = seen.first / COLUMNS * COLUMNS;
    const int tiles = (seen.last - seen.first + COLUMNS - 1) / COLUMNS, each = (tiles + c.splits - 1) / c.splits * COLUMNS;
    const int begin = seen.first + split * each, end = min(seen.last, begin + each);
    for (int key = begin; key < end; key += COLUMNS) {
        staged.array = 0;
        const auto at = [&](const REAL *array, const long long(&step)[3]) {
            const REAL *from = at3(array, step, rows.b, rows.shared, key);
            return [=, &c, &step](int r) { return key + r < c.M ? from + r * step[2] : nullptr; };
        };
        REAL s[TM][TN] = {};
        for (int f = 0; f < c.D; f += CHUNK) {
            staged.bring(c, OF_K, at(k, c.k), f / CHUNK, c.D);
            if (SCORE == ADDITIVE) add_rows(s, own + f, own_length, tile, hidden + f, c.D - f);
            else multiply_rows(s, own + f, own_length, tile);
        }
        if (!c.D) __syncthreads(); /* for what was described */
#pragma unroll
        for (int i = 0; i < TM; i++) {
            const Query query = queries.at[row_number(i)];
            REAL most = largest[i];
#pragma unroll
            for (int j = 0; j < TN; j++) {
                s[i][j] = scored(c, steering, s[i][j], factor, rows.b, query, key + column_number(j));
                most = fmax(most, s[i][j]);
            }
            most = largest_of_row(most);
            if (scores && row_number(i) < rows.count(c)) {
#pragma unroll
                for (int j = 0; j < TN; j++) {
                    const int at_key = key + column_number(j);
                    if (at_key < c.M) scores[rows.number(c, row_number(i)) * c.M + at_key] = s[i][j];
                }
            }
            const REAL base = most == NOT_SEEN ? (REAL)0 : most, before = exp2(largest[i] - base);
            largest[i] = most;
            total[i] *= before;
#pragma unroll
            for (int o = 0; o < OUT; o++)
#pragma unroll
                for (int j = 0; j < EACH; j++) sums[o][i][j] *= before;
            unsigned four = 0;
#pragma unroll
            for (int j = 0; j < TN; j++) {
                const int at_key = key + column_number(j);
                REAL power = exp2(s[i][j] - base);
                total[i] += power;
                if (!PLAIN && c.drop_below) {
                    if (j % RUN == 0) four = kept_of_four(c, at_key / 4, bounds.start + query.i, query.head, rows.b);
                    power *= kept(c, four, at_key);
                }
                s[i][j] = s[i][j] == NOT_SEEN ? -(REAL)0 : power;
            }
        }
        const Weighed shares(s, weights);
#pragma unroll
        for (int o = 0; o < OUT; o++) {
            if ((c.first + o) * CHUNK >= c.Dv) continue;
            staged.bring(c, OF_V, at(v, c.v), c.first + o, c.Dv);
            shares.multiply(sums[o], staged);
        }
    }
    __syncthreads();
#pragma unroll
    for (int i = 0; i < TM; i++) {
        const int r = row_number(i);
        const REAL all = sum_of_row(total[i]), inverse = all == 0 ? (REAL)0 : 1 / all;
        if (r >= rows.count(c)) continue;
        const long long number = rows.number(c, r), all_rows = (long long)c.B * c.heads * c.group * c.N;
        const int head = rows.head(c, r), index = rows.index(c, r);
        if (threadIdx.x % TX == 0 && stats) {
            stats[(split * all_rows + number) * 2] = parts ? largest[i] : largest[i] == NOT_SEEN ? (REAL)0 : largest[i];
            stats[(split * all_rows + number) * 2 + 1] = parts ? all : inverse;
        }
        REAL *out = parts ? parts + (split * all_rows + number) * c.Dv : at3(y, c.y, rows.b, head, index);
#pragma unroll
        for (int o = 0; o < OUT; o++)
#pragma unroll
            for (int j = 0; j < EACH; j++) {
                const int column = (c.first + o) * CHUNK + output_column(j);
                if (column < c.Dv) out[column] = parts ? sums[o][i][j] : sums[o][i][j] * inverse;
            }
    }
}
