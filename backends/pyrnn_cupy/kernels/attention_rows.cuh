/* A block's rows as queries: row r of a head of keys is query r % N of head r / N of those that share it. */
#pragma once
#include "attention.cuh"

/* A block's rows, as queries. Local row r is row first + r of a head of keys. */
struct Rows {
    int b, shared, first;

    __device__ __forceinline__ int count(const Call &c) const { return min((long long)ROWS, (long long)c.group * c.N - first); }
    __device__ __forceinline__ int head(const Call &c, int r) const { return shared * c.group + (first + r) / c.N; }
    __device__ __forceinline__ int index(const Call &c, int r) const { return (first + r) % c.N; }
    /* Where a row of an array lies, or null past the last. */
    __device__ __forceinline__ const REAL *at(const Call &c, const REAL *array, const long long (&step)[3], int r) const {
        return r < count(c) ? at3(array, step, b, head(c, r), index(c, r)) : nullptr;
    }
    /* Of all rows of the call. */
    __device__ __forceinline__ long long number(const Call &c, int r) const {
        return ((long long)b * c.heads * c.group + head(c, r)) * c.N + index(c, r);
    }
    __device__ __forceinline__ Range seen(const Call &c, const Bounds &s) const {
        const int last = first + count(c) - 1;
        const bool one_head = first / c.N == last / c.N;
        return keys_seen(c, s, one_head ? first % c.N : 0, one_head ? last % c.N : c.N - 1);
    }
};

/* Number blocks so that those with the last rows, which see the most in causal attention, begin first. */
__device__ __forceinline__ Rows rows_of_block(const Call &c, long long block) {
    const int tiles = ((long long)c.group * c.N + ROWS - 1) / ROWS;
    const long long head = block / tiles;
    return {(int)(head / c.heads), (int)(head % c.heads), (tiles - 1 - (int)(block % tiles)) * ROWS};
}

/* The queries of a block's rows, for all threads to look up. */
struct Queries {
    Query at[ROWS];
};
__device__ __forceinline__ void describe(Queries &queries, const Call &c, const Bounds &s, const Rows &rows) {
    for (int r = threadIdx.x; r < ROWS; r += THREADS) {
        Query query = {0, 0, {0, 0}};
        if (r < rows.count(c)) {
            query.head = rows.head(c, r);
            query.i = rows.index(c, r);
            query.seen = keys_seen(c, s, query.i, query.i);
        }
        queries.at[r] = query;
    }
}
