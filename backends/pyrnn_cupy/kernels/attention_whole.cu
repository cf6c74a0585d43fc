/* What goes over whole rows of attention: merging splits of keys, weights from scores, and Σ dy·y. */
#include "attention_call.cuh"

/* Merge what splits of keys gave: a block takes a row. */
extern "C" __global__ void __launch_bounds__(THREADS) attention_merge(
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
extern "C" __global__ void __launch_bounds__(THREADS) attention_weights(
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
extern "C" __global__ void __launch_bounds__(THREADS) attention_along(
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
