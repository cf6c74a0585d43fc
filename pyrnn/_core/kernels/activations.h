/* tanh and the logistic function, from one polynomial, the same at every level that has FMA.

   (a) With y = -2|x| or -|x|: y = n·ln2 + r with |r| <= ln2 / 2, and expm1(r) = p is a Taylor polynomial.
   (b) 1 - e^y = (1 - 2^n) - 2^n p keeps its relative accuracy near 0, so tanh does.
   (c) The logistic function is e^-|x| / (1 + e^-|x|) for negative x: its tail is as exact as the exponential's.
   (d) The exponential of what is not positive, for softmax, is 2^n (1 + p).
   A NaN stays a NaN; infinities give the limits. */
#undef MAGIC
#undef LOG2E
#undef LN2_HIGH
#undef LN2_LOW
#undef EXPONENT_SHIFT
#undef ONE_BITS
#undef SIGN_BIT
#undef TANH_LIMIT
#undef EXP_LIMIT
#undef EXP_ZERO
#define LOG2E ((REAL)1.4426950408889634074)
#if REAL_BYTES == 4
#define MAGIC 12582912.0f /* 1.5·2^23: adding it rounds to an integer, which then stands in the low bits */
#define LN2_HIGH 0.693145751953125f /* few enough bits that n·LN2_HIGH is exact */
#define LN2_LOW 1.42860682030941723e-6f
#define EXPONENT_SHIFT 23
#define ONE_BITS 0x3f800000
#define SIGN_BIT INT32_MIN
#define TANH_LIMIT 10.0f
#define EXP_LIMIT 104.0f
#define EXP_ZERO -88.0f /* rounds to n = -127, whose power of two is the bits of 0 */
#else
#define MAGIC 6755399441055744.0
#define LN2_HIGH 6.93147180369123816490e-01
#define LN2_LOW 1.90821492927058770002e-10
#define EXPONENT_SHIFT 52
#define ONE_BITS 0x3ff0000000000000
#define SIGN_BIT INT64_MIN
#define TANH_LIMIT 20.0
#define EXP_LIMIT 746.0
#define EXP_ZERO -709.0
#endif

/* e^y - 1 as 2^n (p + 1) - 1: gives p, and n as the low bits of *n. */
static inline F(vec) F(expm1_parts)(F(vec) y, F(ivec) *n) {
    const F(vec) shifted = F(fma)(y, F(all)(LOG2E), F(all)(MAGIC));
    const F(vec) whole = shifted - F(all)(MAGIC);
    *n = (F(ivec))shifted;
    F(vec) r = F(fma)(whole, F(all)(-LN2_HIGH), y);
    r = F(fma)(whole, F(all)(-LN2_LOW), r);
#if REAL_BYTES == 4
    F(vec) q = F(all)(1.0f / 5040);
#else
    F(vec) q = F(all)(1.0 / 6227020800);
    q = F(fma)(q, r, F(all)(1.0 / 479001600));
    q = F(fma)(q, r, F(all)(1.0 / 39916800));
    q = F(fma)(q, r, F(all)(1.0 / 3628800));
    q = F(fma)(q, r, F(all)(1.0 / 362880));
    q = F(fma)(q, r, F(all)(1.0 / 40320));
    q = F(fma)(q, r, F(all)(1.0 / 5040));
#endif
    q = F(fma)(q, r, F(all)((REAL)1 / 720));
    q = F(fma)(q, r, F(all)((REAL)1 / 120));
    q = F(fma)(q, r, F(all)((REAL)1 / 24));
    q = F(fma)(q, r, F(all)((REAL)1 / 6));
    q = F(fma)(q, r, F(all)((REAL)0.5));
    return F(fma)(r * r, q, r);
}

static inline F(vec) F(power_of_two)(F(ivec) n) { return (F(vec))((n << EXPONENT_SHIFT) + (VEC_INT)ONE_BITS); }

static inline F(vec) F(tanh)(F(vec) x) {
    const F(ivec) sign = (F(ivec))x & (VEC_INT)SIGN_BIT;
    const F(vec) size = F(at_most)(F(all)(TANH_LIMIT), (F(vec))((F(ivec))x ^ sign));
    F(ivec) n;
    const F(vec) p = F(expm1_parts)((REAL)-2 * size, &n);
    const F(vec) scale = F(power_of_two)(n);
    const F(vec) m = F(fma)(-scale, p, (REAL)1 - scale); /* 1 - e^(-2|x|) */
    return (F(vec))((F(ivec))(m / ((REAL)2 - m)) | sign);
}

static inline F(vec) F(sigmoid)(F(vec) x) {
    const F(vec) size = F(at_most)(F(all)(EXP_LIMIT), (F(vec))((F(ivec))x & ~(VEC_INT)SIGN_BIT));
    F(ivec) n;
    const F(vec) p = F(expm1_parts)(-size, &n);
    /* In two factors: 2^n alone would leave the exponent's range at the far end of the tail. */
    const F(ivec) whole = n - (F(ivec))F(all)(MAGIC);
    const F(ivec) half = whole >> 1;
    const F(vec) e = (p + (REAL)1) * F(power_of_two)(half) * F(power_of_two)(whole - half);
    const F(ivec) negative = (F(ivec))x >> (REAL_BYTES * 8 - 1);
    return F(select)(negative, e, F(all)((REAL)1)) / ((REAL)1 + e);
}

/* e^x for x <= 0, within 4 ULP; what would be smaller than the smallest normal number may be 0. */
static inline F(vec) F(exp)(F(vec) x) {
    F(ivec) n;
    const F(vec) p = F(expm1_parts)(F(at_least)(F(all)(EXP_ZERO), x), &n);
    const F(vec) scale = F(power_of_two)(n);
    return F(fma)(scale, p, scale);
}

/* Whole arrays, for whoever wants to check them. */
static void F(tanh_array)(const void *x, void *y, ptrdiff_t n) {
    for (ptrdiff_t i = 0; i < n; i += LANES)
        F(store_part)((REAL *)y + i, F(tanh)(F(load_part)((const REAL *)x + i, n - i)), n - i);
}
static void F(sigmoid_array)(const void *x, void *y, ptrdiff_t n) {
    for (ptrdiff_t i = 0; i < n; i += LANES)
        F(store_part)((REAL *)y + i, F(sigmoid)(F(load_part)((const REAL *)x + i, n - i)), n - i);
}
static void F(exp_array)(const void *x, void *y, ptrdiff_t n) {
    for (ptrdiff_t i = 0; i < n; i += LANES)
        F(store_part)((REAL *)y + i, F(exp)(F(load_part)((const REAL *)x + i, n - i)), n - i);
}
