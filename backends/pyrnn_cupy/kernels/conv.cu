/* Causal convolution: what stands around products by a matrix library, one for each tap; and the depthwise one, each channel on its
   own, which memory bounds:

   (a) A chain is STRIP steps of a channel, a dilation apart. A thread goes through a chain with the inputs in a window of registers,
       so that each is read once for all taps. Chains are dealt out with the channels fastest, so that neighbours read neighbours.
   (b) The gradient of the inputs is a convolution too: of y's gradient, the taps turned. */
#include "whole.cuh"

#define STRIP 8
#define TAPS 8   /* whose gradients a thread adds up at once */
#define LANES 32 /* channels, and */
#define ROWS 8   /* chains of a block that does */

/* --- around products by a matrix library ------------------------------------------------------------------------------ */

/* out (B, rows, channels) = the whole, zeros after it. */
extern "C" __global__ void lay_out(WHOLE, int B, long long rows, REAL *out) {
    const Whole whole = THE_WHOLE;
    FOR_EACH(at, B * rows * channels) {
        const int b = (int)(at / channels / rows);
        out[at] = whole.at(b, at / channels % rows, whole.length(b), (int)(at % channels));
    }
}

/* out (B, before, channels) = the last rows of the whole: the context after each row's last valid step. */
extern "C" __global__ void last_rows(WHOLE, int B, REAL *out) {
    const Whole whole = THE_WHOLE;
    FOR_EACH(at, B * before * channels) {
        const int b = (int)(at / channels / before), length = whole.length(b);
        out[at] = whole.at(b, length + at / channels % before, length, (int)(at % channels));
    }
}

/* out (B, before + T, channels): add what reaches it through `last_rows`, of whose result `last` is the gradient. */
extern "C" __global__ void add_last_rows(const int *lengths, const REAL *last, long long before, int T, int channels, int B, REAL *out) {
    FOR_EACH(at, B * before * channels) {
        const long long b = at / channels / before, s = (lengths ? lengths[b] : T) + at / channels % before;
        out[(b * (before + T) + s) * channels + at % channels] += last[at];
    }
}

/* y (B, T, outputs): add the bias, where there is one, and let padding be 0. */
extern "C" __global__ void finish(const int *lengths, const REAL *bias, int T, int outputs, int B, REAL *y) {
    FOR_EACH(at, (long long)B * T * outputs) {
        const int b = (int)(at / outputs / T), t = (int)(at / outputs % T);
        y[at] = t < (lengths ? lengths[b] : T) ? y[at] + (bias ? bias[at % outputs] : (REAL)0) : (REAL)0;
    }
}

/* --- depthwise ---------------------------------------------------------------------------------------------------------- */

/* Chain `chain` of `rows` rows begins at `start`; its row j is at start + j * dilation. */
struct Chains {
    long long rows, dilation, phases, each;

    __device__ __forceinline__ Chains(long long rows, long long dilation)
        : rows(rows), dilation(dilation), phases(min(dilation, rows)) {
        each = phases * (((rows + dilation - 1) / dilation + STRIP - 1) / STRIP); /* chains of a sequence */
    }
    __device__ __forceinline__ long long start(long long chain) const {
        return chain % each / phases * STRIP * dilation + chain % phases;
    }
};

/* out (B, rows, outputs): at row s the sum over taps k of row s + k * dilation of the whole times weights[k], and the bias. An output has
   `fan_in` inputs, or an input `fan_out` outputs; one of the two is 1. weights (taps, outputs * fan_in). With `masked`, rows past
   the length are 0. */
extern "C" __global__ void depthwise(
    WHOLE, int B, int fan_in, int fan_out, int taps, long long dilation, const REAL *weights, const REAL *bias, int masked,
    long long rows, int outputs, REAL *out
) {
    const Whole whole = THE_WHOLE;
    const Chains chains(rows, dilation);
    FOR_EACH(at, B * chains.each * outputs) {
        const int o = (int)(at % outputs), b = (int)(at / outputs / chains.each), length = whole.length(b);
        const long long start = chains.start(at / outputs % chains.each);
        if (masked && start >= length) {
            for (int j = 0; j < STRIP; j++)
                if (start + j * dilation < rows) out[(b * rows + start + j * dilation) * outputs + o] = 0;
            continue;
        }
        REAL sum[STRIP] = {};
        for (int f = 0; f < fan_in; f++) {
            const int channel = o * fan_in / fan_out + f;
            REAL window[STRIP];
#pragma unroll
            for (int j = 1; j < STRIP; j++) window[j] = whole.at(b, start + (j - 1) * dilation, length, channel);
            for (int k = 0; k < taps; k++) {
                const REAL w = weights[(long long)k * outputs * fan_in + o * fan_in + f];
#pragma unroll
                for (int j = 1; j < STRIP; j++) window[j - 1] = window[j];
                window[STRIP - 1] = whole.at(b, start + (k + STRIP - 1) * dilation, length, channel);
#pragma unroll
                for (int j = 0; j < STRIP; j++) sum[j] += w * window[j];
            }
        }
#pragma unroll
        for (int j = 0; j < STRIP; j++) {
            const long long s = start + j * dilation;
            if (s < rows) out[(b * rows + s) * outputs + o] = masked && s >= length ? (REAL)0 : sum[j] + (bias ? bias[o] : (REAL)0);
        }
    }
}

/* parts (gridDim.y, taps, outputs): the gradient of the weights over each `share` chains; blockIdx.z has TAPS of the taps. */
extern "C" __global__ void __launch_bounds__(LANES *ROWS) depthwise_weights(
    WHOLE, int B, int fan_out, int taps, long long dilation, const REAL *dy, long long dy_batch_step, long long dy_time_step,
    long long share, int outputs, REAL *parts
) {
    __shared__ REAL of_rows[ROWS][TAPS][LANES];
    const Whole whole = THE_WHOLE;
    const Chains chains(T, dilation);
    const int lane = threadIdx.x % LANES, row = threadIdx.x / LANES, o = blockIdx.x * LANES + lane, k0 = blockIdx.z * TAPS;
    const long long end = min((blockIdx.y + 1) * share, B * chains.each);
    REAL sum[TAPS] = {};
    if (o < outputs)
        for (long long chain = blockIdx.y * share + row; chain < end; chain += ROWS) {
            const int b = (int)(chain / chains.each), length = whole.length(b), channel = o / fan_out;
            const long long start = chains.start(chain % chains.each);
            if (start >= length) continue;
            REAL window[TAPS];
#pragma unroll
            for (int k = 1; k < TAPS; k++) window[k] = whole.at(b, start + (k0 + k - 1) * dilation, length, channel);
            for (int j = 0; j < STRIP && start + j * dilation < length; j++) {
                const REAL d = dy[b * dy_batch_step + (start + j * dilation) * dy_time_step + o];
#pragma unroll
                for (int k = 1; k < TAPS; k++) window[k - 1] = window[k];
                window[TAPS - 1] = whole.at(b, start + (j + k0 + TAPS - 1) * dilation, length, channel);
#pragma unroll
                for (int k = 0; k < TAPS; k++) sum[k] += d * window[k];
            }
        }
#pragma unroll
    for (int k = 0; k < TAPS; k++) of_rows[row][k][lane] = sum[k];
    __syncthreads();
    for (int k = row; k < TAPS && k0 + k < taps; k += ROWS) {
        REAL total = 0;
        for (int r = 0; r < ROWS; r++) total += of_rows[r][k][lane];
        if (o < outputs) parts[((long long)blockIdx.y * taps + k0 + k) * outputs + o] = total;
    }
}
