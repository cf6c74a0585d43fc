/* Weights and the gradients of scores, computed again from what the forward kept of each row. */
#pragma once
#include "attention.cuh"

/* What the backward knows of a row: its largest score, the inverse of the sum of its powers, Σ dy·y, and its number. */
struct Kept {
    REAL largest, inverse, along;
    long long number;
};
__device__ __forceinline__ Kept kept_of(const REAL *stats, const REAL *along, long long number) {
    return {stats[number * 2], stats[number * 2 + 1], along[number], number};
}

/* The arrays that weights and the gradients of scores are computed with. */
struct Back {
    Steering steering;
    const REAL *given, *dgiven; /* with SCORE = GIVEN: weights, and perhaps their gradients, (B, N, M) */
    REAL factor;
};

/* From a product q·k and the product dy·v to a weight as it was multiplied with v, and to the gradient of its score. */
__device__ __forceinline__ void pull_score(
    const Call &c, const Back &back, int b, const Query &query, int key, const Kept &row, REAL dropped, REAL &s, REAL &d
) {
    s = scored(c, back.steering, SCORE == GIVEN ? (REAL)0 : s, back.factor, b, query, key);
    if (s == NOT_SEEN) {
        s = d = -(REAL)0;
        return;
    }
    REAL weight;
    if (SCORE == GIVEN) {
        weight = back.given[row.number * c.M + key];
        if (back.dgiven) d += back.dgiven[row.number * c.M + key];
    } else {
        weight = exp2(s - row.largest) * row.inverse;
        d *= dropped;
    }
    d = weight * (d - row.along) + 0; /* + 0: what is seen is not -0 */
    s = weight * dropped;
}
