/* Sums down columns, in a fixed tree: each thread of a block adds every ROWS-th row of its share, then the block's rows are added up. */

#define LANES 32
#define ROWS 16

/* out (gridDim.y, columns) = sums of each `share` rows of x. Row r is step r % T of sequence r / T; without lengths all count. */
extern "C" __global__ void __launch_bounds__(LANES *ROWS) column_sums(
    const REAL *x, const int *lengths, long long batch_step, long long time_step, int T, long long rows, long long share,
    long long columns, REAL *out
) {
    __shared__ REAL of_rows[ROWS][LANES];
    const int lane = threadIdx.x % LANES, row = threadIdx.x / LANES;
    const long long column = (long long)blockIdx.x * LANES + lane, end = min((blockIdx.y + 1) * share, rows);
    REAL sum = 0;
    if (column < columns)
        for (long long r = blockIdx.y * share + row; r < end; r += ROWS) {
            const long long b = r / T, t = r % T;
            if (!lengths || t < lengths[b]) sum += x[b * batch_step + t * time_step + column];
        }
    of_rows[row][lane] = sum;
    __syncthreads();
    for (int half = ROWS / 2; half; half /= 2) {
        if (row < half) of_rows[row][lane] += of_rows[row + half][lane];
        __syncthreads();
    }
    if (row == 0 && column < columns) out[blockIdx.y * columns + column] = of_rows[0][lane];
}
