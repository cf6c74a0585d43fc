/* A block's own products: rows of states times the weights of its units, which stay in the block for the whole sequence.

   Compiled with -DUNITS (units of a block, a power of two up to 32), -DSUMS (sums for a unit), -DROUNDS (of the loop below), -DHELD
   and -DPART (of these rounds), -DAT_ONCE (rows), -DTHREADS, and -DCOMPUTE=EXACT|TF32|BF16. The depth of the sums is known when
   they run: what ROUNDS has beyond it is zeros.

   (a) EXACT: a thread has one unit and every SLICES-th group of four terms of its sums, ROUNDS groups. It multiplies them with
       AT_ONCE rows at a time, which all threads of a slice read from shared memory at once. Slices are added up in a fixed tree.
   (b) TF32, BF16: a warp has all units and every WARPS-th step of the matrix units in depth, ROUNDS steps, for 16 rows at a time.
   (c) The weights of the first HELD rounds are in registers, those of `in_shared` more in shared memory. What finds no room there
       is in global memory, to be read in each step: from the second-level cache, if it is large enough.
   (d) Operands come to shared memory in tiles of some rows; and where these are too long for it, in parts of PART rounds.
   Results depend on nothing but a row's own operands: not on the rows beside it. */
#pragma once

#include "device.cuh"

#define EXACT 0
#define TF32 1
#define BF16 2
#define WARPS (THREADS / 32)
#define COLUMNS (SUMS * UNITS)

#if COMPUTE == BF16
typedef unsigned short Operand; /* as it lies in memory */
#define STEP 16                 /* of the matrix units, in depth */
#else
typedef REAL Operand;
#define STEP 8
#endif

__device__ __forceinline__ Operand to_operand(REAL x) {
#if COMPUTE == BF16
    return (Operand)two_bf16(x, 0);
#elif COMPUTE == TF32
    return __uint_as_float(to_tf32(x));
#else
    return x;
#endif
}

#if COMPUTE == EXACT
#define SLICES (THREADS / UNITS)
#define WIDTH (4 * SLICES) /* of a round, in depth */
#define SHARED_ROW (PART * WIDTH)
#else
#define WIDTH (STEP * WARPS)
#define SHARED_ROW (PART * WIDTH + 16 / (int)sizeof(Operand)) /* so that eight rows lie in different banks */
#define TILES ((COLUMNS + 7) / 8)
#endif
#define PADDED (ROUNDS * WIDTH) /* depth as it is stored */
#define PARTS ((ROUNDS + PART - 1) / PART)

/* The weight of sum `sum` and unit `unit` at depth k is at w[sum * sum_step + unit * unit_step + k * k_step]. */
struct Weights {
    const REAL *w;
    long long sum_step, unit_step, k_step;
    int first, units, depth; /* the block's first unit; how many there are in all */

    __device__ __forceinline__ REAL at(int sum, int unit, int k) const {
        return first + unit < units && k < depth ? w[sum * sum_step + (first + unit) * unit_step + k * k_step] : (REAL)0;
    }
};

/* A thread's weights of one round. */
#if COMPUTE == EXACT
typedef REAL Weight;
#define WEIGHTS (SUMS * 4)
#define PIECE 16 /* bytes that a thread reads of them at once */
#else
typedef unsigned Weight; /* a TF32, or two of bfloat16 */
#define WEIGHTS (TILES * 2)
#define PIECE 8
#endif
struct Round {
    Weight w[WEIGHTS];
};

/* Rounds of weights in memory, piece by piece, with those of neighbouring threads side by side. */
struct Rounds {
    struct alignas(PIECE) Piece {
        Weight at[PIECE / sizeof(Weight)];
    };
    static constexpr int EACH = PIECE / sizeof(Weight), PIECES = WEIGHTS / EACH;
    Piece *at;

    __device__ __forceinline__ Piece &piece(int i, int p) const { return at[(i * PIECES + p) * THREADS + threadIdx.x]; }
    __device__ __forceinline__ void put(int i, const Round &round) const {
#pragma unroll
        for (int j = 0; j < WEIGHTS; j++) piece(i, j / EACH).at[j % EACH] = round.w[j];
    }
    __device__ __forceinline__ Round get(int i) const {
        Round round;
#pragma unroll
        for (int p = 0; p < PIECES; p++) {
            const Piece from = piece(i, p);
#pragma unroll
            for (int j = 0; j < EACH; j++) round.w[p * EACH + j] = from.at[j];
        }
        return round;
    }
};
#define ROUND_PIECES (Rounds::PIECES * THREADS) /* of all threads */
/* Rounds that a thread fetches at once from global memory, so that enough of it is on its way. */
#define FETCHED ((127 + (int)sizeof(Round)) / (int)sizeof(Round))

/* The weights of round i, and what they give with a tile: sums of AT_ONCE rows. */
#if COMPUTE == EXACT
__device__ __forceinline__ Round load_round(const Weights &weights, int i) {
    const int unit = threadIdx.x % UNITS, slice = threadIdx.x / UNITS;
    Round round;
#pragma unroll
    for (int s = 0; s < SUMS; s++)
#pragma unroll
        for (int j = 0; j < 4; j++) round.w[s * 4 + j] = weights.at(s, unit, (i * SLICES + slice) * 4 + j);
    return round;
}

struct Sums {
    REAL of[AT_ONCE][SUMS];

    /* Add a round, the i-th of its part, of the rows from r0. */
    __device__ __forceinline__ void add(const Round &round, int i, const Operand *tile, int r0) {
        const int slice = threadIdx.x / UNITS;
#pragma unroll
        for (int r = 0; r < AT_ONCE; r++) {
            REAL term[4];
            const Pack<REAL> *from = (const Pack<REAL> *)(tile + (r0 + r) * SHARED_ROW + (i * SLICES + slice) * 4);
#pragma unroll
            for (int j = 0; j < 4; j++) term[j] = from[j * (int)sizeof(REAL) / 16].at[j % (16 / (int)sizeof(REAL))];
#pragma unroll
            for (int j = 0; j < 4; j++)
#pragma unroll
                for (int s = 0; s < SUMS; s++) of[r][s] = fma(round.w[s * 4 + j], term[j], of[r][s]);
        }
    }

    /* Write parts[row][warp][sum][unit]. */
    __device__ __forceinline__ void write(REAL *parts, int r0) {
        const int unit = threadIdx.x % UNITS, warp = threadIdx.x / 32;
#pragma unroll
        for (int r = 0; r < AT_ONCE; r++)
#pragma unroll
            for (int s = 0; s < SUMS; s++) {
#pragma unroll
                for (int other = UNITS; other < 32; other *= 2) of[r][s] += __shfl_xor_sync(0xffffffffu, of[r][s], other);
                if (threadIdx.x % 32 < UNITS) parts[(((r0 + r) * WARPS + warp) * SUMS + s) * UNITS + unit] = of[r][s];
            }
    }
};
#else
__device__ __forceinline__ Weight load_weight(const Weights &weights, int column, int k) {
    const int sum = column / UNITS, unit = column % UNITS;
    if (column >= COLUMNS) return 0;
#if COMPUTE == BF16
    return two_bf16(weights.at(sum, unit, k), weights.at(sum, unit, k + 1));
#else
    return to_tf32(weights.at(sum, unit, k));
#endif
}
__device__ __forceinline__ Round load_round(const Weights &weights, int i) {
    const int warp = threadIdx.x / 32, group = threadIdx.x % 32 / 4, within = threadIdx.x % 4;
    const int each = STEP / 8; /* terms in a register */
    Round round;
#pragma unroll
    for (int n = 0; n < TILES; n++)
#pragma unroll
        for (int half = 0; half < 2; half++)
            round.w[n * 2 + half] = load_weight(weights, n * 8 + group, (i * WARPS + warp) * STEP + half * STEP / 2 + within * each);
    return round;
}

struct Sums {
    float of[TILES][4];

    __device__ __forceinline__ void add(const Round &round, int i, const Operand *tile, int r0) {
        const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
        unsigned a[4];
        load_matrices(a, tile + (r0 + lane % 16) * SHARED_ROW + (i * WARPS + warp) * STEP + lane / 16 * (STEP / 2));
#pragma unroll
        for (int n = 0; n < TILES; n++) {
            const unsigned b[2] = {round.w[n * 2], round.w[n * 2 + 1]};
#if COMPUTE == BF16
            mma_bf16(of[n], a, b);
#else
            mma_tf32(of[n], a, b);
#endif
        }
    }

    __device__ __forceinline__ void write(REAL *parts, int r0) {
        const int warp = threadIdx.x / 32, group = threadIdx.x % 32 / 4, within = threadIdx.x % 4;
#pragma unroll
        for (int n = 0; n < TILES; n++)
#pragma unroll
            for (int j = 0; j < 4; j++) {
                const int row = r0 + group + j / 2 * 8, column = n * 8 + within * 2 + j % 2;
                if (column < COLUMNS) parts[(row * WARPS + warp) * COLUMNS + column] = of[n][j];
            }
    }
};
#endif

struct Product {
    Round held[HELD];
    Rounds shared, others;
    int in_shared;

    /* With shared memory for so many rounds, and global memory where each block has its own. */
    __device__ __forceinline__ Product(Rounds::Piece *shared, int in_shared, Rounds::Piece *others)
        : shared{shared}, others{others}, in_shared(in_shared) {
        this->others.at += (long long)(blockIdx.y * gridDim.x + blockIdx.x) * (ROUNDS - HELD - in_shared) * ROUND_PIECES;
    }

    /* A thread reads no weights but those that it has put there. */
    __device__ __forceinline__ void load(const Weights &weights) {
#pragma unroll
        for (int i = 0; i < HELD; i++) held[i] = load_round(weights, i);
        for (int i = HELD; i < ROUNDS; i++) {
            const Round round = load_round(weights, i);
            if (i < HELD + in_shared) shared.put(i - HELD, round);
            else others.put(i - HELD - in_shared, round);
        }
    }

    /* Add a part of the products of the rows from r0. */
    __device__ __forceinline__ void add(Sums &sums, int part, const Operand *tile, int r0) const {
        const int begin = part * PART, end = min(begin + PART, ROUNDS), shared_end = HELD + in_shared;
#pragma unroll
        for (int i = 0; i < HELD; i++) /* all, as registers have no index that is known later */
            if (i / PART == part) sums.add(held[i], i % PART, tile, r0);
        if (end > HELD) {
            for (int i = max(begin, HELD); i < min(end, shared_end); i++) sums.add(shared.get(i - HELD), i - begin, tile, r0);
#pragma unroll FETCHED
            for (int i = max(begin, shared_end); i < end; i++) sums.add(others.get(i - shared_end), i - begin, tile, r0);
        }
    }
};

/* One sum of the parts. */
__device__ __forceinline__ REAL total(const REAL *parts, int row, int sum, int unit) {
    REAL value = 0;
#pragma unroll
    for (int warp = 0; warp < WARPS; warp++) value += parts[((row * WARPS + warp) * SUMS + sum) * UNITS + unit];
    return value;
}

/* Begin to copy a part of rows of an exchange, `row_step` apart, into a tile. */
__device__ __forceinline__ void stage(Operand *tile, const Operand *from, long long row_step, int rows, int part) {
    const int first = part * PART, packs = (min(first + PART, ROUNDS) - first) * WIDTH * (int)sizeof(Operand) / 16;
    for (int i = threadIdx.x; i < rows * packs; i += THREADS) {
        const int row = i / packs, pack = i % packs;
        copy_async((int4 *)(tile + row * SHARED_ROW) + pack, (const int4 *)(from + row * row_step + first * WIDTH) + pack);
    }
}
