/* Vectors of REAL at this level: F(vec), its integer twin F(ivec), LANES of them, and the few functions on them.

   + - * / & | ^ << >> work on vectors as they are (GCC and Clang vector extensions). Only what these lack has a
   name here: loads, stores, broadcast, fused multiply-add, minimum. */
#undef LANES
#undef VEC_INT

#ifndef VECTOR_BYTES
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

/* The first n lanes, and zeros; n may exceed LANES or be negative. */
static inline F(vec) F(load_part)(const REAL *p, ptrdiff_t n) {
    if (n >= LANES) return F(load)(p);
    F(vec) v = {0};
    if (n > 0) memcpy(&v, p, (size_t)n * sizeof(REAL));
    return v;
}
static inline void F(store_part)(REAL *p, F(vec) v, ptrdiff_t n) {
    if (n >= LANES) F(store)(p, v);
    else if (n > 0) memcpy(p, &v, (size_t)n * sizeof(REAL));
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

static inline F(vec) F(select)(F(ivec) mask, F(vec) yes, F(vec) no) {
    return (F(vec))((mask & (F(ivec))yes) | (~mask & (F(ivec))no));
}

/* The smaller of a limit and x; a NaN in x stays. */
static inline F(vec) F(at_most)(F(vec) limit, F(vec) x) { return F(select)((F(ivec))(x > limit), limit, x); }
/* The larger likewise. */
static inline F(vec) F(at_least)(F(vec) limit, F(vec) x) { return F(select)((F(ivec))(x < limit), limit, x); }
