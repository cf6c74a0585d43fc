/* Vectors of REAL at this level: F(vec), its integer twin F(ivec), LANES of them, and the few functions on them.

   + - * / & | ^ << >> work on vectors as they are (GCC and Clang vector extensions). Only what these lack has a
   name here: loads, stores, broadcast, fused multiply-add, maximum, square root, and what takes all lanes together. */
#undef LANES
#undef VEC_INT

/* Keeps a vector in a register: a compiler may else load it anew for each use. */
#undef HOLD
#if defined(__x86_64__)
#define HOLD(vector) __asm__("" : "+v"(vector)) /* of all 32 where there are so many */
#elif defined(__aarch64__)
#define HOLD(vector) __asm__("" : "+w"(vector))
#else
#define HOLD(vector) (void)0
#endif

#ifndef VECTOR_BYTES
#define UNROLL _Pragma("GCC unroll 16")
#define ALWAYS_INLINE static inline __attribute__((always_inline))
#if defined(__AVX512F__)
#define VECTOR_BYTES 64
#define REGISTERS 32
#elif defined(__AVX2__)
#define VECTOR_BYTES 32
#define REGISTERS 16
#elif defined(__aarch64__)
#define VECTOR_BYTES 16
#define REGISTERS 32
#else
#define VECTOR_BYTES 16
#define REGISTERS 16
#endif
#endif

#define LANES (VECTOR_BYTES / REAL_BYTES)
#if REAL_BYTES == 4
#define VEC_INT int32_t
#else
#define VEC_INT int64_t
#endif

typedef REAL F(vec) __attribute__((vector_size(VECTOR_BYTES)));
typedef VEC_INT F(ivec) __attribute__((vector_size(VECTOR_BYTES)));
typedef REAL F(loose) __attribute__((vector_size(VECTOR_BYTES), aligned(REAL_BYTES), may_alias));

static inline F(vec) F(load)(const REAL *p) { return *(const F(loose) *)p; }
static inline void F(store)(REAL *p, F(vec) v) { *(F(loose) *)p = v; }
static inline F(vec) F(all)(REAL x) { return x - (F(vec)){0}; }

#if defined(__AVX512F__)
/* A mask of the first n lanes, n < LANES. */
static inline uint16_t F(first_lanes)(ptrdiff_t n) { return n > 0 ? (uint16_t)((1u << n) - 1) : 0; }
#endif

/* The first n lanes, and zeros; n may exceed LANES or be negative. */
static inline F(vec) F(load_part)(const REAL *p, ptrdiff_t n) {
    if (n >= LANES) return F(load)(p);
#if defined(__AVX512F__) && REAL_BYTES == 4
    return (F(vec))_mm512_maskz_loadu_ps(F(first_lanes)(n), p);
#elif defined(__AVX512F__)
    return (F(vec))_mm512_maskz_loadu_pd(F(first_lanes)(n), p);
#else
    F(vec) v = {0};
    if (n > 0) memcpy(&v, p, (size_t)n * sizeof(REAL));
    return v;
#endif
}
/* The first n lanes, the others as in v; n < LANES. */
static inline F(vec) F(load_over)(F(vec) v, const REAL *p, ptrdiff_t n) {
#if defined(__AVX512F__) && REAL_BYTES == 4
    return (F(vec))_mm512_mask_loadu_ps((__m512)v, F(first_lanes)(n), p);
#elif defined(__AVX512F__)
    return (F(vec))_mm512_mask_loadu_pd((__m512d)v, F(first_lanes)(n), p);
#else
    if (n > 0) memcpy(&v, p, (size_t)n * sizeof(REAL));
    return v;
#endif
}
static inline void F(store_part)(REAL *p, F(vec) v, ptrdiff_t n) {
    if (n >= LANES) F(store)(p, v);
#if defined(__AVX512F__) && REAL_BYTES == 4
    else _mm512_mask_storeu_ps(p, F(first_lanes)(n), (__m512)v);
#elif defined(__AVX512F__)
    else _mm512_mask_storeu_pd(p, F(first_lanes)(n), (__m512d)v);
#else
    else if (n > 0) memcpy(p, &v, (size_t)n * sizeof(REAL));
#endif
}

/* a·b + c, rounded once where the CPU can: the compiler is told not to fuse anything by itself. */
static inline F(vec) F(fma)(F(vec) a, F(vec) b, F(vec) c) {
#if defined(__AVX512F__) && REAL_BYTES == 4
    return (F(vec))_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__AVX512F__)
    return (F(vec))_mm512_fmadd_pd((__m512d)a, (__m512d)b, (__m512d)c);
#elif defined(__FMA__) && REAL_BYTES == 4
    return (F(vec))_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif defined(__FMA__)
    return (F(vec))_mm256_fmadd_pd((__m256d)a, (__m256d)b, (__m256d)c);
#elif defined(__aarch64__) && REAL_BYTES == 4
    return (F(vec))vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
#elif defined(__aarch64__)
    return (F(vec))vfmaq_f64((float64x2_t)c, (float64x2_t)a, (float64x2_t)b);
#else
    return a * b + c;
#endif
}

/* a / b for b in [1, 4]. A whole AVX-512 division keeps its unit busy for 16 cycles; there it is an estimate of 1 / b, refined
   to half an ULP, times a. */
static inline F(vec) F(divide)(F(vec) a, F(vec) b) {
#if defined(__AVX512F__) && REAL_BYTES == 4
    const F(vec) guess = (F(vec))_mm512_rcp14_ps((__m512)b);
    return a * F(fma)(F(fma)(-b, guess, F(all)(1.0f)), guess, guess);
#else
    return a / b;
#endif
}

static inline F(vec) F(select)(F(ivec) mask, F(vec) yes, F(vec) no) {
    return (F(vec))((mask & (F(ivec))yes) | (~mask & (F(ivec))no));
}

/* The larger of a limit and x; a NaN in x stays. */
static inline F(vec) F(at_least)(F(vec) limit, F(vec) x) {
#if defined(__AVX512F__) && REAL_BYTES == 4
    return (F(vec))_mm512_max_ps((__m512)limit, (__m512)x);
#elif defined(__AVX512F__)
    return (F(vec))_mm512_max_pd((__m512d)limit, (__m512d)x);
#elif defined(__AVX2__) && REAL_BYTES == 4
    return (F(vec))_mm256_max_ps((__m256)limit, (__m256)x);
#elif defined(__AVX2__)
    return (F(vec))_mm256_max_pd((__m256d)limit, (__m256d)x);
#else
    return F(select)((F(ivec))(x < limit), limit, x);
#endif
}

static inline F(vec) F(root)(F(vec) v) {
#if defined(__AVX512F__) && REAL_BYTES == 4
    return (F(vec))_mm512_sqrt_ps((__m512)v);
#elif defined(__AVX512F__)
    return (F(vec))_mm512_sqrt_pd((__m512d)v);
#else
    for (int i = 0; i < LANES; i++) v[i] = REAL_BYTES == 4 ? (REAL)sqrtf((float)v[i]) : (REAL)sqrt(v[i]);
    return v;
#endif
}

/* All lanes added up, and the largest of them, by halves. */
static inline REAL F(sum_of)(F(vec) v) {
#if defined(__AVX512F__) && REAL_BYTES == 4
    return _mm512_reduce_add_ps((__m512)v);
#elif defined(__AVX512F__)
    return _mm512_reduce_add_pd((__m512d)v);
#else
    UNROLL for (int half = LANES / 2; half; half /= 2) {
        UNROLL for (int i = 0; i < half; i++) v[i] += v[i + half];
    }
    return v[0];
#endif
}
static inline REAL F(largest_of)(F(vec) v) {
#if defined(__AVX512F__) && REAL_BYTES == 4
    return _mm512_reduce_max_ps((__m512)v);
#elif defined(__AVX512F__)
    return _mm512_reduce_max_pd((__m512d)v);
#else
    UNROLL for (int half = LANES / 2; half; half /= 2) {
        UNROLL for (int i = 0; i < half; i++) v[i] = v[i] < v[i + half] ? v[i + half] : v[i];
    }
    return v[0];
#endif
}

/* x·2^n for a whole n, which also stands in the low bits of `shifted` = n + magic. */
static inline F(vec) F(scale)(F(vec) x, F(vec) n, F(vec) shifted, REAL magic) {
#if defined(__AVX512F__) && REAL_BYTES == 4
    (void)shifted, (void)magic;
    return (F(vec))_mm512_scalef_ps((__m512)x, (__m512)n);
#elif defined(__AVX512F__)
    (void)shifted, (void)magic;
    return (F(vec))_mm512_scalef_pd((__m512d)x, (__m512d)n);
#else
    /* In two factors: 2^n alone would leave the exponent's range at the far end of a tail. */
    const int shift = REAL_BYTES == 4 ? 23 : 52;
    const F(ivec) whole = (F(ivec))shifted - (F(ivec))F(all)(magic), half = whole >> 1, one = (F(ivec))F(all)((REAL)1);
    (void)n;
    return x * (F(vec))((half << shift) + one) * (F(vec))(((whole - half) << shift) + one);
#endif
}

static inline F(ivec) F(lane_numbers)(void) {
    F(ivec) lane = {0};
    for (int i = 0; i < LANES; i++) lane[i] = i;
    return lane;
}
#if defined(__AVX512F__)
/* Lane i is element index[i] of a followed by b. */
static inline F(vec) F(pick)(F(vec) a, F(ivec) index, F(vec) b) {
#if REAL_BYTES == 4
    return (F(vec))_mm512_permutex2var_ps((__m512)a, (__m512i)index, (__m512)b);
#else
    return (F(vec))_mm512_permutex2var_pd((__m512d)a, (__m512i)index, (__m512d)b);
#endif
}
#endif

#if defined(__AVX512F__)
/* Transpose a square of LANES vectors: stage d swaps the off-diagonal d x d squares of each 2d x 2d square. */
ALWAYS_INLINE void F(transpose_vectors)(F(vec) *v) {
    const F(ivec) lane = F(lane_numbers)();
    UNROLL for (int d = 1; d < LANES; d *= 2) {
        const F(ivec) later = (lane & d) != 0;
        const F(ivec) even = (lane & ~later) | ((lane - d + LANES) & later), odd = ((lane + d) & ~later) | ((lane + LANES) & later);
        UNROLL for (int i = 0; i < LANES; i++) {
            if (i & d) continue;
            const F(vec) a = v[i], b = v[i + d];
            v[i] = F(pick)(a, even, b);
            v[i + d] = F(pick)(a, odd, b);
        }
    }
}
#endif

/* Write a square of LANES x LANES elements transposed. */
static inline void F(transpose)(const REAL *in, ptrdiff_t row, REAL *out, ptrdiff_t out_row) {
#if defined(__AVX512F__)
    F(vec) v[LANES];
    UNROLL for (int i = 0; i < LANES; i++) v[i] = F(load)(in + i * row);
    F(transpose_vectors)(v);
    UNROLL for (int i = 0; i < LANES; i++) F(store)(out + i * out_row, v[i]);
#else
    for (int i = 0; i < LANES; i++)
        for (int j = 0; j < LANES; j++) out[i * out_row + j] = in[j * row + i];
#endif
}
