/* Ops on the last axis, a row at a time while it is in cache: softmax, cross_entropy, layer_norm.

   (a) Threads share rows. Sums along a row run in one or two chains a lane, added up by halves: the same wherever it lies.
   (b) The maximum of a row with a NaN may be any, but the sum of its exponentials is NaN, and so is what comes of it.
   (c) Rows are often whole pages, where the CPU's own prefetching ends, so the last pass over a row fetches the next one.
   (d) Sums over rows (gradients of layer_norm's weight and bias) are chains over blocks of SUM_ROWS rows, added up block
       after block: they depend on no number of threads. */
#undef LOWEST
#define LOWEST ((REAL)-INFINITY)
#ifndef SUM_ROWS
#define SUM_ROWS 64
#define SMALL_WORK 16384 /* elements: less is done sooner than a second thread is there */

static inline int row_threads(int threads, ptrdiff_t rows, ptrdiff_t columns) {
    return (double)rows * (double)columns < SMALL_WORK ? 1 : (int)smaller(threads, rows);
}
#endif

/* --- softmax ----------------------------------------------------------------------------------------------------- */

static inline REAL F(row_maximum)(const REAL *x, ptrdiff_t n) {
    F(vec) most = F(all)(LOWEST), more = most;
    ptrdiff_t j = 0;
    for (; j + 2 * LANES <= n; j += 2 * LANES) {
        most = F(at_least)(most, F(load)(x + j));
        more = F(at_least)(more, F(load)(x + j + LANES));
    }
    most = F(at_least)(most, more);
    for (; j + LANES <= n; j += LANES) most = F(at_least)(most, F(load)(x + j));
    if (j < n) most = F(at_least)(most, F(load_over)(F(all)(LOWEST), x + j, n - j));
    return F(largest_of)(most);
}

/* Σ e^(x - maximum); and the terms in y, where it is given. */
ALWAYS_INLINE REAL F(row_exponentials)(const REAL *x, REAL maximum, REAL *y, ptrdiff_t n) {
    const F(vec) most = F(all)(maximum);
    F(vec) total = {0};
    ptrdiff_t j = 0;
    for (; j + LANES <= n; j += LANES) {
        __builtin_prefetch(x + n + j, 0, 2);
        const F(vec) e = F(exp_negative)(F(load)(x + j) - most);
        if (y) F(store)(y + j, e);
        total += e;
    }
    if (j < n) {
        const F(vec) e = F(exp_negative)(F(load_over)(F(all)(LOWEST), x + j, n - j) - most);
        if (y) F(store_part)(y + j, e, n - j);
        total += e;
    }
    return F(sum_of)(total);
}

static void F(softmax_forward_work)(const member_t *me, void *context) {
    const pyrnn_softmax *p = context;
    ptrdiff_t row, end;
    team_share(me, p->M, 1, &row, &end);
    for (; row < end; row++) {
        const REAL *x = (const REAL *)p->x + row * p->F;
        REAL *y = (REAL *)p->y + row * p->F;
        const REAL factor = 1 / F(row_exponentials)(x, F(row_maximum)(x, p->F), y, p->F);
        for (ptrdiff_t j = 0; j < p->F; j++) y[j] *= factor;
    }
}

/* dx = y·(dy - Σ dy·y) */
static void F(softmax_backward_work)(const member_t *me, void *context) {
    const pyrnn_softmax *p = context;
    ptrdiff_t row, end;
    team_share(me, p->M, 1, &row, &end);
    for (; row < end; row++) {
        const REAL *y = (const REAL *)p->y + row * p->F, *dy = (const REAL *)p->dy + row * p->F;
        REAL *dx = (REAL *)p->dx + row * p->F;
        F(vec) sum = {0};
        for (ptrdiff_t j = 0; j < p->F; j += LANES)
            sum = F(fma)(F(load_part)(dy + j, p->F - j), F(load_part)(y + j, p->F - j), sum);
        const REAL along = F(sum_of)(sum);
        for (ptrdiff_t j = 0; j < p->F; j++) dx[j] = y[j] * (dy[j] - along);
    }
}

static void F(softmax_forward)(const pyrnn_softmax *p) {
    team_run(row_threads(p->threads, p->M, p->F), 0, F(softmax_forward_work), (void *)p);
}
static void F(softmax_backward)(const pyrnn_softmax *p) {
    team_run(row_threads(p->threads, p->M, p->F), 0, F(softmax_backward_work), (void *)p);
}

/* --- cross_entropy ------------------------------------------------------------------------------------------------- */

static void F(cross_entropy_forward_work)(const member_t *me, void *context) {
    const pyrnn_cross_entropy *p = context;
    REAL *loss = p->loss, *stats = p->stats;
    ptrdiff_t row, end;
    team_share(me, p->M, 1, &row, &end);
    for (; row < end; row++) {
        if (p->mask && !p->mask[row]) {
            loss[row] = 0;
            continue;
        }
        const REAL *x = (const REAL *)p->logits + row * p->C;
        const REAL maximum = F(row_maximum)(x, p->C), total = F(row_exponentials)(x, maximum, NULL, p->C);
        loss[row] = (REAL)log(total) - (x[p->targets[row]] - maximum);
        if (stats) {
            stats[2 * row] = maximum;
            stats[2 * row + 1] = total;
        }
    }
}

/* dlogits = (softmax - one-hot target)·dloss */
static void F(cross_entropy_backward_work)(const member_t *me, void *context) {
    const pyrnn_cross_entropy *p = context;
    const REAL *stats = p->stats, *dloss = p->dloss;
    const ptrdiff_t n = p->C;
    ptrdiff_t row, end;
    team_share(me, p->M, 1, &row, &end);
    for (; row < end; row++) {
        REAL *out = (REAL *)p->dlogits + row * n;
        if (p->mask && !p->mask[row]) {
            memset(out, 0, (size_t)n * sizeof(REAL));
            continue;
        }
        const REAL *x = (const REAL *)p->logits + row * n;
        const F(vec) most = F(all)(stats[2 * row]), factor = F(all)(dloss[row] / stats[2 * row + 1]);
        ptrdiff_t j = 0;
        for (; j + LANES <= n; j += LANES) F(store)(out + j, F(exp_negative)(F(load)(x + j) - most) * factor);
        if (j < n) F(store_part)(out + j, F(exp_negative)(F(load_part)(x + j, n - j) - most) * factor, n - j);
        out[p->targets[row]] -= dloss[row];
    }
}

static void F(cross_entropy_forward)(const pyrnn_cross_entropy *p) {
    team_run(row_threads(p->threads, p->M, p->C), 0, F(cross_entropy_forward_work), (void *)p);
}
static void F(cross_entropy_backward)(const pyrnn_cross_entropy *p) {
    team_run(row_threads(p->threads, p->M, p->C), 0, F(cross_entropy_backward_work), (void *)p);
}

/* --- layer_norm ------------------------------------------------------------------------------------------------------ */

/* Σ x and Σ (x - mean)², each in two chains a lane, since one would wait for its additions. */
static inline REAL F(row_sum)(const REAL *x, ptrdiff_t n) {
    F(vec) sum = {0}, more = {0};
    ptrdiff_t j = 0;
    for (; j + 2 * LANES <= n; j += 2 * LANES) {
        sum += F(load)(x + j);
        more += F(load)(x + j + LANES);
    }
    for (; j < n; j += LANES) sum += F(load_part)(x + j, n - j);
    return F(sum_of)(sum + more);
}
static inline REAL F(row_squares)(const REAL *x, REAL mean, ptrdiff_t n) {
    F(vec) sum = {0}, more = {0};
    ptrdiff_t j = 0;
    for (; j + 2 * LANES <= n; j += 2 * LANES) {
        __builtin_prefetch(x + n + j, 0, 2);
        __builtin_prefetch(x + n + j + LANES, 0, 2);
        const F(vec) one = F(load)(x + j) - mean, other = F(load)(x + j + LANES) - mean;
        sum = F(fma)(one, one, sum);
        more = F(fma)(other, other, more);
    }
    for (; j < n; j += LANES) {
        const F(vec) last = (n - j < LANES ? F(load_over)(F(all)(mean), x + j, n - j) : F(load)(x + j)) - mean;
        sum = F(fma)(last, last, sum);
    }
    return F(sum_of)(sum + more);
}

static void F(layer_norm_forward_work)(const member_t *me, void *context) {
    const pyrnn_layer_norm *p = context;
    const ptrdiff_t n = p->F;
    const REAL *weight = p->weight, *bias = p->bias;
    REAL *stats = p->stats;
    ptrdiff_t row, end;
    team_share(me, p->M, 1, &row, &end);
    for (; row < end; row++) {
        const REAL *x = (const REAL *)p->x + row * n;
        REAL *y = (REAL *)p->y + row * n;
        const REAL mean = F(row_sum)(x, n) / (REAL)n, variance = F(row_squares)(x, mean, n) / (REAL)n;
        const REAL scale = (REAL)(1 / sqrt(variance + (REAL)p->eps));
        for (ptrdiff_t j = 0; j < n; j += LANES) {
            F(vec) v = (F(load_part)(x + j, n - j) - mean) * scale;
            if (weight) v *= F(load_part)(weight + j, n - j);
            if (bias) v += F(load_part)(bias + j, n - j);
            F(store_part)(y + j, v, n - j);
        }
        if (stats) {
            stats[2 * row] = mean;
            stats[2 * row + 1] = scale;
        }
    }
}

/* Of one row, with d = dy·weight and the normal rows n: dx = scale·(d - mean d - n·mean(d·n)). */
static inline void F(layer_norm_row_back)(const pyrnn_layer_norm *p, ptrdiff_t row, REAL mean, REAL scale) {
    const ptrdiff_t n = p->F;
    const REAL *x = (const REAL *)p->x + row * n, *dy = (const REAL *)p->dy + row * n, *weight = p->weight;
    REAL *dx = (REAL *)p->dx + row * n;
    F(vec) sum = {0}, along = {0};
    ptrdiff_t j;
    for (j = 0; j < n; j += LANES) {
        F(vec) d = F(load_part)(dy + j, n - j);
        if (weight) d *= F(load_part)(weight + j, n - j);
        sum += d;
        along = F(fma)(d, (F(load_part)(x + j, n - j) - mean) * scale, along);
    }
    const REAL level = F(sum_of)(sum) / (REAL)n, slope = F(sum_of)(along) / (REAL)n;
    for (j = 0; j < n; j += LANES) {
        F(vec) d = F(load_part)(dy + j, n - j);
        if (weight) d *= F(load_part)(weight + j, n - j);
        const F(vec) normal = (F(load_part)(x + j, n - j) - mean) * scale;
        __builtin_prefetch(x + n + j, 0, 2);
        __builtin_prefetch(dy + n + j, 0, 2);
        F(store_part)(dx + j, F(fma)(-normal, F(all)(slope), d - level) * scale, n - j);
    }
}

/* total[0..F) += dy·normal, total[F..2F) += dy */
static inline void F(layer_norm_row_sums)(const pyrnn_layer_norm *p, ptrdiff_t row, REAL mean, REAL scale, REAL *total) {
    const REAL *x = (const REAL *)p->x + row * p->F, *dy = (const REAL *)p->dy + row * p->F;
    REAL *total_bias = total + p->F;
    for (ptrdiff_t j = 0; j < p->F; j += LANES) {
        const ptrdiff_t left = p->F - j;
        const F(vec) d = F(load_part)(dy + j, left), normal = (F(load_part)(x + j, left) - mean) * scale;
        F(store_part)(total + j, F(fma)(d, normal, F(load_part)(total + j, left)), left);
        F(store_part)(total_bias + j, F(load_part)(total_bias + j, left) + d, left);
    }
}

static void F(layer_norm_backward_work)(const member_t *me, void *context) {
    const pyrnn_layer_norm *p = context;
    const REAL *stats = p->stats;
    const ptrdiff_t n = p->F, blocks = (p->M + SUM_ROWS - 1) / SUM_ROWS;
    REAL *sums = p->workspace;
    const int summed = p->dweight || p->dbias;
    ptrdiff_t first, last, column, end;
    team_share(me, p->M, SUM_ROWS, &first, &last);
    for (ptrdiff_t row = first; row < last; row++) {
        REAL *total = sums + row / SUM_ROWS * 2 * n;
        if (summed && row % SUM_ROWS == 0) memset(total, 0, (size_t)(2 * n) * sizeof(REAL));
        if (summed) F(layer_norm_row_sums)(p, row, stats[2 * row], stats[2 * row + 1], total);
        if (p->dx) F(layer_norm_row_back)(p, row, stats[2 * row], stats[2 * row + 1]);
    }
    if (!summed) return;
    team_wait(me);
    team_share(me, n, 64 / REAL_BYTES, &column, &end);
    REAL *outputs[2] = {p->dweight, p->dbias};
    for (int k = 0; k < 2; k++) {
        if (!outputs[k]) continue;
        memset(outputs[k] + column, 0, (size_t)(end - column) * sizeof(REAL));
        for (ptrdiff_t block = 0; block < blocks; block++) {
            const REAL *total = sums + (2 * block + k) * n;
            for (ptrdiff_t j = column; j < end; j++) outputs[k][j] += total[j];
        }
    }
}

static size_t F(layer_norm_workspace)(const pyrnn_layer_norm *p) {
    const ptrdiff_t blocks = (p->M + SUM_ROWS - 1) / SUM_ROWS;
    return p->dweight || p->dbias ? (size_t)(blocks * 2 * p->F) * sizeof(REAL) : 0;
}

static void F(layer_norm_forward)(const pyrnn_layer_norm *p) {
    team_run(row_threads(p->threads, p->M, p->F), 0, F(layer_norm_forward_work), (void *)p);
}
static void F(layer_norm_backward)(const pyrnn_layer_norm *p) {
    team_run(row_threads(p->threads, p->M, p->F), 0, F(layer_norm_backward_work), (void *)p);
}
