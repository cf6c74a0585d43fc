/* What the kernels of attention have in common: tiles, their products, and scores.

   Compiled with -DREAL=float|double, -DCOMPUTE=EXACT|TF32|BF16 (the last two for float), -DTM (rows of a thread), -DCHUNK
   (features at a time: 16, 32 or 64), -DOUT (chunks of the output that a thread keeps sums of), -DSCORE=DOT|ADDITIVE|GIVEN and
   -DPLAIN (1: no bias, no mask, no dropout).

   (a) A block has ROWS rows and takes COLUMNS columns at a time, queries and keys or, for the gradients of keys, the other way
       round. A thread has TM rows and TN columns of the scores, and in the output the same rows.
   (b) EXACT: a thread multiplies its rows with its columns, which follow one another. The threads of a row are neighbours in a
       warp, so that weights pass from scores to output through memory of their own warp. TF32, BF16: a warp has 16 rows for every
       two of a thread's, and they and the columns lie as the matrix units have it, which take scores as weights from the
       registers where they gave them; operands are rounded as they are brought in.
   (c) The block's own rows lie in shared memory for as long as it runs. Of the other side there is one chunk of features at a
       time; the other blocks of a multiprocessor hide the wait for it.
   (d) A weight that is not seen is -0, one that is seen is no less than +0, be it dropped; of a score's gradient likewise. So
       where a tile has what is not finite, which alone makes a difference, products leave out what is not seen.
   (e) Exponentials are powers of 2: a score counts as log2(e) times itself.
   (f) Tiles of keys that none of a block's rows sees are left out, so causal attention costs half, and a window is linear. */
#pragma once
#include "device.cuh"
#include "attention_call.cuh"

#define DOT 0      /* scores: scale · q kᵀ */
#define ADDITIVE 1 /* Σ hidden · tanh(q + k) */
#define GIVEN 2    /* weights are given */

#define EXACT 0
#define TF32 1
#define BF16 2

#if COMPUTE == EXACT
#define TX 16 /* threads of a row */
#define TN 4
#define RUN 4                          /* of a thread's columns follow one another, from a multiple of it on */
#define ROW_RUN (TM < 4 ? 1 : 4)       /* of its rows */
#else
#define TX 4
#define TN 16
#define RUN 2
#define ROW_RUN 1
#define STEP (COMPUTE == BF16 ? 16 : 8) /* of the matrix units, in depth */
#endif
#define TY (THREADS / TX) /* threads of a column */
#define ROWS (TY * TM)
#define COLUMNS (TX * TN)
#define EACH (CHUNK / TX)              /* columns of a chunk of the output, of a thread */
#define VECTOR (16 / (int)sizeof(REAL)) /* elements in 16 bytes */
#define WEIGHTS_ROW (COLUMNS + VECTOR)
#define TILE (COLUMNS * TILE_ROW)

/* An operand as it lies in a tile. */
#if COMPUTE == BF16
typedef unsigned short Element;
#else
typedef REAL Element;
#endif
#define GAP (16 / (int)sizeof(Element)) /* so that rows lie in different banks */
#define TILE_ROW (CHUNK + GAP)

__device__ __forceinline__ REAL value(Element x) {
#if COMPUTE == BF16
    return __uint_as_float((unsigned)x << 16);
#else
    return x;
#endif
}

#define LARGEST (sizeof(REAL) == 4 ? (REAL)3.4028234e38 : (REAL)1.797693134862315e308)

/* --- tiles ------------------------------------------------------------------------------------------------------- */

/* A thread's row i, column j, and column j of a chunk of the output; and where row r of a tile of OF lies. EXACT: a thread's rows
   follow one another, but in memory the first ones of all threads do, then the second ones, so that threads read from
   different banks. */
#if COMPUTE == EXACT
__device__ __forceinline__ int row_number(int i) { return (int)threadIdx.x / TX * TM + i; }
__device__ __forceinline__ int column_number(int j) { return (int)threadIdx.x % TX * TN + j; }
__device__ __forceinline__ int output_column(int j) { return (int)threadIdx.x % TX * EACH + j; }
template <int EACH_OF, int OF> __device__ __forceinline__ int place(int r) { return r % EACH_OF * (OF / EACH_OF) + r / EACH_OF; }
#else
__device__ __forceinline__ int row_number(int i) { return (int)threadIdx.x / 32 * 8 * TM + i * 8 + (int)threadIdx.x % 32 / 4; }
__device__ __forceinline__ int column_number(int j) { return j / 2 * 8 + (int)threadIdx.x % 4 * 2 + j % 2; }
__device__ __forceinline__ int output_column(int j) { return column_number(j); }
template <int EACH_OF, int OF> __device__ __forceinline__ int place(int r) { return r; }
#endif
__device__ __forceinline__ int own_row(int i) { return place<TM, ROWS>(row_number(i)); }
__device__ __forceinline__ int tile_row(int j) { return place<TN, COLUMNS>(column_number(j)); }

/* A number as it is multiplied. */
__device__ __forceinline__ REAL operand(REAL x) {
#if COMPUTE == BF16
    return __uint_as_float(two_bf16(0, x));
#elif COMPUTE == TF32
    return __uint_as_float(to_tf32(x));
#else
    return x;
#endif
}

__device__ __forceinline__ bool is_finite(REAL x) { return x - x == 0; }

/* Bring features [column, column + CHUNK) of OF rows, at(r) each or null, to a tile: zeros where there is none. Tells whether
   all that the thread brought is finite. */
template <int EACH_OF, int OF, typename At>
__device__ __forceinline__ bool stage(Element *tile, int length, At at, int column, int columns, bool aligned) {
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
        for (int j = 0; j < VECTOR; j++) {
            pack.at[j] = operand(pack.at[j]);
            finite = finite && is_finite(pack.at[j]); /* as it is rounded: the largest numbers become infinite */
        }
        Element *to = tile + place<EACH_OF, OF>(r) * length + offset;
#if COMPUTE == BF16
        *(uint2 *)to = {two_bf16(pack.at[0], pack.at[1]), two_bf16(pack.at[2], pack.at[3])};
#else
        *(Pack<REAL> *)to = pack;
#endif
    }
    return finite;
}

/* Bring all features of a block's rows to shared memory, chunk after chunk; the length of a row there. */
__device__ __forceinline__ int row_length(int features) { return (features + CHUNK - 1) / CHUNK * CHUNK + GAP; }
template <typename At> __device__ __forceinline__ void stage_own(Element *own, At at, int features, bool aligned) {
    for (int f = 0; f < features; f += CHUNK) stage<TM, ROWS>(own + f, row_length(features), at, f, features, aligned);
}

/* The chunk of features that a block has staged of one side, and what it was. */
struct Staged {
    Element *tile;
    int *spoilt;       /* in shared memory: the last number that something not finite was in */
    int number;
    int array, chunk; /* of which array, as in c.aligned; 0: none that will be asked for */
    bool guarded;

    /* Bring in a chunk, unless it is there. */
    template <typename At> __device__ __forceinline__ void bring(const Call &c, int from, At at, int of, int columns) {
        if (array == from && chunk == of) return;
        __syncthreads();
        number++;
        if (!stage<TN, COLUMNS>(tile, TILE_ROW, at, of * CHUNK, columns, c.aligned & from)) *spoilt = number;
        __syncthreads();
        guarded = *spoilt == number;
        array = from;
        chunk = of;
    }
};

/* sum += Σ hidden · tanh(rows + tile), over the features of a chunk, of which `left` are there. */
__device__ __forceinline__ void add_rows(
    REAL (&sum)[TM][TN], const Element *rows, int rows_row, const Element *tile, const REAL *hidden, int left
) {
    for (int f = 0; f < min(left, CHUNK); f++) {
        const REAL factor = hidden[f];
        REAL theirs[TN];
#pragma unroll
        for (int j = 0; j < TN; j++) theirs[j] = value(tile[tile_row(j) * TILE_ROW + f]);
#pragma unroll
        for (int i = 0; i < TM; i++) {
            const REAL own = value(rows[own_row(i) * rows_row + f]);
#pragma unroll
            for (int j = 0; j < TN; j++) sum[i][j] = fma(factor, tanh(own + theirs[j]), sum[i][j]);
        }
    }
}

__device__ __forceinline__ bool is_hidden(REAL weight) {
    return sizeof(REAL) == 4 ? __float_as_uint((float)weight) == 0x80000000u
                             : __double_as_longlong((double)weight) == (long long)0x8000000000000000ull;
}

/* sum += weights · tile, over the tile's rows that are seen. */
__device__ __forceinline__ void multiply_seen(REAL (&sum)[TM][EACH], const REAL *weights, const Element *tile) {
#pragma unroll 1
    for (int k = 0; k < COLUMNS; k++)
#pragma unroll
        for (int i = 0; i < TM; i++) {
            const REAL own = weights[own_row(i) * WEIGHTS_ROW + k];
            if (is_hidden(own)) continue;
#pragma unroll
            for (int j = 0; j < EACH; j++)
                sum[i][j] = fma(own, value(tile[place<TN, COLUMNS>(k) * TILE_ROW + output_column(j)]), sum[i][j]);
        }
}

#if COMPUTE == EXACT
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
__device__ __forceinline__ void multiply_rows(REAL (&sum)[TM][TN], const Element *rows, int rows_row, const Element *tile) {
#pragma unroll 1
    for (int f = 0; f < CHUNK; f += 4) {
        REAL theirs[TN][4];
#pragma unroll
        for (int j = 0; j < TN; j++) load(theirs[j], tile + tile_row(j) * TILE_ROW + f);
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

/* sum += weights · tile, over the tile's rows. */
__device__ __forceinline__ void multiply_columns(REAL (&sum)[TM][EACH], const REAL *weights, const Element *tile) {
#pragma unroll 1
    for (int k = 0; k < COLUMNS; k += 4) {
        REAL theirs[4][EACH];
#pragma unroll
        for (int u = 0; u < 4; u++) load(theirs[u], tile + place<TN, COLUMNS>(k + u) * TILE_ROW + output_column(0));
#pragma unroll
        for (int i = 0; i < TM; i++) {
            REAL own[4];
            load(own, weights + own_row(i) * WEIGHTS_ROW + k);
#pragma unroll
            for (int u = 0; u < 4; u++)
#pragma unroll
                for (int j = 0; j < EACH; j++) sum[i][j] = fma(own[u], theirs[u][j], sum[i][j]);
        }
    }
}
#else
/* Fragments as the matrix units take them, of 16 rows or of twice 8 columns, and STEP terms from f on, or from row k of a tile. */
__device__ __forceinline__ void load_rows(unsigned (&a)[4], const Element *rows, int length, int i, int f) {
    const int lane = threadIdx.x % 32;
    load_matrices(a, rows + ((int)threadIdx.x / 32 * 8 * TM + i * 16 + lane % 16) * length + f + lane / 16 * (STEP / 2));
}
__device__ __forceinline__ void load_columns(unsigned (&b)[4], const Element *tile, int j, int f) {
    const int lane = threadIdx.x % 32;
    load_matrices(b, tile + (j * 16 + lane / 16 * 8 + lane % 8) * TILE_ROW + f + lane / 8 % 2 * (STEP / 2));
}
#if COMPUTE == BF16
__device__ __forceinline__ void load_output_columns(unsigned (&b)[4], const Element *tile, int k, int j) {
    const int lane = threadIdx.x % 32;
    load_turned_matrices(b, tile + (k + lane % 16) * TILE_ROW + j * 16 + lane / 16 * 8);
}
__device__ __forceinline__ void weights_fragment(unsigned (&a)[4], const REAL (&upper)[TN], const REAL (&lower)[TN], int k) {
#pragma unroll
    for (int u = 0; u < 2; u++) {
        a[2 * u] = two_bf16(upper[4 * k + 2 * u], upper[4 * k + 2 * u + 1]);
        a[2 * u + 1] = two_bf16(lower[4 * k + 2 * u], lower[4 * k + 2 * u + 1]);
    }
}
#else
/* The sum's order is free: a thread has two terms that follow one another, as its columns of the scores do. */
__device__ __forceinline__ void load_output_columns(unsigned (&b)[4], const Element *tile, int k, int j) {
    const int group = threadIdx.x % 32 / 4, within = threadIdx.x % 4;
#pragma unroll
    for (int u = 0; u < 4; u++) b[u] = __float_as_uint(tile[(k + within * 2 + u % 2) * TILE_ROW + j * 16 + u / 2 * 8 + group]);
}
__device__ __forceinline__ void weights_fragment(unsigned (&a)[4], const REAL (&upper)[TN], const REAL (&lower)[TN], int k) {
#pragma unroll
    for (int u = 0; u < 2; u++) {
        a[2 * u] = to_tf32(upper[2 * k + u]);
        a[2 * u + 1] = to_tf32(lower[2 * k + u]);
    }
}
#endif

/* sum += a · b for a thread's rows 2i, 2i + 1 and columns 4j, 4j + 1, 4j + 2, 4j + 3 and those of its warp. */
template <int COUNT>
__device__ __forceinline__ void multiply(REAL (&sum)[TM][COUNT], int i, int j, const unsigned (&a)[4], const unsigned (&b)[4]) {
#pragma unroll
    for (int half = 0; half < 2; half++) {
        REAL *upper = sum[2 * i] + 4 * j + 2 * half, *lower = sum[2 * i + 1] + 4 * j + 2 * half;
        float c[4] = {upper[0], upper[1], lower[0], lower[1]};
        const unsigned two[2] = {b[2 * half], b[2 * half + 1]};
#if COMPUTE == BF16
        mma_bf16(c, a, two);
#else
        mma_tf32(c, a, two);
#endif
        upper[0] = c[0];
        upper[1] = c[1];
        lower[0] = c[2];
        lower[1] = c[3];
    }
}

/* sum += rows · tileᵀ, over the features of a chunk. */
__device__ __forceinline__ void multiply_rows(REAL (&sum)[TM][TN], const Element *rows, int rows_row, const Element *tile) {
#pragma unroll 2
    for (int f = 0; f < CHUNK; f += STEP) {
        unsigned a[TM / 2][4], b[4];
#pragma unroll
        for (int i = 0; i < TM / 2; i++) load_rows(a[i], rows, rows_row, i, f);
#pragma unroll
        for (int j = 0; j < TN / 4; j++) {
            load_columns(b, tile, j, f);
#pragma unroll
            for (int i = 0; i < TM / 2; i++) multiply(sum, i, j, a[i], b);
        }
    }
}

/* sum += weights · tile, over the tile's rows, with a thread's own weights. */
__device__ __forceinline__ void multiply_columns(REAL (&sum)[TM][EACH], const REAL (&weights)[TM][TN], const Element *tile) {
#pragma unroll
    for (int k = 0; k < COLUMNS / STEP; k++) {
        unsigned a[TM / 2][4], b[4];
#pragma unroll
        for (int i = 0; i < TM / 2; i++) weights_fragment(a[i], weights[2 * i], weights[2 * i + 1], k);
#pragma unroll
        for (int j = 0; j < EACH / 4; j++) {
            load_output_columns(b, tile, k * STEP, j);
#pragma unroll
            for (int i = 0; i < TM / 2; i++) multiply(sum, i, j, a[i], b);
        }
    }
}
#endif

/* Columns of a thread that follow one another. */
struct alignas(RUN * sizeof(REAL) < 16 ? RUN * sizeof(REAL) : 16) Run {
    REAL at[RUN];
};

/* Write a thread's weights, for its warp to multiply with, or all of them as they are. */
template <bool FOR_PRODUCT = true>
__device__ __forceinline__ void write_weights(REAL *weights, const REAL (&own)[TM][TN]) {
    __syncwarp();
#pragma unroll
    for (int i = 0; i < TM; i++)
#pragma unroll
        for (int j = 0; j < TN; j += RUN) {
            Run run;
#pragma unroll
            for (int u = 0; u < RUN; u++) run.at[u] = FOR_PRODUCT ? operand(own[i][j + u]) : own[i][j + u];
            *(Run *)(weights + own_row(i) * WEIGHTS_ROW + column_number(j)) = run;
        }
    __syncwarp();
}

/* A thread's weights, and memory where its warp can read them. */
struct Weighed {
    const REAL (&own)[TM][TN];
    REAL *memory;

    __device__ __forceinline__ Weighed(const REAL (&own)[TM][TN], REAL *memory) : own(own), memory(memory) {
        if (COMPUTE == EXACT) write_weights(memory, own);
    }
    /* sum += weights · tile, over the tile's rows. */
    __device__ __forceinline__ void multiply(REAL (&sum)[TM][EACH], const Staged &staged) const {
        if (staged.guarded) {
            if (COMPUTE != EXACT) write_weights(memory, own);
            multiply_seen(sum, memory, staged.tile);
        } else
#if COMPUTE == EXACT
            multiply_columns(sum, memory, staged.tile);
#else
            multiply_columns(sum, own, staged.tile);
#endif
    }
};

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
__device__ __forceinline__ REAL scored(
    const Call &c, const Steering &s, REAL product, REAL factor, int b, const Query &query, int key
) {
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

/* The factor of a weight of four: 0 where it is dropped. */
__device__ __forceinline__ REAL kept(const Call &c, unsigned four, int key) { return four >> key % 4 & 1 ? (REAL)c.keep : (REAL)0; }
