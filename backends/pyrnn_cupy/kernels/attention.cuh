/* What the kernels of attention have in common: a call, who sees what, dropout, and products of tiles.

   Compiled with -DREAL=float|double, -DTM (rows of a thread), -DCHUNK (features at a time: 16, 32 or 64), -DOUT (chunks of the
   output that a thread keeps sums of), -DSCORE=DOT|ADDITIVE|GIVEN and -DPLAIN (1: no bias, no mask, no dropout).

   (a) A block has ROWS rows and takes COLUMNS columns at a time, queries and keys or, for the gradients of keys, the other way
       round. A thread has TM rows and TN columns of the scores, and in the output the same rows. The threads of a row are
       neighbours in a warp, so that weights pass from scores to output through memory of their own warp.
   (b) The block's own rows lie in shared memory for as long as it runs. Of the other side there is one chunk of features at a
       time; four blocks to a multiprocessor hide the wait for it.
   (c) A weight that is not seen is -0, one that is seen is no less than +0, be it dropped; of a score's gradient likewise. So
       where a tile has what is not finite, which alone makes a difference, products leave out what is not seen.
   (d) Exponentials are powers of 2: a score counts as log2(e) times itself. */
#pragma once
#include "device.cuh"

#define DOT 0      /* scores: scale · q kᵀ */
#define ADDITIVE 1 /* Σ hidden · tanh(q + k) */
#define GIVEN 2    /* weights are given */

#define THREADS 128
#define TX 16             /* threads of a row */
#define TY (THREADS / TX) /* of a column */
#define TN 4
#define ROWS (TY * TM)
#define COLUMNS (TX * TN)
#define EACH (CHUNK / TX)              /* columns of a chunk of the output, of a thread */
#define VECTOR (16 / (int)sizeof(REAL)) /* elements in 16 bytes */
#define TILE_ROW (CHUNK + VECTOR)      /* so that rows lie in different banks */
#define WEIGHTS_ROW (COLUMNS + VECTOR)
#define TILE (COLUMNS * TILE_ROW)
#define WEIGHTS (ROWS * WEIGHTS_ROW)

#define LOG2E ((REAL)1.4426950408889634)
#define LARGEST (sizeof(REAL) == 4 ? (REAL)3.4028234e38 : (REAL)1.797693134862315e308)
#define NOT_SEEN (-(REAL)__int_as_float(0x7f800000)) /* as a score: -inf */

/* A call, and how its arrays lie: elements from a batch, head and row to the next. Features lie side by side. */
struct Call {
    int B, heads, group, N, M, D, Dv;      /* heads of keys; of queries for each of them */
    int splits;                            /* of keys, dealt out to blocks */
    int aligned;                           /* rows of q, k, v, dy that can be read 16 bytes at a time: bits 0 to 3 */
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

/* --- dropout: Philox4x32-10, as in reference/attention.py ---------------------------------------------------------- */

/* Bits 0 to 3: whether the weights of four keys, from 4 * quad, are kept. */
__device__ __forceinline__ unsigned kept_of_four(const Call &c, int quad, long long at, int head, int b) {
    unsigned w0 = quad, w1 = (unsigned)at, w2 = head, w3 = b, low = (unsigned)c.seed, high = (unsigned)(c.seed >> 32);
#pragma unroll
    for (int round = 0; round < 10; round++) {
        const unsigned long long first = 0xD2511F53ull * w0, second = 0xCD9E8D57ull * w2;
        w0 = (unsigned)(second >> 32) ^ w1 ^ low;
        w1 = (unsigned)second;
        w2 = (unsigned)(first >> 32) ^ w3 ^ high;
        w3 = (unsigned)first;
        low += 0x9E3779B9u;
        high += 0xBB67AE85u;
    }
    return (w0 >= c.drop_below) | (w1 >= c.drop_below) << 1 | (w2 >= c.drop_below) << 2 | (w3 >= c.drop_below) << 3;
}

/* --- tiles ------------------------------------------------------------------------------------------------------- */

/* Where row r of a tile lies. A thread's rows follow one another, `each` of them; in memory the first rows of all threads do,
   then their second ones, so that threads read from different banks. */
template <int EACH_OF, int OF> __device__ __forceinline__ int spread(int r) { return r % EACH_OF * (OF / EACH_OF) + r / EACH_OF; }
__device__ __forceinline__ int own_row(int i) { return i * TY + (int)threadIdx.x / TX; } /* where a thread's row i lies */
__device__ __forceinline__ int row_number(int i) { return (int)threadIdx.x / TX * TM + i; }
__device__ __forceinline__ int column_number(int j) { return (int)threadIdx.x % TX * TN + j; }

__device__ __forceinline__ bool is_finite(REAL x) { return x - x == 0; }

/* Bring features [column, column + CHUNK) of OF rows, at(r) each or null, to a tile: zeros where there is none. Tells whether
   all that the thread brought is finite. */
template <int EACH_OF, int OF, typename At>
__device__ __forceinline__ bool stage(REAL *tile, int tile_row, At at, int column, int columns, bool aligned) {
    const int packs = CHUNK / VECTOR;
    bool finite = true;
#pragma unroll 4
    for (int i = threadIdx.x; i < OF * packs; i += THREADS) {
        const int r = i / packs, offset = i % packs * VECTOR, left = columns - column - offset;
        const REAL *from = at(r);
        Pack<REAL> pack = {};
        if (from && left > 0) {
            from += column + offset;
            if (aligned && left >= VECTOR) pack = *(const Pack<REAL> *)from;
            else
#pragma unroll
                for (int j = 0; j < VECTOR; j++)
                    if (j < left) pack.at[j] = from[j];
        }
#pragma unroll
        for (int j = 0; j < VECTOR; j++) finite = finite && is_finite(pack.at[j]);
        *(Pack<REAL> *)(tile + spread<EACH_OF, OF>(r) * tile_row + offset) = pack;
    }
    return finite;
}

/* The chunk of features that a block has staged of one side, and what it was. */
struct Staged {
    REAL *tile;
    int *spoilt;       /* in shared memory: the last number that something not finite was in */
    int number;
    const REAL *array; /* whose chunk it is */
    int chunk;
    bool guarded;

    /* Bring in a chunk, unless it is there. */
    template <typename At> __device__ __forceinline__ void bring(const REAL *from, At at, int of, int columns, bool aligned) {
        if (array == from && chunk == of) return;
        __syncthreads();
        number++;
        if (!stage<TN, COLUMNS>(tile, TILE_ROW, at, of * CHUNK, columns, aligned)) *spoilt = number;
        __syncthreads();
        guarded = *spoilt == number;
        array = from;
        chunk = of;
    }
};

template <int COUNT> __device__ __forceinline__ void load(REAL (&to)[COUNT], const REAL *from) {
    if (COUNT % VECTOR == 0) {
#pragma unroll
        for (int i = 0; i < COUNT / VECTOR; i++) {
            const Pack<REAL> pack = ((const Pack<REAL> *)from)[i];
#pragma unroll
            for (int j = 0; j < VECTOR; j++) to[i * VECTOR + j] = pack.at[j];
        }
    } else {
#pragma unroll
        for (int i = 0; i < COUNT; i++) to[i] = from[i];
    }
}

/* sum += rows · tileᵀ, over the features of a chunk. */
__device__ __forceinline__ void multiply_rows(REAL (&sum)[TM][TN], const REAL *rows, int rows_row, const REAL *tile) {
#pragma unroll 1
    for (int f = 0; f < CHUNK; f += 4) {
        REAL theirs[TN][4];
#pragma unroll
        for (int j = 0; j < TN; j++) load(theirs[j], tile + (j * TX + (int)threadIdx.x % TX) * TILE_ROW + f);
#pragma unroll
        for (int i = 0; i < TM; i++) {
            REAL own[4];
            load(own, rows + own_row(i) * rows_row + f);
#pragma unroll
            for (int u = 0; u < 4; u++)
#pragma unroll
                for (int j = 0; j < TN; j++) sum[i][j] = fma(own[u], theirs[j][u], sum[i][j]);
        }
    }
}

/* sum += Σ hidden · tanh(rows + tile), over the features of a chunk, of which `left` are there. */
__device__ __forceinline__ void add_rows(REAL (&sum)[TM][TN], const REAL *rows, int rows_row, const REAL *tile, const REAL *hidden, int left) {
    for (int f = 0; f < min(left, CHUNK); f++) {
        const REAL factor = hidden[f];
        REAL theirs[TN];
#pragma unroll
        for (int j = 0; j < TN; j++) theirs[j] = tile[(j * TX + (int)threadIdx.x % TX) * TILE_ROW + f];
#pragma unroll
        for (int i = 0; i < TM; i++) {
            const REAL own = rows[own_row(i) * rows_row + f];
#pragma unroll
            for (int j = 0; j < TN; j++) sum[i][j] = fma(factor, tanh(own + theirs[j]), sum[i][j]);
        }
    }
}

__device__ __forceinline__ bool is_hidden(REAL weight) {
    return sizeof(REAL) == 4 ? __float_as_uint((float)weight) == 0x80000000u
                             : __double_as_longlong((double)weight) == (long long)0x8000000000000000ull;
}

/* sum += weights · tile, over the tile's rows. */
template <bool GUARDED>
__device__ __forceinline__ void multiply_columns(REAL (&sum)[TM][EACH], const REAL *weights, const REAL *tile) {
#pragma unroll 1
    for (int k = 0; k < COLUMNS; k += 4) {
        REAL theirs[4][EACH];
#pragma unroll
        for (int u = 0; u < 4; u++) load(theirs[u], tile + (u * TX + k / TN) * TILE_ROW + (int)threadIdx.x % TX * EACH);
#pragma unroll
        for (int i = 0; i < TM; i++) {
            REAL own[4];
            load(own, weights + own_row(i) * WEIGHTS_ROW + k);
#pragma unroll
            for (int u = 0; u < 4; u++)
                if (!GUARDED || !is_hidden(own[u]))
#pragma unroll
                    for (int j = 0; j < EACH; j++) sum[i][j] = fma(own[u], theirs[u][j], sum[i][j]);
        }
    }
}
__device__ __forceinline__ void multiply_columns(REAL (&sum)[TM][EACH], const REAL *weights, const Staged &staged) {
    if (staged.guarded) multiply_columns<true>(sum, weights, staged.tile);
    else multiply_columns<false>(sum, weights, staged.tile);
}

/* Write a thread's weights, for its warp to multiply with. */
__device__ __forceinline__ void share_weights(REAL *weights, const REAL (&own)[TM][TN]) {
    __syncwarp();
#pragma unroll
    for (int i = 0; i < TM; i++)
#pragma unroll
        for (int j = 0; j < TN; j++) weights[own_row(i) * WEIGHTS_ROW + column_number(j)] = own[i][j];
    __syncwarp();
}

/* The largest, or the sum, of all threads of a row. */
__device__ __forceinline__ REAL largest_of_row(REAL x) {
#pragma unroll
    for (int other = TX / 2; other; other /= 2) x = fmax(x, __shfl_xor_sync(0xffffffffu, x, other));
    return x;
}
__device__ __forceinline__ REAL sum_of_row(REAL x) {
#pragma unroll
    for (int other = TX / 2; other; other /= 2) x += __shfl_xor_sync(0xffffffffu, x, other);
    return x;
}

/* --- scores ------------------------------------------------------------------------------------------------------ */

/* The place of a query: its head, its number, and the keys that it sees. */
struct Query {
    int head, i;
    Range seen;
};

/* A score, times log2(e): NOT_SEEN where the query may not attend to the key. */
__device__ __forceinline__ REAL scored(const Call &c, const Steering &s, REAL product, REAL factor, int b, const Query &query, int key) {
    if (key < query.seen.first || key >= query.seen.last) return NOT_SEEN;
    REAL score = product * factor;
    if (!PLAIN) {
        if (s.mask && !s.mask[b * c.mask[0] + query.head * c.mask[1] + query.i * c.mask[2] + key * c.mask[3]]) return NOT_SEEN;
        if (s.bias) {
            const REAL bias = s.bias[b * c.bias[0] + query.head * c.bias[1] + query.i * c.bias[2] + key * c.bias[3]];
            if (bias == NOT_SEEN) return NOT_SEEN;
            score = fma(bias, LOG2E, score);
        }
    }
    return score < -LARGEST ? -LARGEST : score; /* an infinite one is seen all the same; NaN stays NaN */
}
