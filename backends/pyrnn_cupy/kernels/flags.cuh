/* Flags by which the blocks of a row of the grid (gridDim.x of them) go through a sequence in step. They must all run at once. */
#pragma once

#include "device.cuh"

/* Tell the others that this block has come to `epoch`: what its threads have written so far is there for who hears it. */
__device__ __forceinline__ void tell(unsigned *flags, unsigned epoch) {
    __syncthreads();
    if (threadIdx.x == 0) {
        __threadfence();
        store_release(flags + blockIdx.x, epoch);
    }
}

/* Wait until all have come to `epoch`. */
__device__ __forceinline__ void wait(const unsigned *flags, unsigned epoch) {
    for (int block = threadIdx.x; block < (int)gridDim.x; block += blockDim.x)
        while (load_acquire(flags + block) < epoch) spin_pause();
    __syncthreads();
}
