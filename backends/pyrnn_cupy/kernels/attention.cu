/* Attention: y = softmax(scale·q kᵀ + bias) v over the keys that a query sees, forward and backward, in memory of the size of
   its arrays; and what the additive and the multiplicative one need besides. The terms are those of attention.cuh.

   (a) A row of the forward is a query of one of the heads that share keys: row r is query r % N of head r / N of them.
   (b) Tiles of keys that none of a block's rows sees are left out, so causal attention costs half, and a window is linear.
   (c) Where there are too few rows to fill the device, keys are dealt out to `splits` blocks each, and their sums merged.
   (d) The forward keeps of each row its largest score and the inverse of the sum of its powers, 0 where it sees nothing. The
       backward computes weights from these, once for the gradients of queries and once for those of keys and values, each of
       which one thread adds up in a fixed order. */
#include "attention.cuh"

/* A block's rows, as queries. Local row r is row first + r of a head of keys; it lies at place spread(r). */
struct Rows {
    int b, shared, first;

    __device__ __forceinline__ int count(const Call &c) const { return min((long long)ROWS, (long long)c.group * c.N - first); }
    __device__ __forceinline__ int head(const Call &c, int r) const { return shared * c.group + (first + r) / c.N; }
    __device__ __forceinline__ int index(const Call &c, int r) const { return (first + r) % c.N; }
    /* Of all rows of the call. */
    __device__ __forceinline__ long long number(const Call &c, int r) const {
        return ((long long)b * c.heads * c.group + head(c, r)) * c.N + index(c, r);
    }
    __device__ __forceinline__ Range seen(const Call &c, const Bounds &s) const {
        const int last = first + count(c) - 1;
        const bool one_head = first / c.N == last / c.N;
        return keys_seen(c, s, one_head ? first % c.N : 0, one_head ? last % c.N : c.N - 1);
    }
};

/* Number blocks so that those with the last rows, which see the most in causal attention, begin first. */
__device__ __forceinline__ Rows rows_of_block(const Call &c, long long block) {
    const int tiles = ((long long)c.group * c.N + ROWS - 1) / ROWS;
    const long long head = block / tiles;
    return {(int)(head / c.heads), (int)(head % c.heads), (tiles - 1 - (int)(block % tiles)) * ROWS};
}

/* The queries of a block's rows, for all threads to look up. */
struct Queries {
    Query at[ROWS];
};
__device__ __forceinline__ void describe(Queries &queries, const Call &c, const Bounds &s, const Rows &rows) {
    for (int r = threadIdx.x; r < ROWS; r += THREADS) {
        Query query = {0, 0, {0, 0}};
        if (r < rows.count(c)) {
            query.head = rows.head(c, r);
            query.i = rows.index(c, r);
            query.seen = keys_seen(c, s, query.i, query.i);
        }
        queries.at[r] = query;
    }
}

/* Bring all features of a block's rows to shared memory, chunk after chunk; the length of a row there. */
__device__ __forceinline__ int row_length(int features) { return (features + CHUNK - 1) / CHUNK * CHUNK + VECTOR; }
template <typename At> __device__ __forceinline__ void stage_own(REAL *own, At at, int features, bool aligned) {
    for (int f = 0; f < features; f += CHUNK) stage<TM, ROWS>(own + f, row_length(features), at, f, features, aligned);
}

/* The factors of four weights: 0 where they are dropped. */
__device__ __forceinline__ REAL kept(const Call &c, unsigned four, int key) { return four >> key % 4 & 1 ? (REAL)c.keep : (REAL)0; }

extern "C" __global__ void __launch_bounds__(THREADS, 2) attention_forward(
    const Call c, const REAL *q, const REAL *k, const REAL *v, const REAL *hidden, const REAL *bias, const unsigned char *mask,
    const long long *rows_info, REAL *y, REAL *stats, REAL *scores, REAL *parts
) {
    extern __shared__ int4 shared_memory[];
    __shared__ Queries queries;
    __shared__ int spoilt;
    REAL *own = (REAL *)shared_memory, *tile = own + ROWS * row_length(c.D), *weights = tile + TILE;
    const int split = blockIdx.x % c.splits, own_length = row_length(c.D);
    const Rows rows = rows_of_block(c, blockIdx.x / c.splits);
    const Bounds bounds = bounds_of(c, rows_info, rows.b);
    const Steering steering = {bias, mask, rows_info};
    const REAL factor = (REAL)(c.scale * (double)LOG2E);
    describe(queries, c, bounds, rows);
    if (threadIdx.x == 0) spoilt = 0;
    stage_own(own, [&](int r) { return r < rows.count(c) ? at3(q, c.q, rows.b, rows.head(c, r), rows.index(c, r)) : nullptr; }, c.D, c.aligned & 1);
    Staged staged = {tile, &spoilt, 0, nullptr, 0, false};
    REAL sums[OUT][TM][EACH] = {}, largest[TM], total[TM] = {};
#pragma unroll
    for (int i = 0; i < TM; i++) largest[i] = NOT_SEEN;

    Range seen = rows.seen(c, bounds);
    seen.first = seen.first / COLUMNS * COLUMNS;
    const int tiles = (seen.last - seen.first + COLUMNS - 1) / COLUMNS, each = (tiles + c.splits - 1) / c.splits * COLUMNS;
    const int begin = seen.first + split * each, end = min(seen.last, begin + each);
    for (int key = begin; key < end; key += COLUMNS) {
        staged.array = nullptr;
        const auto at = [&](const REAL *array, const long long(&step)[3]) {
            const REAL *from = at3(array, step, rows.b, rows.shared, key);
            return [=, &c, &step](int r) { return key + r < c.M ? from + r * step[2] : nullptr; };
        };
        REAL s[TM][TN] = {};
        for (int f = 0; f < c.D; f += CHUNK) {
            staged.bring(k, at(k, c.k), f / CHUNK, c.D, c.aligned & 2);
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
                for (int j = 0; j < TN; j++)
                    if (key + column_number(j) < c.M) scores[rows.number(c, row_number(i)) * c.M + key + column_number(j)] = s[i][j];
            }
            const REAL base = most == NOT_SEEN ? (REAL)0 : most, before = exp2(largest[i] - base);
            largest[i] = most;
            total[i] *= before;
#pragma unroll
            for (int o = 0; o < OUT; o++)
#pragma unroll
                for (int j = 0; j < EACH; j++) sums[o][i][j] *= before;
            unsigned four = 0;
            if (!PLAIN && c.drop_below)
                four = kept_of_four(c, (key + column_number(0)) / 4, bounds.start + query.i, query.head, rows.b);
#pragma unroll
            for (int j = 0; j < TN; j++) {
                REAL power = exp2(s[i][j] - base);
                total[i] += power;
                if (!PLAIN && c.drop_below) power *= kept(c, four, j);
                s[i][j] = s[i][j] == NOT_SEEN ? -(REAL)0 : power;
            }
        }
        share_weights(weights, s);
#pragma unroll
        for (int o = 0; o < OUT; o++) {
            if ((c.first + o) * CHUNK >= c.Dv) continue;
            staged.bring(v, at(v, c.v), c.first + o, c.Dv, c.aligned & 4);
            multiply_columns(sums[o], weights, staged);
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
                const int column = (c.first + o) * CHUNK + (int)threadIdx.x % TX * EACH + j;
                if (column < c.Dv) out[column] = parts ? sums[o][i][j] : sums[o][i][j] * inverse;
            }
    }
}

/* Merge what splits of keys gave: a block takes a row. */
extern "C" __global__ void __launch_bounds__(THREADS, 2) attention_merge(
    const Call c, const REAL *parts, const REAL *part_stats, REAL *y, REAL *stats
) {
    const long long number = blockIdx.x, all_rows = (long long)c.B * c.heads * c.group * c.N;
    REAL largest = NOT_SEEN, total = 0;
    for (int split = 0; split < c.splits; split++) largest = fmax(largest, part_stats[(split * all_rows + number) * 2]);
    const REAL base = largest == NOT_SEEN ? (REAL)0 : largest;
    for (int split = 0; split < c.splits; split++) {
        const REAL *part = part_stats + (split * all_rows + number) * 2;
        total += part[1] * exp2(part[0] - base);
    }
    const REAL inverse = total == 0 ? (REAL)0 : 1 / total;
    if (threadIdx.x == 0 && stats) {
        stats[number * 2] = base;
        stats[number * 2 + 1] = inverse;
    }
    const int row = number % c.N;
    const long long head = number / c.N;
    REAL *out = at3(y, c.y, (int)(head / (c.heads * c.group)), (int)(head % (c.heads * c.group)), row);
    for (int column = threadIdx.x; column < c.Dv; column += THREADS) {
        REAL sum = 0;
        for (int split = 0; split < c.splits; split++) {
            const long long part = split * all_rows + number;
            sum = fma(parts[part * c.Dv + column], exp2(part_stats[part * 2] - base), sum);
        }
        out[column] = sum * inverse;
    }
}

/* From scores (B, N, M) to weights, in place. What lies past the valid keys was not written. */
extern "C" __global__ void __launch_bounds__(THREADS, 2) attention_weights(
    const Call c, const long long *rows_info, const REAL *stats, REAL *scores
) {
    const long long row = blockIdx.x;
    const Bounds bounds = bounds_of(c, rows_info, (int)(row / c.N));
    const REAL base = stats[row * 2], inverse = stats[row * 2 + 1];
    for (int key = threadIdx.x; key < c.M; key += THREADS) {
        REAL &at = scores[row * c.M + key];
        at = key >= bounds.keys || at == NOT_SEEN ? (REAL)0 : exp2(at - base) * inverse;
    }
}

/* Σ dy·y of each row, and Σ dweights·weights of what it sees where the gradient of the weights is given: a warp takes a row. */
extern "C" __global__ void __launch_bounds__(THREADS, 2) attention_along(
    const Call c, const REAL *y, const REAL *dy, const unsigned char *mask, const long long *rows_info, const REAL *given,
    const REAL *dgiven, REAL *along
) {
    const long long all_rows = (long long)c.B * c.heads * c.group * c.N;
    const long long number = (long long)blockIdx.x * (THREADS / 32) + threadIdx.x / 32;
    if (number >= all_rows) return;
    const int i = number % c.N, head = number / c.N % (c.heads * c.group), b = number / c.N / (c.heads * c.group);
    const int lane = threadIdx.x % 32;
    REAL sum = 0;
    if (dy) {
        const REAL *own = at3(y, c.y, b, head, i), *theirs = at3(dy, c.dy, b, head, i);
        for (int column = lane; column < c.Dv; column += 32) sum = fma(own[column], theirs[column], sum);
    }
    if (dgiven) {
        const Bounds bounds = bounds_of(c, rows_info, b);
        for (int key = lane; key < bounds.keys; key += 32)
            if (!mask || mask[b * c.mask[0] + i * c.mask[2] + key * c.mask[3]])
                sum = fma(given[number * c.M + key], dgiven[number * c.M + key], sum);
    }
#pragma unroll
    for (int other = 16; other; other /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, other);
    if (lane == 0) along[number] = sum;
}

/* What the backward knows of a row: its largest score, the inverse of the sum of its powers, Σ dy·y, and its number. */
struct Kept {
    REAL largest, inverse, along;
    long long number;
};
__device__ __forceinline__ Kept kept_of(const REAL *stats, const REAL *along, long long number) {
    return {stats[number * 2], stats[number * 2 + 1], along[number], number};
}

/* The arrays that weights and the gradients of scores are computed with. */
struct Back {
    Steering steering;
    const REAL *given, *dgiven; /* with SCORE = GIVEN: weights, and perhaps their gradients, (B, N, M) */
    REAL factor;
};

/* From a product q·k and the product dy·v to a weight as it was multiplied with v, and to the gradient of its score. */
__device__ __forceinline__ void pull_score(
    const Call &c, const Back &back, int b, const Query &query, int key, const Kept &row, REAL dropped, REAL &s, REAL &d
) {
    s = scored(c, back.steering, SCORE == GIVEN ? (REAL)0 : s, back.factor, b, query, key);
    if (s == NOT_SEEN) {
        s = d = -(REAL)0;
        return;
    }
    REAL weight;
    if (SCORE == GIVEN) {
        weight = back.given[row.number * c.M + key];
        if (back.dgiven) d += back.dgiven[row.number * c.M + key];
    } else {
        weight = exp2(s - row.largest) * row.inverse;
        d *= dropped;
    }
    d = weight * (d - row.along) + 0; /* + 0: what is seen is not -0 */
    s = weight * dropped;
}

/* The gradients of scores of a block's rows, as queries, and of the keys of a tile. */
struct RowScores {
    const Rows &rows;
    const Bounds &bounds;
    const Queries &queries;
    const REAL *q_own, *dy_own;

    __device__ __forceinline__ void compute(
        const Call &c, const Back &back, const REAL *k, const REAL *v, const REAL *stats, const REAL *along, int key, Staged &staged,
        REAL (&d)[TM][TN]
    ) const {
        REAL s[TM][TN] = {};
        staged.array = nullptr;
        for (int f = 0; f < c.Dv; f += CHUNK) {
            staged.bring(v, tile_of(c, v, c.v, key), f / CHUNK, c.Dv, c.aligned & 4);
            multiply_rows(d, dy_own + f, row_length(c.Dv), staged.tile);
        }
        for (int f = 0; SCORE != GIVEN && f < c.D; f += CHUNK) {
            staged.bring(k, tile_of(c, k, c.k, key), f / CHUNK, c.D, c.aligned & 2);
            multiply_rows(s, q_own + f, row_length(c.D), staged.tile);
        }
#pragma unroll
        for (int i = 0; i < TM; i++) {
            const int r = row_number(i);
            const Query query = queries.at[r];
            const Kept row = r < rows.count(c) ? kept_of(stats, along, rows.number(c, r)) : Kept{0, 0, 0, 0};
            unsigned four = 15;
            if (!PLAIN && c.drop_below)
                four = kept_of_four(c, (key + column_number(0)) / 4, bounds.start + query.i, query.head, rows.b);
#pragma unroll
            for (int j = 0; j < TN; j++)
                pull_score(c, back, rows.b, query, key + column_number(j), row, PLAIN ? (REAL)1 : kept(c, four, j), s[i][j], d[i][j]);
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

    __device__ __forceinline__ void stage(const Call &c, REAL *q_to, REAL *dy_to, const REAL *q, const REAL *dy) const {
        const auto at = [&](const REAL *array, const long long(&step)[3]) {
            return [&, array](int r) { return r < rows.count(c) ? at3(array, step, rows.b, rows.head(c, r), rows.index(c, r)) : nullptr; };
        };
        if (SCORE != GIVEN) stage_own(q_to, at(q, c.q), c.D, c.aligned & 1);
        if (dy) stage_own(dy_to, at(dy, c.dy), c.Dv, c.aligned & 8);
        else
            for (int i = threadIdx.x; i < ROWS * row_length(c.Dv); i += THREADS) dy_to[i] = 0;
    }
};

/* The gradient of queries. */
extern "C" __global__ void __launch_bounds__(THREADS, 2) attention_queries(
    const Call c, const REAL *q, const REAL *k, const REAL *v, const REAL *dy, const REAL *bias, const unsigned char *mask,
    const long long *rows_info, const REAL *stats, const REAL *along, const REAL *given, const REAL *dgiven, REAL *dq
) {
    extern __shared__ int4 shared_memory[];
    __shared__ Queries queries;
    __shared__ int spoilt;
    const int q_length = SCORE == GIVEN ? 0 : row_length(c.D);
    REAL *q_own = (REAL *)shared_memory, *dy_own = q_own + ROWS * q_length, *tile = dy_own + ROWS * row_length(c.Dv);
    REAL *weights = tile + TILE;
    const Rows rows = rows_of_block(c, blockIdx.x);
    const Bounds bounds = bounds_of(c, rows_info, rows.b);
    const RowScores scores = {rows, bounds, queries, q_own, dy_own};
    const Back back = {{bias, mask, rows_info}, given, dgiven, (REAL)(c.scale * (double)LOG2E)};
    describe(queries, c, bounds, rows);
    if (threadIdx.x == 0) spoilt = 0;
    scores.stage(c, q_own, dy_own, q, dy);
    __syncthreads();
    Staged staged = {tile, &spoilt, 0, nullptr, 0, false};
    REAL sums[OUT][TM][EACH] = {};
    const Range seen = rows.seen(c, bounds);
    for (int key = seen.first / COLUMNS * COLUMNS; key < seen.last; key += COLUMNS) {
        REAL d[TM][TN] = {};
        scores.compute(c, back, k, v, stats, along, key, staged, d);
        share_weights(weights, d);
#pragma unroll
        for (int o = OUT - 1; o >= 0; o--) { /* from the last chunk, which is there already */
            if ((c.first + o) * CHUNK >= c.D) continue;
            staged.bring(k, scores.tile_of(c, k, c.k, key), c.first + o, c.D, c.aligned & 2);
            multiply_columns(sums[o], weights, staged);
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
                const int column = (c.first + o) * CHUNK + (int)threadIdx.x % TX * EACH + j;
                if (column < c.D) out[column] = sums[o][i][j] * (REAL)c.scale;
            }
    }
}

/* The gradient of scores, (B, heads, N, M), summed over the dimensions in which c.bias_shape is 1: rows and keys within a tile
   only, so the output has a row, or a column, for each tile where those are to be summed. A block has a tile of it. With one
   head what is not seen is given as -0. */
extern "C" __global__ void __launch_bounds__(THREADS, 2) attention_scores(
    const Call c, const REAL *q, const REAL *k, const REAL *v, const REAL *dy, const REAL *bias, const unsigned char *mask,
    const long long *rows_info, const REAL *stats, const REAL *along, const REAL *given, const REAL *dgiven, REAL *out
) {
    extern __shared__ int4 shared_memory[];
    __shared__ Queries queries;
    __shared__ int spoilt;
    const int q_length = SCORE == GIVEN ? 0 : row_length(c.D), heads = c.heads * c.group;
    REAL *q_own = (REAL *)shared_memory, *dy_own = q_own + ROWS * q_length, *tile = dy_own + ROWS * row_length(c.Dv);
    REAL *weights = tile + TILE;
    const Back back = {{bias, mask, rows_info}, given, dgiven, (REAL)(c.scale * (double)LOG2E)};
    const int row_tiles = (c.N + ROWS - 1) / ROWS, key_tiles = (c.M + COLUMNS - 1) / COLUMNS;
    const int key_tile = blockIdx.x % key_tiles, row_tile = blockIdx.x / key_tiles % row_tiles;
    const int of = blockIdx.x / key_tiles / row_tiles, of_b = of / c.bias_shape[1], of_head = of % c.bias_shape[1];
    const int b0 = c.bias_shape[0] > 1 ? of_b : 0, b1 = c.bias_shape[0] > 1 ? of_b + 1 : c.B;
    const int head0 = c.bias_shape[1] > 1 ? of_head : 0, head1 = c.bias_shape[1] > 1 ? of_head + 1 : heads;
    const int key = key_tile * COLUMNS, row = row_tile * ROWS, last = min(c.N, row + ROWS) - 1;
    Staged staged = {tile, &spoilt, 0, nullptr, 0, false};
    if (threadIdx.x == 0) spoilt = 0;
    REAL sums[TM][TN];
#pragma unroll
    for (int i = 0; i < TM; i++)
#pragma unroll
        for (int j = 0; j < TN; j++) sums[i][j] = -(REAL)0;
    for (int b = b0; b < b1; b++)
        for (int head = head0; head < head1; head++) {
            /* As rows of a head of keys, these end with the head's queries. */
            const Rows rows = {b, head / c.group, head % c.group * c.N + row};
            const Bounds bounds = bounds_of(c, rows_info, b);
            const Range seen = keys_seen(c, bounds, row, last);
            if (seen.first >= key + COLUMNS || seen.last <= key) continue;
            const RowScores scores = {rows, bounds, queries, q_own, dy_own};
            __syncthreads();
            describe(queries, c, bounds, rows);
            scores.stage(c, q_own, dy_own, q, dy);
            __syncthreads();
            REAL d[TM][TN] = {};
            scores.compute(c, back, k, v, stats, along, key, staged, d);
#pragma unroll
            for (int i = 0; i < TM; i++)
#pragma unroll
                for (int j = 0; j < TN; j++) sums[i][j] += d[i][j];
        }
    share_weights(weights, sums);
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
                sum += weights[spread<TM, ROWS>(r2) * WEIGHTS_ROW + j2];
        out[(of * out_N + (each_row ? row + r : row_tile)) * out_M + (each_key ? key + j : key_tile)] = sum;
    }
}

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
    REAL *k_own = (REAL *)shared_memory, *v_own = k_own + ROWS * k_length, *tile = v_own + (WANT_K ? ROWS * v_length : 0);
    REAL *weights = tile + TILE;
    const int tiles = (c.M + ROWS - 1) / ROWS, key = (int)(blockIdx.x % tiles) * ROWS;
    const int b = (int)(blockIdx.x / tiles / c.heads), shared = (int)(blockIdx.x / tiles % c.heads);
    const Bounds bounds = bounds_of(c, rows_info, b);
    const Back back = {{bias, mask, rows_info}, given, dgiven, (REAL)(c.scale * (double)LOG2E)};
    const auto own = [&](const REAL *array, const long long(&step)[3]) {
        const REAL *from = at3(array, step, b, shared, key);
        return [=, &c, &step](int r) { return key + r < c.M ? from + r * step[2] : nullptr; };
    };
    if (SCORE != GIVEN) stage_own(k_own, own(k, c.k), c.D, c.aligned & 2);
    if (WANT_K) stage_own(v_own, own(v, c.v), c.Dv, c.aligned & 4);
    if (threadIdx.x == 0) spoilt = 0;
    Staged staged = {tile, &spoilt, 0, nullptr, 0, false};
    const Range seeing = queries_seeing(c, bounds, key, min(c.M, key + ROWS) - 1);
    for (int head = shared * c.group; head < (shared + 1) * c.group; head++)
        for (int first = seeing.first; first < seeing.last; first += COLUMNS) {
            staged.array = nullptr;
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
                staged.bring(q, at(q, c.q), f / CHUNK, c.D, c.aligned & 1);
                multiply_rows(s, k_own + f, k_length, tile);
            }
            for (int f = 0; WANT_K && dy && f < c.Dv; f += CHUNK) {
                staged.bring(dy, at(dy, c.dy), f / CHUNK, c.Dv, c.aligned & 8);
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
                    if (!PLAIN && c.drop_below && i % 4 == 0) four = kept_of_four(c, at_key / 4, bounds.start + query.i, head, b);
                    pull_score(c, back, b, query, at_key, row, PLAIN ? (REAL)1 : kept(c, four, at_key), s[i][j], d[i][j]);
                }
            }
#if WANT_V
            share_weights(weights, s);
#pragma unroll
            for (int o = OUT - 1; o >= 0; o--) { /* from the last chunk, which is there already */
                if ((c.first + o) * CHUNK >= c.Dv) continue;
                staged.bring(dy, at(dy, c.dy), c.first + o, c.Dv, c.aligned & 8);
                multiply_columns(sums_v[o], weights, staged);
            }
#endif
#if WANT_K
            share_weights(weights, d);
#pragma unroll
            for (int o = OUT - 1; o >= 0; o--) {
                if ((c.first + o) * CHUNK >= c.D) continue;
                staged.bring(q, at(q, c.q), c.first + o, c.D, c.aligned & 1);
                multiply_columns(sums_k[o], weights, staged);
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
                const int column = (c.first + o) * CHUNK + (int)threadIdx.x % TX * EACH + j;
#if WANT_K
                if (column < c.D) at3(dk, c.dk, b, shared, at_key)[column] = sums_k[o][i][j] * (REAL)c.scale;
#endif
#if WANT_V
                if (column < c.Dv) at3(dv, c.dv, b, shared, at_key)[column] = sums_v[o][i][j];
#endif
            }
    }
}
