/* The basic family: ops on the last axis, a row of which is read and finished by a warp or, where rows are long, by a block (WIDTH
   threads); and rows of a table. */

#define THREADS 256
#define ROWS (THREADS / WIDTH) /* at a time, of a block */
#define COLUMNS 32             /* of a table, at a time */

/* The sum, or the largest, of a value of each of the WIDTH threads of a row, for all of them: in one order, by halves. */
template <bool LARGEST> __device__ __forceinline__ REAL over_row(REAL value) {
#pragma unroll
    for (int half = 16; half; half /= 2) {
        const REAL other = __shfl_xor_sync(0xffffffffu, value, half);
        value = LARGEST ? (other > value ? other : value) : value + other;
    }
#if WIDTH > 32
    __shared__ REAL of_warps[WIDTH / 32];
    __syncthreads();
    if (threadIdx.x % 32 == 0) of_warps[threadIdx.x / 32] = value;
    __syncthreads();
    value = of_warps[0];
    for (int warp = 1; warp < WIDTH / 32; warp++)
        value = LARGEST ? (of_warps[warp] > value ? of_warps[warp] : value) : value + of_warps[warp];
#endif
    return value;
}

__device__ __forceinline__ REAL not_a_number() { return (REAL)__int_as_float(0x7fffffff); }

/* A loop over the rows of the grid, and over a row's elements; all threads of a warp stay together. */
#define FOR_EACH_ROW(row, rows) \
    for (long long row = (long long)blockIdx.x * ROWS + threadIdx.x / WIDTH; row < rows; row += (long long)gridDim.x * ROWS)
#define FOR_ELEMENTS(i, count) for (long long i = threadIdx.x % WIDTH; i < count; i += WIDTH)

/* --- layer_norm ------------------------------------------------------------------------------------------------------- */

extern "C" __global__ void layer_norm_forward(
    const REAL *x, const REAL *weight, const REAL *bias, REAL eps, long long rows, long long features, REAL *means, REAL *scales, REAL *y
) {
    FOR_EACH_ROW(row, rows) {
        const REAL *from = x + row * features;
        REAL sum = 0, squares = 0;
        FOR_ELEMENTS(i, features) sum += from[i];
        const REAL mean = over_row<false>(sum) / (REAL)features;
        FOR_ELEMENTS(i, features) squares += (from[i] - mean) * (from[i] - mean);
        const REAL scale = 1 / sqrt(over_row<false>(squares) / (REAL)features + eps);
        FOR_ELEMENTS(i, features) {
            const REAL normal = (from[i] - mean) * scale;
            y[row * features + i] = (weight ? normal * weight[i] : normal) + (bias ? bias[i] : (REAL)0);
        }
        if (means && threadIdx.x % WIDTH == 0) means[row] = mean, scales[row] = scale;
    }
}

/* dx, or null; products: dy times the normalised x, whose sums down columns are the weight's gradient, or null. */
extern "C" __global__ void layer_norm_backward(
    const REAL *x, const REAL *weight, const REAL *means, const REAL *scales, const REAL *dy, long long rows, long long features,
    REAL *dx, REAL *products
) {
    FOR_EACH_ROW(row, rows) {
        const REAL *from = x + row * features, *grad = dy + row * features;
        const REAL mean = means[row], scale = scales[row];
        REAL sum = 0, along = 0;
        FOR_ELEMENTS(i, features) {
            const REAL normal = (from[i] - mean) * scale, d = weight ? grad[i] * weight[i] : grad[i];
            sum += d;
            along += d * normal;
            if (products) products[row * features + i] = grad[i] * normal;
        }
        sum = over_row<false>(sum) / (REAL)features;
        along = over_row<false>(along) / (REAL)features;
        if (dx) FOR_ELEMENTS(i, features) {
            const REAL normal = (from[i] - mean) * scale, d = weight ? grad[i] * weight[i] : grad[i];
            dx[row * features + i] = scale * (d - sum - normal * along);
        }
    }
}

/* --- softmax and cross_entropy ---------------------------------------------------------------------------------------- */

/* A row's largest element, and the sum of what e to the power of the difference to it is. */
__device__ __forceinline__ REAL exponentials(const REAL *row, long long count, REAL &largest) {
    REAL most = (REAL)__int_as_float(0xff800000), sum = 0; /* from minus infinity */
    FOR_ELEMENTS(i, count) most = row[i] > most ? row[i] : most;
    largest = over_row<true>(most);
    FOR_ELEMENTS(i, count) sum += exp(row[i] - largest);
    return over_row<false>(sum);
}

extern "C" __global__ void softmax_forward(const REAL *x, long long rows, long long features, REAL *y) {
    FOR_EACH_ROW(row, rows) {
        REAL largest;
        const REAL total = exponentials(x + row * features, features, largest);
        FOR_ELEMENTS(i, features) y[row * features + i] = exp(x[row * features + i] - largest) / total;
    }
}

extern "C" __global__ void softmax_backward(const REAL *y, const REAL *dy, long long rows, long long features, REAL *dx) {
    FOR_EACH_ROW(row, rows) {
        const long long first = row * features;
        REAL along = 0;
        FOR_ELEMENTS(i, features) along += dy[first + i] * y[first + i];
        along = over_row<false>(along);
        FOR_ELEMENTS(i, features) dx[first + i] = y[first + i] * (dy[first + i] - along);
    }
}

/* Of each row that the mask, where given, lets count: the loss, NaN where the target is no class, and what the backward needs. */
extern "C" __global__ void cross_entropy_forward(
    const REAL *logits, const long long *targets, const bool *mask, long long rows, long long classes, REAL *largests, REAL *totals,
    REAL *loss
) {
    FOR_EACH_ROW(row, rows) {
        const REAL *from = logits + row * classes;
        const long long target = targets[row];
        REAL largest = 0, total = 1, value = 0;
        if (!mask || mask[row]) {
            total = exponentials(from, classes, largest);
            value = target >= 0 && target < classes ? log(total) - (from[target] - largest) : not_a_number();
        }
        if (threadIdx.x % WIDTH) continue;
        loss[row] = value;
        if (totals) largests[row] = largest, totals[row] = total;
    }
}

extern "C" __global__ void cross_entropy_backward(
    const REAL *logits, const long long *targets, const bool *mask, const REAL *largests, const REAL *totals, const REAL *dloss,
    long long rows, long long classes, REAL *d_logits
) {
    FOR_EACH_ROW(row, rows) {
        const bool counts = !mask || mask[row];
        const long long target = targets[row];
        const REAL d = !counts ? (REAL)0 : target >= 0 && target < classes ? dloss[row] : not_a_number();
        FOR_ELEMENTS(i, classes) {
            const long long at = row * classes + i;
            d_logits[at] = counts ? (exp(logits[at] - largests[row]) / totals[row] - (REAL)(i == target)) * d : (REAL)0;
        }
    }
}

/* --- embedding -------------------------------------------------------------------------------------------------------- */

/* y (count, features) = rows of a table; NaN where there is no such row. */
extern "C" __global__ void embedding_forward(
    const REAL *table, const long long *indices, long long count, long long rows, long long features, REAL *y
) {
    for (long long at = (long long)blockIdx.x * THREADS + threadIdx.x; at < count * features; at += (long long)gridDim.x * THREADS) {
        const long long index = indices[at / features];
        y[at] = index >= 0 && index < rows ? table[index * features + at % features] : not_a_number();
    }
}

/* d_table: the sum of the rows of dy that took each of its rows. `order` has the places of dy sorted by what they took, those of
   row r from firsts[r] to before firsts[r + 1]. A block has one row of the table. */
extern "C" __global__ void __launch_bounds__(THREADS) embedding_backward(
    const REAL *dy, const long long *order, const long long *firsts, long long features, REAL *d_table
) {
    __shared__ REAL parts[THREADS / COLUMNS][COLUMNS];
    const int lane = threadIdx.x % COLUMNS, part = threadIdx.x / COLUMNS;
    const long long begin = firsts[blockIdx.x], end = firsts[blockIdx.x + 1];
    for (long long first = (long long)blockIdx.y * COLUMNS; first < features; first += (long long)gridDim.y * COLUMNS) {
        const long long column = first + lane;
        REAL sum = 0;
        if (column < features)
            for (long long p = begin + part; p < end; p += THREADS / COLUMNS) sum += dy[order[p] * features + column];
        parts[part][lane] = sum;
        __syncthreads();
        for (int half = THREADS / COLUMNS / 2; half; half /= 2) {
            if (part < half) parts[part][lane] += parts[part + half][lane];
            __syncthreads();
        }
        if (part == 0 && column < features) d_table[blockIdx.x * features + column] = parts[0][lane];
    }
}
