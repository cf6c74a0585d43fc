/* tanh and the logistic function, from one polynomial, the same at every level that has FMA.

   (a) e^y = 2^n e^r with n whole and |r| <= ln2 / 2, and e^r - 1 = p = r + r² q(r), where q is a minimax polynomial, off by
       1.3e-7 or 3e-18 of itself at most.
   (b) 1 - e^y = (1 - 2^n) - 2^n p keeps its relative accuracy near 0, so tanh does. There r needs no second part of ln2: it
       may be off by n·2^-29, but e^y then weighs as little as 2^n.
   (c) The logistic function is e^-|x| / (1 + e^-|x|) for negative x: its tail is as exact as the exponential's.
   (d) Both are ratios whose denominators are in [1, 2], so that a product of two takes one division.
   A NaN stays a NaN; infinities give the limits. */
#undef MAGIC
#undef LOG2E
#undef LN2
#undef LN2_HIGH
#undef LN2_LOW
#undef EXPONENT_SHIFT
#undef ONE_BITS
#undef SIGN_BIT
#undef TANH_LIMIT
#undef EXP_LIMIT
#undef EXP2_LIMIT
#define LOG2E ((REAL)1.4426950408889634074)
#if REAL_BYTES == 4
#define MAGIC 12582912.0f /* 1.5·2^23: adding it rounds to an integer, which then stands in the low bits */
#define LN2 0.693147182f
#define LN2_HIGH 0.693145751953125f /* few enough bits that n·LN2_HIGH is exact without FMA, too */
#define LN2_LOW 1.42860682030941723e-6f
#define EXPONENT_SHIFT 23
#define ONE_BITS 0x3f800000
#define SIGN_BIT INT32_MIN
#define TANH_LIMIT 20.0f /* of 2|x| */
#define EXP_LIMIT 104.0f
#define EXP2_LIMIT 150.0f
#else
#define MAGIC 6755399441055744.0
#define LN2 0.6931471805599453
#define LN2_HIGH 6.93147180369123816490e-01
#define LN2_LOW 1.90821492927058770002e-10
#define EXPONENT_SHIFT 52
#define ONE_BITS 0x3ff0000000000000
#define SIGN_BIT INT64_MIN
#define TANH_LIMIT 40.0
#define EXP_LIMIT 746.0
#define EXP2_LIMIT 1076.0
#endif

/* e^r - 1 for |r| <= ln2 / 2. */
static inline F(vec) F(expm1_small)(F(vec) r) {
#if REAL_BYTES == 4
    static const REAL c[] = {0.5f, 0.16666578f, 0.041666854f, 0.008363146f, 0.0013901287f};
#else
    static const REAL c[] = {
        0.5, 0.1666666666666667, 0.041666666666666616, 0.008333333333326162, 0.0013888888888917979, 0.00019841269874740813,
        2.480158724571422e-05, 2.755725548881014e-06, 2.7557349627067626e-07, 2.5105184220393e-08, 2.0889377799779933e-09};
#endif
    const int degree = sizeof c / sizeof *c - 1;
    F(vec) q = F(all)(c[degree]);
    UNROLL for (int i = degree - 1; i >= 0; i--) q = F(fma)(q, r, F(all)(c[i]));
    return F(fma)(r * r, q, r);
}

/* e^y for y <= 0. */
static inline F(vec) F(exp_negative)(F(vec) y) {
    y = F(at_least)(F(all)(-EXP_LIMIT), y);
    const F(vec) shifted = F(fma)(y, F(all)(LOG2E), F(all)(MAGIC)), whole = shifted - F(all)(MAGIC);
    const F(vec) r = F(fma)(whole, F(all)(-LN2_LOW), F(fma)(whole, F(all)(-LN2_HIGH), y));
    return F(scale)(F(expm1_small)(r) + (REAL)1, whole, shifted, MAGIC);
}

/* 2^x for x <= 0, off by 2.5 ULP at most: 2^n 2^r with n whole and |r| <= 1/2, 2^r from a minimax polynomial that is 1 at 0. */
static inline F(vec) F(exp2_negative)(F(vec) x) {
#if REAL_BYTES == 4
    static const REAL c[] = {0.693146978f, 0.240222421f, 0.0555073375f, 0.00967151287f, 0.00132647239f};
#else
    static const REAL c[] = {
        0.69314718055994533, 0.24022650695910131, 0.055504108664820083, 0.0096181291075941296, 0.0013333558146774662,
        0.00015403530457096404, 1.5252733493172306e-5, 1.3215435291006846e-6, 1.0178199511636528e-7, 7.0737816619013394e-9,
        4.4347861331806507e-10};
#endif
    x = F(at_least)(F(all)(-EXP2_LIMIT), x);
    const F(vec) shifted = x + (REAL)MAGIC, whole = shifted - (REAL)MAGIC, r = x - whole;
    const int degree = sizeof c / sizeof *c;
    F(vec) p = F(all)(c[degree - 1]);
    UNROLL for (int i = degree - 2; i >= 0; i--) p = F(fma)(p, r, F(all)(c[i]));
    return F(scale)(F(fma)(p, r, F(all)((REAL)1)), whole, shifted, MAGIC);
}

typedef struct { F(vec) top, bottom; } F(ratio);

static inline F(ratio) F(tanh_ratio)(F(vec) x) {
    const F(vec) minus = (F(vec))((F(ivec))x | (VEC_INT)SIGN_BIT); /* -|x| */
    const F(vec) y = F(at_least)(F(all)(-TANH_LIMIT), minus + minus);
    const F(vec) shifted = F(fma)(y, F(all)(LOG2E), F(all)(MAGIC));
    const F(vec) p = F(expm1_small)(F(fma)(shifted - F(all)(MAGIC), F(all)(-LN2), y));
    const F(vec) power = (F(vec))(((F(ivec))shifted << EXPONENT_SHIFT) + (VEC_INT)ONE_BITS);
    const F(vec) m = F(fma)(-power, p, (REAL)1 - power); /* 1 - e^(-2|x|) */
    return (F(ratio)){(F(vec))((F(ivec))m | ((F(ivec))x & (VEC_INT)SIGN_BIT)), (REAL)2 - m};
}

static inline F(ratio) F(sigmoid_ratio)(F(vec) x) {
    const F(vec) e = F(exp_negative)((F(vec))((F(ivec))x | (VEC_INT)SIGN_BIT));
    const F(ivec) negative = (F(ivec))x >> (REAL_BYTES * 8 - 1);
    return (F(ratio)){F(select)(negative, e, F(all)((REAL)1)), (REAL)1 + e};
}

static inline F(vec) F(value)(F(ratio) a) { return F(divide)(a.top, a.bottom); }
static inline F(vec) F(times)(F(ratio) a, F(ratio) b) { return F(divide)(a.top * b.top, a.bottom * b.bottom); }
static inline F(vec) F(tanh)(F(vec) x) { return F(value)(F(tanh_ratio)(x)); }
static inline F(vec) F(sigmoid)(F(vec) x) { return F(value)(F(sigmoid_ratio)(x)); }

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
        F(store_part)((REAL *)y + i, F(exp_negative)(F(load_part)((const REAL *)x + i, n - i)), n - i);
}
