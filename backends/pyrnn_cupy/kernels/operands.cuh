/* A block's own products: rows of states times the weights of its units, which stay in registers for the whole sequence.

   Compiled with -DUNITS (units of a block, a power of two up to 32), -DSUMS (sums for a unit), -DROUNDS (of the loop below),
   -DTHREADS, and -DCOMPUTE=EXACT|TF32|BF16. The depth of the sums is known when they run: what ROUNDS has beyond it is zeros.

   (a) EXACT: a thread has one unit and every SLICES-th group of four terms of its sums, ROUNDS groups. It multiplies them with four
       rows at a time, which all threads of a slice read from shared memory at once. Slices are added up in a fixed tree.
   (b) TF32, BF16: a warp has all units and every WARPS-th step of the matrix units in depth, ROUNDS steps.
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
    return (Operand)to_bf16(x);
#elif COMPUTE == TF32
    return __uint_as_float(to_tf32(x));
#else
    return x;
#endif
}

#if COMPUTE == EXACT
#define SLICES (THREADS / UNITS)
#define PADDED (ROUNDS * 4 * SLICES) /* depth as it is stored */
#define SHARED_ROW PADDED
#else
#define PADDED (ROUNDS * STEP * WARPS)
#define SHARED_ROW (PADDED + 16 / (int)sizeof(Operand)) /* so that eight rows lie in different banks */
#define TILES ((COLUMNS + 7) / 8)
#endif

/* The weight of sum `sum` and unit `unit` at depth k is at w[sum * sum_step + unit * unit_step + k * k_step]. */
struct Weights {
    const REAL *w;
    long long sum_step, unit_step, k_step;
    int first, units, depth; /* the block's first unit; how many there are in all */

    __device__ __forceinline__ REAL at(int sum, int unit, int k) const {
        return first + unit < units && k < depth ? w[sum * sum_step + (first + unit) * unit_step + k * k_step] : (REAL)0;
    }
};

#if COMPUTE == EXACT
struct Product {
    REAL w[SUMS][ROUNDS][4];

    __device__ __forceinline__ void load(const Weights &weights) {
        const int unit = threadIdx.x % UNITS, slice = threadIdx.x / UNITS;
#pragma unroll
        for (int s = 0; s < SUMS; s++)
#pragma unroll
            for (int i = 0; i < ROUNDS; i++)
#pragma unroll
                for (int j = 0; j < 4; j++) w[s][i][j] = weights.at(s, unit, (i * SLICES + slice) * 4 + j);
    }

    /* parts[row][warp][sum][unit] of `rows` rows of the tile. */
    __device__ __forceinline__ void run(const Operand *tile, int rows, REAL *parts) const {
        const int unit = threadIdx.x % UNITS, slice = threadIdx.x / UNITS, warp = threadIdx.x / 32;
        for (int r0 = 0; r0 < rows; r0 += 4) {
            REAL sum[4][SUMS] = {};
#pragma unroll
            for (int i = 0; i < ROUNDS; i++)
#pragma unroll
                for (int r = 0; r < 4; r++) {
                    REAL term[4];
                    const Pack<REAL> *from = (const Pack<REAL> *)(tile + (r0 + r) * SHARED_ROW + (i * SLICES + slice) * 4);
#pragma unroll
                    for (int j = 0; j < 4; j++) term[j] = from[j * (int)sizeof(REAL) / 16].at[j % (16 / (int)sizeof(REAL))];
#pragma unroll
                    for (int j = 0; j < 4; j++)
#pragma unroll
                        for (int s = 0; s < SUMS; s++) sum[r][s] = fma(w[s][i][j], term[j], sum[r][s]);
                }
#pragma unroll
            for (int r = 0; r < 4; r++)
#pragma unroll
                for (int s = 0; s < SUMS; s++) {
#pragma unroll
                    for (int other = UNITS; other < 32; other *= 2) sum[r][s] += __shfl_xor_sync(0xffffffffu, sum[r][s], other);
                    if (threadIdx.x % 32 < UNITS) parts[(((r0 + r) * WARPS + warp) * SUMS + s) * UNITS + unit] = sum[r][s];
                }
        }
    }
};
#else
struct Product {
    unsigned w[ROUNDS][TILES][2];

    __device__ __forceinline__ static unsigned pair(const Weights &weights, int column, int k) {
        const int sum = column / UNITS, unit = column % UNITS;
        if (column >= COLUMNS) return 0;
#if COMPUTE == BF16
        return to_bf16(weights.at(sum, unit, k)) | to_bf16(weights.at(sum, unit, k + 1)) << 16;
#else
        return to_tf32(weights.at(sum, unit, k));
#endif
    }

    __device__ __forceinline__ void load(const Weights &weights) {
        const int warp = threadIdx.x / 32, group = threadIdx.x % 32 / 4, within = threadIdx.x % 4;
        const int each = STEP / 8; /* terms in a register */
#pragma unroll
        for (int i = 0; i < ROUNDS; i++)
#pragma unroll
            for (int n = 0; n < TILES; n++)
#pragma unroll
                for (int half = 0; half < 2; half++)
                    w[i][n][half] = pair(weights, n * 8 + group, (i * WARPS + warp) * STEP + half * STEP / 2 + within * each);
    }

    __device__ __forceinline__ void run(const Operand *tile, int rows, REAL *parts) const {
        const int warp = threadIdx.x / 32, group = threadIdx.x % 32 / 4, within = threadIdx.x % 4;
        for (int r0 = 0; r0 < rows; r0 += 16) {
            float sum[TILES][4] = {};
#pragma unroll
            for (int i = 0; i < ROUNDS; i++) {
                unsigned a[4];
#pragma unroll
                for (int j = 0; j < 4; j++) {
                    const int row = r0 + group + j % 2 * 8, k = (i * WARPS + warp) * STEP + j / 2 * STEP / 2 + within * (STEP / 8);
                    a[j] = *(const unsigned *)(tile + row * SHARED_ROW + k);
                }
#pragma unroll
                for (int n = 0; n < TILES; n++) {
                    unsigned b[2] = {w[i][n][0], w[i][n][1]};
                    mma_bf16_or_tf32(sum[n], a, b);
                }
            }
#pragma unroll
            for (int n = 0; n < TILES; n++)
#pragma unroll
                for (int j = 0; j < 4; j++) {
                    const int row = r0 + group + j / 2 * 8, column = n * 8 + within * 2 + j % 2;
                    if (column < COLUMNS) parts[(row * WARPS + warp) * COLUMNS + column] = sum[n][j];
                }
        }
    }

    __device__ __forceinline__ static void mma_bf16_or_tf32(float (&c)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
#if COMPUTE == BF16
        mma_bf16(c, a, b);
#else
        mma_tf32(c, a, b);
#endif
    }
};
#endif

/* One sum of the parts. */
__device__ __forceinline__ REAL total(const REAL *parts, int row, int sum, int unit) {
    REAL value = 0;
#pragma unroll
    for (int warp = 0; warp < WARPS; warp++) value += parts[((row * WARPS + warp) * SUMS + sum) * UNITS + unit];
    return value;
}

/* Begin to copy rows of an exchange, `row_step` apart, into a tile. */
__device__ __forceinline__ void stage(Operand *tile, const Operand *from, long long row_step, int rows) {
    const int packs = PADDED * (int)sizeof(Operand) / 16;
    for (int i = threadIdx.x; i < rows * packs; i += THREADS) {
        const int row = i / packs, pack = i % packs;
        copy_async((int4 *)(tile + row * SHARED_ROW) + pack, (const int4 *)(from + row * row_step) + pack);
    }
}
