/* Philox4x32-10 (Salmon et al. 2011), as in reference/attention.py. */
#pragma once

/* Make four random words of a counter of four. */
__device__ __forceinline__ void philox(unsigned (&word)[4], unsigned low, unsigned high) {
#pragma unroll
    for (int round = 0; round < 10; round++) {
        const unsigned long long first = 0xD2511F53ull * word[0], second = 0xCD9E8D57ull * word[2];
        word[0] = (unsigned)(second >> 32) ^ word[1] ^ low;
        word[1] = (unsigned)second;
        word[2] = (unsigned)(first >> 32) ^ word[3] ^ high;
        word[3] = (unsigned)first;
        low += 0x9E3779B9u;
        high += 0xBB67AE85u;
    }
}
