/* A chain: steps of convolutions, and what stands between them, in one call.

   Outside of a convolution's step denormals are what they are for the caller, and tanh is the caller's: so a step has the bits of
   the same arithmetic on whole arrays. */

/* Columns [i, i + LANES) of value + plus, relu after it if asked for: as numpy's maximum, a NaN stays and -0 becomes 0. */
ALWAYS_INLINE F(vec) F(stage_sum)(const pyrnn_stage *s, const REAL *value, const REAL *plus, ptrdiff_t i, ptrdiff_t width) {
    F(vec) sum = F(load_part)(value + i, width - i);
    if (plus) sum += F(load_part)(plus + i, width - i);
    return s->then == PYRNN_RELU ? F(select)((F(ivec))(sum <= (REAL)0), F(all)(0), sum) : sum;
}

static void F(stage_tanh)(const pyrnn_stage *s, ptrdiff_t width, const pyrnn_loop *tanh) {
    const ptrdiff_t steps[2] = {sizeof(REAL), sizeof(REAL)};
    const int whole = s->sum_row == width;
    const ptrdiff_t n = whole ? s->B * width : width;
    for (ptrdiff_t b = 0; b < (whole ? 1 : s->B); b++) {
        char *row = (char *)((REAL *)s->sum + b * s->sum_row), *args[2] = {row, row};
        tanh->call(args, &n, steps, tanh->data);
    }
}

static void F(stage_out)(const pyrnn_stage *s, const pyrnn_loop *tanh) {
    const ptrdiff_t width = s->then == PYRNN_GATE ? 2 * s->N : s->N;
    for (ptrdiff_t b = 0; b < s->B; b++) {
        const REAL *value = (const REAL *)s->value + b * s->value_row;
        const REAL *plus = s->plus ? (const REAL *)s->plus + b * s->plus_row : NULL;
        REAL *sum = (REAL *)s->sum + b * s->sum_row;
        for (ptrdiff_t i = 0; i < width; i += LANES) F(store_part)(sum + i, F(stage_sum)(s, value, plus, i, width), width - i);
    }
    if (s->then == PYRNN_TANH || s->then == PYRNN_GATE) F(stage_tanh)(s, width, tanh);
    if (s->then != PYRNN_GATE) return;
    for (ptrdiff_t b = 0; b < s->B; b++) {
        const REAL *signal = (const REAL *)s->sum + b * s->sum_row, *gate = signal + s->N;
        REAL *to = (REAL *)s->to + b * s->to_row;
        for (ptrdiff_t i = 0; i < s->N; i += LANES) {
            const ptrdiff_t rest = s->N - i;
            F(store_part)(to + i, F(load_part)(signal + i, rest) * (F(load_part)(gate + i, rest) + (REAL)1), rest);
        }
    }
}

static void F(conv_chain)(const pyrnn_stage *stages, ptrdiff_t n, const pyrnn_loop *tanh) {
    for (const pyrnn_stage *s = stages; s < stages + n; s++) {
        if (s->conv) F(conv_step)(s->conv);
        F(stage_out)(s, tanh);
    }
}
