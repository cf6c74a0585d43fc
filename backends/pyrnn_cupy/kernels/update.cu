/* The optimisers' updates, each in one pass over memory, and the factors of dropout. The formulas are in reference/update.py. */

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

/* factors: 0 where a random word of 32 bits is below `dropped`, else `scale`. Four words come from each counter: Philox4x32-10
   (Salmon et al. 2011). */
extern "C" __global__ void dropout_factors(unsigned seed, unsigned seed_high, long long dropped, REAL scale, long long count, REAL *factors) {
    FOR_EACH(quad, (count + 3) / 4) {
        unsigned word[4] = {(unsigned)quad, (unsigned)(quad >> 32), 0, 0}, key = seed, key_high = seed_high;
#pragma unroll
        for (int round = 0; round < 10; round++) {
            const unsigned low0 = 0xD2511F53u * word[0], high0 = __umulhi(0xD2511F53u, word[0]);
            const unsigned low1 = 0xCD9E8D57u * word[2], high1 = __umulhi(0xCD9E8D57u, word[2]);
            word[0] = high1 ^ word[1] ^ key;
            word[1] = low1;
            word[2] = high0 ^ word[3] ^ key_high;
            word[3] = low0;
            key += 0x9E3779B9u;
            key_high += 0xBB67AE85u;
        }
#pragma unroll
        for (int i = 0; i < 4; i++)
            if (quad * 4 + i < count) factors[quad * 4 + i] = word[i] < dropped ? (REAL)0 : scale;
    }
}
