/* Causal convolution with few channels, in groups or of few steps: products with the taps as part of the sum.

   (a) A block has ROWS rows of the result and COLUMNS of its columns, TALL times WIDE of them a thread, in registers. DEPTH
       terms of each at a time lie in shared memory.
   (b) Nothing is copied before: a row of the operand is where `Whole` finds it, in the sequence, in the context, or nowhere.
   (c) The gradient of the inputs is a convolution too: of y's gradient, the taps turned.
   (d) The gradient of the weights is added up over parts of all steps, and the parts then by `column_sums`: one fixed tree. */
#include "whole.cuh"

#define THREADS 128
#define COLUMN_THREADS 8
#define ROW_THREADS (THREADS / COLUMN_THREADS)
#define TALL (ROWS / ROW_THREADS)
#define WIDE (COLUMNS / COLUMN_THREADS)

template <int N> struct alignas(N * sizeof(REAL) > 16 ? 16 : N * sizeof(REAL)) Run {
    REAL of[N];
};
#define ROW_RUN (TALL < 4 ? TALL : 4)
#define COLUMN_RUN (WIDE < 4 ? WIDE : 4)
#define ROW_STRIDE (ROWS + 4) /* so that a column is written to several banks */

/* A thread's part of the block's tile: runs of neighbours, read from shared memory at once. */
struct Sums {
    REAL of[TALL][WIDE];

    static __device__ __forceinline__ int row(int i) {
        return i / ROW_RUN * ROW_RUN * ROW_THREADS + threadIdx.x / COLUMN_THREADS * ROW_RUN + i % ROW_RUN;
    }
    static __device__ __forceinline__ int column(int j) {
        return j / COLUMN_RUN * COLUMN_RUN * COLUMN_THREADS + threadIdx.x % COLUMN_THREADS * COLUMN_RUN + j % COLUMN_RUN;
    }

    __device__ __forceinline__ void add(const REAL *a, const REAL *b) {
#pragma unroll
        for (int k = 0; k < DEPTH; k++) {
            Run<ROW_RUN> left[TALL / ROW_RUN];
            Run<COLUMN_RUN> right[WIDE / COLUMN_RUN];
#pragma unroll
            for (int i = 0; i < TALL / ROW_RUN; i++) left[i] = *(const Run<ROW_RUN> *)(a + k * ROW_STRIDE + row(i * ROW_RUN));
#pragma unroll
            for (int j = 0; j < WIDE / COLUMN_RUN; j++)
                right[j] = *(const Run<COLUMN_RUN> *)(b + k * COLUMNS + column(j * COLUMN_RUN));
#pragma unroll
            for (int i = 0; i < TALL; i++)
#pragma unroll
                for (int j = 0; j < WIDE; j++)
                    of[i][j] += left[i / ROW_RUN].of[i % ROW_RUN] * right[j / COLUMN_RUN].of[j % COLUMN_RUN];
        }
    }
};

/* out (B, rows, groups * outputs): at row s the sum over taps k of row s + k * dilation of the whole times weights[group][k], and
   the bias. With `masked`, rows past the length are 0. weights (groups, taps, inputs, outputs), inputs being those of a group. */
extern "C" __global__ void __launch_bounds__(THREADS, 3) convolve(
    WHOLE, int B, int groups, int taps, long long dilation, const REAL *weights, const REAL *bias, int masked,
    long long rows, int outputs, REAL *out
) {
    __shared__ alignas(16) REAL a[DEPTH * ROW_STRIDE];
    __shared__ alignas(16) REAL b[DEPTH * COLUMNS];
    __shared__ const REAL *from[ROWS]; /* the operand's row at the present tap */
    __shared__ int busy;
    const Whole whole = THE_WHOLE;
    const int inputs = channels / groups, across = (outputs + COLUMNS - 1) / COLUMNS;
    const long long first = blockIdx.x / ((long long)across * groups) * ROWS;
    const int group = (int)(blockIdx.x / across % groups), column = (int)(blockIdx.x % across) * COLUMNS;
    weights += (long long)group * taps * inputs * outputs;

    /* ROWS is THREADS at most: a thread looks after one row of the tile. */
    const long long own = first + threadIdx.x;
    const bool there = threadIdx.x < ROWS && own < B * rows;
    const int sequence = there ? (int)(own / rows) : 0;
    const long long step = there ? own % rows : 0;
    const int length = there ? whole.length(sequence) : 0;
    const bool valid = there && (!masked || step < length);
    if (threadIdx.x == 0) busy = 0;
    __syncthreads();
    if (valid) busy = 1;
    __syncthreads();

    Sums sums = {};
    for (int tap = 0; busy && tap < taps; tap++) {
        if (threadIdx.x < ROWS) {
            const REAL *row = valid ? whole.row(sequence, step + tap * dilation, length) : nullptr;
            from[threadIdx.x] = row ? row + group * inputs : nullptr;
        }
        __syncthreads();
        for (int i0 = 0; i0 < inputs; i0 += DEPTH) {
            const int i = i0 + threadIdx.x % DEPTH;
#pragma unroll
            for (int r = 0; r < ROWS; r += THREADS / DEPTH) {
                const int at = r + threadIdx.x / DEPTH;
                if (at < ROWS) a[threadIdx.x % DEPTH * ROW_STRIDE + at] = from[at] && i < inputs ? from[at][i] : (REAL)0;
            }
#pragma unroll
            for (int p = 0; p < DEPTH * COLUMNS; p += THREADS) {
                const int at = p + threadIdx.x, k = at / COLUMNS, o = column + at % COLUMNS;
                if (at < DEPTH * COLUMNS)
                    b[at] = i0 + k < inputs && o < outputs ? weights[((long long)tap * inputs + i0 + k) * outputs + o] : (REAL)0;
            }
            __syncthreads();
            sums.add(a, b);
            __syncthreads();
        }
    }
    const int all = groups * outputs;
#pragma unroll
    for (int i = 0; i < TALL; i++) {
        const long long m = first + Sums::row(i);
        if (m >= B * rows) continue;
        const bool padding = masked && m % rows >= whole.length((int)(m / rows));
#pragma unroll
        for (int j = 0; j < WIDE; j++) {
            const int o = column + Sums::column(j), channel = group * outputs + o;
            if (o >= outputs) continue;
            out[m * all + channel] = padding ? (REAL)0 : sums.of[i][j] + (bias ? bias[channel] : (REAL)0);
        }
    }
}

/* parts (gridDim.y, groups, taps, inputs, outputs): the gradient of the weights, of each `share` steps of all B * T; dy is
   (B, T, groups * outputs). Rows of the tile are the taps' inputs, its depth are steps. */
extern "C" __global__ void __launch_bounds__(THREADS, 3) convolve_weights(
    WHOLE, int B, int groups, int taps, long long dilation, const REAL *dy, long long dy_batch_step, long long dy_time_step,
    long long share, int outputs, REAL *parts
) {
    __shared__ alignas(16) REAL a[DEPTH * ROW_STRIDE];
    __shared__ alignas(16) REAL b[DEPTH * COLUMNS];
    __shared__ int sequences[DEPTH], steps[DEPTH], ends[DEPTH]; /* of a step that is padding the sequence is -1 */
    __shared__ int busy;
    const Whole whole = THE_WHOLE;
    const int inputs = channels / groups, across = (outputs + COLUMNS - 1) / COLUMNS, terms = taps * inputs;
    const int down = (terms + ROWS - 1) / ROWS;
    const int column = (int)(blockIdx.x % across) * COLUMNS, first = (int)(blockIdx.x / across % down) * ROWS;
    const int group = (int)(blockIdx.x / across / down);
    const int term = first + threadIdx.x % ROWS, tap = term / max(1, inputs), input = group * inputs + term % max(1, inputs);
    const long long begin = blockIdx.y * share, end = min(begin + share, (long long)B * T);
    Sums sums = {};
    for (long long m0 = begin; m0 < end; m0 += DEPTH) {
        if (threadIdx.x == 0) busy = 0;
        __syncthreads();
        if (threadIdx.x < DEPTH) {
            const long long m = m0 + threadIdx.x;
            const int sequence = m < end ? (int)(m / T) : 0, length = m < end ? whole.length(sequence) : 0;
            const int t = m < end ? (int)(m % T) : 0;
            sequences[threadIdx.x] = t < length ? sequence : -1;
            steps[threadIdx.x] = t;
            ends[threadIdx.x] = length;
            if (t < length) busy = 1;
        }
        __syncthreads();
        if (busy) {
#pragma unroll
            for (int p = 0; p < DEPTH; p += THREADS / ROWS) {
                const int k = p + threadIdx.x / ROWS;
                if (k < DEPTH)
                    a[k * ROW_STRIDE + threadIdx.x % ROWS] =
                        sequences[k] >= 0 && term < terms ? whole.at(sequences[k], steps[k] + tap * dilation, ends[k], input) : (REAL)0;
            }
#pragma unroll
            for (int p = 0; p < DEPTH * COLUMNS; p += THREADS) {
                const int at = p + threadIdx.x, k = at / COLUMNS, o = column + at % COLUMNS;
                if (at < DEPTH * COLUMNS)
                    b[at] = sequences[k] >= 0 && o < outputs
                                ? dy[sequences[k] * dy_batch_step + steps[k] * dy_time_step + group * outputs + o]
                                : (REAL)0;
            }
        }
        __syncthreads();
        if (busy) sums.add(a, b);
        __syncthreads();
    }
    parts += ((long long)blockIdx.y * groups + group) * terms * outputs;
#pragma unroll
    for (int i = 0; i < TALL; i++)
#pragma unroll
        for (int j = 0; j < WIDE; j++) {
            const int row = first + Sums::row(i), o = column + Sums::column(j);
            if (row < terms && o < outputs) parts[(long long)row * outputs + o] = sums.of[i][j];
        }
}
