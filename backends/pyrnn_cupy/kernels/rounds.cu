/* What a step of a persistent kernel costs at least: blocks tell and wait `rounds` times, and do nothing else. For benchmarks. */
#include "flags.cuh"

extern "C" __global__ void tell_and_wait(unsigned *flags, int rounds) {
    for (int epoch = 1; epoch <= rounds; epoch++) {
        tell(flags, epoch);
        wait(flags, epoch);
    }
}
