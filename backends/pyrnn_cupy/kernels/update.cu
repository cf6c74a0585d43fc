/* The optimisers' updates, each in one pass over memory, and the factors of dropout. The formulas are in reference/update.py. */
#include "philox.cuh"

#define FOR_EACH(at, count)                                                                       \
    for (long long at = (long long)blockIdx.x * blockDim.x + threadIdx.x; at < (count); at += (long long)gridDim.x * blockDim.x)

extern "C" __global__ void sgd_update(
    REAL *array, const REAL *grad, REAL *velocity, long long count, REAL lr, REAL momentum, REAL weight_decay, int nesterov
) {
    FOR_EACH(at, count) {
        REAL g = grad[at] + weight_decay * array[at];
        if (velocity) {
            const REAL v = velocity[at] = momentum * velocity[at] + g;
            g = nesterov ? g + momentum * v : v;
        }
        array[at] -= lr * g;
    }
}

/* decay: what is kept of the array; root, rate: √(1 - β₂ᵗ) and lr / (1 - β₁ᵗ). */
extern "C" __global__ void adam_update(
    REAL *array, const REAL *grad, REAL *mean, REAL *square, long long count, REAL decay, REAL weight_decay, REAL beta1, REAL beta2,
    REAL other1, REAL other2, REAL root, REAL eps, REAL rate
) {
    FOR_EACH(at, count) {
        const REAL w = array[at] * decay, g = grad[at] + weight_decay * w;
        const REAL m = mean[at] = beta1 * mean[at] + other1 * g;
        const REAL v = square[at] = beta2 * square[at] + other2 * g * g;
        array[at] = w - rate * m / (sqrt(v) / root + eps);
    }
}

/* factors: 0 where a random word of 32 bits is below `dropped`, else `scale`. Four words come from each counter. */
extern "C" __global__ void dropout_factors(unsigned seed, unsigned seed_high, long long dropped, REAL scale, long long count, REAL *factors) {
    FOR_EACH(quad, (count + 3) / 4) {
        unsigned word[4] = {(unsigned)quad, (unsigned)(quad >> 32), 0, 0};
        philox(word, seed, seed_high);
#pragma unroll
        for (int i = 0; i < 4; i++)
            if (quad * 4 + i < count) factors[quad * 4 + i] = word[i] < dropped ? (REAL)0 : scale;
    }
}
