/* The additive score backwards: from the gradients d of scores Σ hidden · tanh(rows + columns) to those of rows, and of hidden.

   A thread has one feature of ROWS_AT_ONCE rows and goes over all columns, once for each side: what is a row and what a column
   is told by strides. Neighbours in a warp have neighbouring features, so a warp reads d from one place, and columns side by
   side. What is not seen, whose d is -0, has no part in it, be it NaN. Compiled with -DREAL=float|double. */
#define THREADS 128
#define ROWS_AT_ONCE 4

__device__ __forceinline__ bool is_hidden(REAL weight) {
    return sizeof(REAL) == 4 ? __float_as_uint((float)weight) == 0x80000000u
                             : __double_as_longlong((double)weight) == (long long)0x8000000000000000ull;
}

/* rows (B, R, A), columns (B, C, A), d (B, R, C) by strides; drows (B, R, A), and of each row dhidden (B, R, A), or null. */
extern "C" __global__ void __launch_bounds__(THREADS) additive_rows(
    const REAL *rows, const REAL *columns, const REAL *hidden, const REAL *d, long long d_batch, long long d_row,
    long long d_column, int B, int R, int C, int A, REAL *drows, REAL *dhidden
) {
    const int feature_blocks = (A + THREADS - 1) / THREADS, row_blocks = (R + ROWS_AT_ONCE - 1) / ROWS_AT_ONCE;
    const int a = (int)(blockIdx.x % feature_blocks) * THREADS + (int)threadIdx.x;
    const int first = (int)(blockIdx.x / feature_blocks % row_blocks) * ROWS_AT_ONCE;
    const long long b = blockIdx.x / feature_blocks / row_blocks;
    if (a >= A) return;
    REAL own[ROWS_AT_ONCE], sum[ROWS_AT_ONCE] = {}, sum_hidden[ROWS_AT_ONCE] = {};
#pragma unroll
    for (int r = 0; r < ROWS_AT_ONCE; r++) own[r] = first + r < R ? rows[(b * R + first + r) * A + a] : (REAL)0;
    for (int c = 0; c < C; c++) {
        const REAL theirs = columns[(b * C + c) * A + a];
#pragma unroll
        for (int r = 0; r < ROWS_AT_ONCE; r++) {
            const REAL weight = first + r < R ? d[b * d_batch + (first + r) * d_row + c * d_column] : -(REAL)0;
            if (is_hidden(weight)) continue;
            const REAL h = tanh(own[r] + theirs);
            sum[r] = fma(weight, 1 - h * h, sum[r]);
            sum_hidden[r] = fma(weight, h, sum_hidden[r]);
        }
    }
#pragma unroll
    for (int r = 0; r < ROWS_AT_ONCE; r++) {
        if (first + r >= R) continue;
        drows[(b * R + first + r) * A + a] = sum[r] * hidden[a];
        if (dhidden) dhidden[(b * R + first + r) * A + a] = sum_hidden[r];
    }
}
