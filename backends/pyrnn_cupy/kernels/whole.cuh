/* What a convolution sees of sequences: `before` rows of carried context, then the steps, and zeros past a row's length. */
#pragma once

struct Whole {
    const REAL *x, *left; /* left: (B, before, channels), or null for zeros */
    const int *lengths;   /* null where all T steps are valid */
    long long batch_step, time_step, before;
    int T, channels;

    __device__ __forceinline__ int length(int b) const { return lengths ? lengths[b] : T; }

    /* Row s of sequence b, or null where it is zeros: padding is never read. */
    __device__ __forceinline__ const REAL *row(int b, long long s, int length) const {
        if (s < before) return left ? left + (b * before + s) * channels : nullptr;
        return s - before < length ? x + b * batch_step + (s - before) * time_step : nullptr;
    }

    __device__ __forceinline__ REAL at(int b, long long s, int length, int channel) const {
        const REAL *from = row(b, s, length);
        return from ? from[channel] : (REAL)0;
    }
};

/* A kernel's first arguments. */
#define WHOLE                                                                                                    \
    const REAL *x, const REAL *left, const int *lengths, long long batch_step, long long time_step, long long before, int T, \
        int channels
#define THE_WHOLE {x, left, lengths, batch_step, time_step, before, T, channels}

/* A loop over `count` elements by all threads of the grid. */
#define FOR_EACH(at, count)                                                                     \
    for (long long at = (long long)blockIdx.x * blockDim.x + threadIdx.x; at < (long long)(count); \
         at += (long long)gridDim.x * blockDim.x)
