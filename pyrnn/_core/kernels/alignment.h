/* Additive and multiplicative attention: scores of queries and keys, a softmax over what is seen, a sum of values.

   (a) They share all but the score: scale · query·key by the tiles of panel.h, or Σ_a v_a tanh(query_a + key_a) with the features
       in the lanes. Queries and keys come mapped; the caller maps them, and the gradients back.
   (b) A task is ALIGN_ROWS rows of a batch row. The weights are an output, so the memory is N · M.
   (c) Backward: tasks of rows compute the gradients of the scores; then rows of queries, blocks of keys and, for the additive
       score, vectors of features are tasks of their own. Each element is one chain, over the keys or over the rows;
       dv is summed over the batch in ascending order.
   (d) What is not seen has no part in it, be it NaN, as in attention.h. */
#ifndef PYRNN_ALIGNMENT_H
#define PYRNN_ALIGNMENT_H
#define ALIGN_ROWS 96
#define ALIGN_KEYS 128
#endif

typedef struct {
    const pyrnn_alignment *p;
    ptrdiff_t Mp, Dvp, Ap;       /* in whole vectors */
    ptrdiff_t row_blocks, key_blocks;
    REAL *scores;                /* per thread [ALIGN_ROWS][Mp] */
    REAL *panels;                /* per thread, keys or values of a split, transposed */
    REAL *sums;                  /* per thread [ALIGN_ROWS][Dvp or Ap] */
    REAL *queries;               /* per thread [ALIGN_ROWS][Ap] */
    REAL *dscores;               /* backward [B][N][Mp] */
    REAL *rows;                  /* backward, per thread: keys or rows, padded */
    REAL *dkeys;                 /* backward, additive, per thread [M][LANES] */
    REAL *dv;                    /* backward, additive [B][Ap] */
    int threads;
    atomic_long next, then;
} F(alignment_plan);

static void F(plan_alignment)(F(alignment_plan) *plan, const pyrnn_alignment *p, arena_t *arena, int backward) {
    memset(plan, 0, sizeof *plan);
    plan->p = p;
    plan->Mp = round_up(p->M, LANES);
    plan->Dvp = round_up(p->Dv, LANES);
    plan->Ap = round_up(p->A, LANES);
    plan->row_blocks = (p->N + ALIGN_ROWS - 1) / ALIGN_ROWS;
    plan->key_blocks = (p->M + ALIGN_KEYS - 1) / ALIGN_KEYS;
    const double flops = 2 * (double)(p->B * p->N) * (double)p->M * (double)(p->Dv + (p->v ? 10 : 1) * p->A);
    const ptrdiff_t tasks = p->B * larger(larger(plan->row_blocks, plan->key_blocks), p->v ? plan->Ap / LANES : 1);
    plan->threads = flops < BUSY_FLOPS ? 1 : (int)larger(1, smaller(p->threads, tasks));
    const size_t each = (size_t)plan->threads * sizeof(REAL);
    const size_t widest = (size_t)larger(plan->Dvp, plan->Ap);
    plan->scores = take(arena, each * ALIGN_ROWS * (size_t)plan->Mp);
    plan->panels = take(arena, each * KEY_SPLIT * widest);
    plan->sums = take(arena, each * larger(ALIGN_ROWS, ALIGN_KEYS) * widest);
    plan->queries = take(arena, each * ALIGN_ROWS * widest);
    if (!backward) return;
    plan->dscores = take(arena, (size_t)(p->B * p->N * plan->Mp) * sizeof(REAL));
    plan->rows = take(arena, each * (size_t)larger(p->N, p->M) * widest);
    if (!p->v) return;
    plan->dkeys = take(arena, each * (size_t)(p->M * LANES));
    plan->dv = take(arena, (size_t)(p->B * plan->Ap) * sizeof(REAL));
}

static inline int F(aligned)(const pyrnn_alignment *p, ptrdiff_t b, ptrdiff_t i, ptrdiff_t key) {
    const pyrnn_in4 *m = &p->mask;
    if (p->lengths && key >= p->lengths[b]) return 0;
    return !m->data || ((const uint8_t *)m->data)[b * m->stride[1] + i * m->stride[2] + key * m->stride[3]];
}

/* scores[rows][Mp] of queries [first, first + rows) of a batch row and all keys. */
static void F(align_scores)(const F(alignment_plan) *plan, int thread, ptrdiff_t b, ptrdiff_t first, ptrdiff_t rows, REAL *scores) {
    const pyrnn_alignment *p = plan->p;
    const REAL *query = (const REAL *)p->query + (b * p->N + first) * p->A, *keys = (const REAL *)p->keys + b * p->M * p->A;
    if (p->v) {
        const REAL *v = p->v;
        for (ptrdiff_t r = 0; r < rows; r++)
            for (ptrdiff_t key = 0; key < p->M; key++) {
                F(vec) sum = {0};
                for (ptrdiff_t a = 0; a < p->A; a += LANES) {
                    const ptrdiff_t left = p->A - a;
                    const F(vec) in = F(load_part)(query + r * p->A + a, left) + F(load_part)(keys + key * p->A + a, left);
                    sum = F(fma)(F(load_part)(v + a, left), F(tanh)(in), sum);
                }
                scores[r * plan->Mp + key] = F(sum_of)(sum);
            }
        return;
    }
    REAL *panels = plan->panels + thread * KEY_SPLIT * larger(plan->Dvp, plan->Ap), *queries = plan->queries + thread * ALIGN_ROWS * larger(plan->Dvp, plan->Ap);
    F(pack_rows)(queries, query, p->A, 1, rows, p->A);
    for (ptrdiff_t key = 0; key < p->M; key += KEY_SPLIT) {
        const ptrdiff_t here = smaller(KEY_SPLIT, p->M - key);
        F(pack_keys)(panels, keys + key * p->A, p->A, 1, here, p->A);
        F(rows_by_keys)(queries, plan->Ap, rows, p->A, panels, here, 0, here, scores + key, plan->Mp);
    }
}

/* Lanes that are set where query i sees keys from `key` on. */
static inline F(ivec) F(aligned_lanes)(const pyrnn_alignment *p, ptrdiff_t b, ptrdiff_t i, ptrdiff_t key) {
    F(ivec) open = {0};
    if (!p->lengths && !p->mask.data && key + LANES <= p->M) return ~open;
    for (ptrdiff_t lane = 0; lane < smaller(LANES, p->M - key); lane++) open[lane] = -(VEC_INT)F(aligned)(p, b, i, key + lane);
    return open;
}

/* A row of scores to weights, in place; whole vectors. */
static void F(align_softmax)(const F(alignment_plan) *plan, ptrdiff_t b, ptrdiff_t i, REAL *scores) {
    const pyrnn_alignment *p = plan->p;
    const F(vec) factor = F(all)((REAL)(p->scale * M_LOG2E));
    F(vec) most = F(all)(UNSEEN), total = {0};
    for (ptrdiff_t j = 0; j < plan->Mp; j += LANES) {
        const F(vec) s = F(select)(F(aligned_lanes)(p, b, i, j), F(load)(scores + j) * factor, F(all)(UNSEEN));
        F(store)(scores + j, s);
        most = F(at_least)(most, s);
    }
    const REAL maximum = F(largest_or_nan)(most, scores, NULL, 0, plan->Mp);
    for (ptrdiff_t j = 0; j < plan->Mp; j += LANES) {
        const F(vec) e = maximum == UNSEEN ? F(all)(0) : F(exp2_negative)(F(load)(scores + j) - maximum);
        F(store)(scores + j, e);
        total += e;
    }
    const REAL sum = F(sum_of)(total), inverse = sum == 0 ? 0 : 1 / sum;
    for (ptrdiff_t j = 0; j < plan->Mp; j += LANES) /* what is not seen has no weight, be the sum NaN */
        F(store)(scores + j, F(select)(F(aligned_lanes)(p, b, i, j), F(load)(scores + j) * inverse, F(all)(0)));
}

static void F(align_task)(const F(alignment_plan) *plan, int thread, ptrdiff_t b, ptrdiff_t first) {
    const pyrnn_alignment *p = plan->p;
    const ptrdiff_t rows = smaller(ALIGN_ROWS, p->N - first), widest = larger(plan->Dvp, plan->Ap);
    REAL *scores = plan->scores + thread * ALIGN_ROWS * plan->Mp, *sums = plan->sums + thread * larger(ALIGN_ROWS, ALIGN_KEYS) * widest;
    const REAL *values = (const REAL *)p->values + b * p->M * plan->Dvp;
    F(align_scores)(plan, thread, b, first, rows, scores);
    for (ptrdiff_t r = 0; r < rows; r++) {
        F(align_softmax)(plan, b, first + r, scores + r * plan->Mp);
        memcpy((REAL *)p->alpha + (b * p->N + first + r) * p->M, scores + r * plan->Mp, (size_t)p->M * sizeof(REAL));
    }
    const F(product) product = {
        .a = scores, .a_row = plan->Mp, .a_k = 1, .b = values, .b_k = plan->Dvp, .K = p->M, .out = sums, .out_row = plan->Dvp};
    F(rows_by_columns)(product, rows, plan->Dvp);
    for (ptrdiff_t r = 0; r < rows; r++) {
        REAL *sum = sums + r * plan->Dvp;
        if (!F(all_finite)(sum, plan->Dvp)) {
            memset(sum, 0, (size_t)plan->Dvp * sizeof(REAL));
            for (ptrdiff_t key = 0; key < p->M; key++) {
                if (!F(aligned)(p, b, first + r, key)) continue;
                const F(vec) weight = F(all)(scores[r * plan->Mp + key]);
                for (ptrdiff_t j = 0; j < plan->Dvp; j += LANES)
                    F(store)(sum + j, F(fma)(weight, F(load)(values + key * plan->Dvp + j), F(load)(sum + j)));
            }
        }
        memcpy((REAL *)p->ctx + (b * p->N + first + r) * p->Dv, sum, (size_t)p->Dv * sizeof(REAL));
    }
}

static void F(alignment_forward_work)(const member_t *me, void *context) {
    F(alignment_plan) *plan = context;
    ptrdiff_t task;
    while ((task = atomic_fetch_add(&plan->next, 1)) < plan->p->B * plan->row_blocks)
        F(align_task)(plan, me->id, task / plan->row_blocks, task % plan->row_blocks * ALIGN_ROWS);
}

/* --- backward ---------------------------------------------------------------------------------------------------- */

/* dscores = alpha·(dalpha + dctx·values - along), along = Σ alpha·(dalpha + dctx·values) = dctx·ctx + dalpha·alpha. */
static void F(align_dscores)(const F(alignment_plan) *plan, int thread, ptrdiff_t b, ptrdiff_t first) {
    const pyrnn_alignment *p = plan->p;
    const ptrdiff_t rows = smaller(ALIGN_ROWS, p->N - first), widest = larger(plan->Dvp, plan->Ap);
    REAL *panels = plan->panels + thread * KEY_SPLIT * widest, *dctx = plan->queries + thread * ALIGN_ROWS * widest;
    REAL *dscores = plan->dscores + (b * p->N + first) * plan->Mp;
    const REAL *values = (const REAL *)p->values + b * p->M * plan->Dvp;
    for (ptrdiff_t r = 0; r < rows; r++) { /* rows that see nothing, as zeros */
        const ptrdiff_t row = b * p->N + first + r;
        const REAL *alpha = (const REAL *)p->alpha + row * p->M;
        ptrdiff_t key = 0;
        while (key < p->M && alpha[key] == 0) key++;
        if (p->dctx && key < p->M) F(pack_rows)(dctx + r * plan->Dvp, (const REAL *)p->dctx + row * p->Dv, 0, 1, 1, p->Dv);
        else memset(dctx + r * plan->Dvp, 0, (size_t)plan->Dvp * sizeof(REAL));
    }
    for (ptrdiff_t key = 0; key < p->M; key += KEY_SPLIT) {
        const ptrdiff_t here = smaller(KEY_SPLIT, p->M - key);
        F(pack_keys)(panels, values + key * plan->Dvp, plan->Dvp, 1, here, p->Dv);
        F(rows_by_keys)(dctx, plan->Dvp, rows, p->Dv, panels, here, 0, here, dscores + key, plan->Mp);
    }
    for (ptrdiff_t r = 0; r < rows; r++) {
        const ptrdiff_t row = b * p->N + first + r;
        const REAL *alpha = (const REAL *)p->alpha + row * p->M, *dalpha = p->dalpha ? (const REAL *)p->dalpha + row * p->M : NULL;
        const REAL *ctx = (const REAL *)p->ctx + row * p->Dv;
        REAL *d = dscores + r * plan->Mp;
        F(vec) along = {0};
        for (ptrdiff_t j = 0; j < p->Dv; j += LANES)
            along = F(fma)(F(load)(dctx + r * plan->Dvp + j), F(load_part)(ctx + j, p->Dv - j), along);
        for (ptrdiff_t j = 0; j < plan->Mp; j += LANES) {
            if (!dalpha) continue;
            const F(vec) own = F(select)(F(aligned_lanes)(p, b, first + r, j), F(load_part)(dalpha + j, p->M - j), F(all)(0));
            F(store)(d + j, F(load)(d + j) + own);
            along = F(fma)(own, F(load_part)(alpha + j, p->M - j), along);
        }
        const F(vec) level = F(all)(F(sum_of)(along));
        for (ptrdiff_t j = 0; j < plan->Mp; j += LANES) {
            const F(vec) own = F(load_part)(alpha + j, p->M - j) * (F(load)(d + j) - level) * (REAL)p->scale;
            F(store)(d + j, F(select)(F(aligned_lanes)(p, b, first + r, j), own, F(all)(0)));
        }
    }
}

/* out[keys of a block][columns] = Σ_rows weights[row][key] · of[row][columns], rows ascending. */
static void F(align_over_rows)(
    const F(alignment_plan) *plan, int thread, const REAL *weights, ptrdiff_t weights_row, const REAL *of, ptrdiff_t columns,
    ptrdiff_t key, REAL *out
) {
    const pyrnn_alignment *p = plan->p;
    const ptrdiff_t keys = smaller(ALIGN_KEYS, p->M - key), wide = round_up(columns, LANES), widest = larger(plan->Dvp, plan->Ap);
    REAL *rows = plan->rows + thread * larger(p->N, p->M) * widest, *sums = plan->sums + thread * larger(ALIGN_ROWS, ALIGN_KEYS) * widest;
    F(pack_rows)(rows, of, columns, 1, p->N, columns);
    for (ptrdiff_t i = 0; i < p->N; i++) { /* a row that sees nothing adds nothing, be it NaN */
        ptrdiff_t j = 0;
        while (j < p->M && weights[i * weights_row + j] == 0) j++;
        if (j == p->M) memset(rows + i * wide, 0, (size_t)wide * sizeof(REAL));
    }
    const F(product) product = {
        .a = weights + key, .a_row = 1, .a_k = weights_row, .b = rows, .b_k = wide, .K = p->N, .out = sums, .out_row = wide};
    F(rows_by_columns)(product, keys, wide);
    F(write_rows)(out + key * columns, columns, sums, keys, columns, 1);
}

static void F(align_dquery)(const F(alignment_plan) *plan, int thread, ptrdiff_t b, ptrdiff_t first) {
    const pyrnn_alignment *p = plan->p;
    const ptrdiff_t rows = smaller(ALIGN_ROWS, p->N - first), widest = larger(plan->Dvp, plan->Ap);
    REAL *keys = plan->rows + thread * larger(p->N, p->M) * widest, *sums = plan->sums + thread * larger(ALIGN_ROWS, ALIGN_KEYS) * widest;
    F(pack_rows)(keys, (const REAL *)p->keys + b * p->M * p->A, p->A, 1, p->M, p->A);
    for (ptrdiff_t i = 0; i < p->M * plan->Ap; i++)
        if (!isfinite(keys[i])) keys[i] = 0;
    const F(product) product = {
        .a = plan->dscores + (b * p->N + first) * plan->Mp, .a_row = plan->Mp, .a_k = 1, .b = keys, .b_k = plan->Ap, .K = p->M,
        .out = sums, .out_row = plan->Ap};
    F(rows_by_columns)(product, rows, plan->Ap);
    F(write_rows)((REAL *)p->dquery + (b * p->N + first) * p->A, p->A, sums, rows, p->A, 1);
}

/* The additive score's gradients for the features of one vector. */
static void F(align_features)(const F(alignment_plan) *plan, int thread, ptrdiff_t b, ptrdiff_t a) {
    const pyrnn_alignment *p = plan->p;
    const ptrdiff_t left = p->A - a;
    const F(vec) v = F(load_part)((const REAL *)p->v + a, left);
    const REAL *query = (const REAL *)p->query + b * p->N * p->A + a, *keys = (const REAL *)p->keys + b * p->M * p->A + a;
    REAL *dkeys = plan->dkeys + thread * p->M * LANES;
    F(vec) dv = {0};
    memset(dkeys, 0, (size_t)(p->M * LANES) * sizeof(REAL));
    for (ptrdiff_t i = 0; i < p->N; i++) {
        const REAL *d = plan->dscores + (b * p->N + i) * plan->Mp;
        const F(vec) q = F(load_part)(query + i * p->A, left);
        F(vec) dq = {0};
        for (ptrdiff_t key = 0; key < p->M; key++) {
            if (d[key] == 0) continue;
            const F(vec) t = F(tanh)(q + F(load_part)(keys + key * p->A, left)), slope = F(fma)(-t, t, F(all)(1)) * d[key];
            dv = F(fma)(t, F(all)(d[key]), dv);
            dq += slope;
            F(store)(dkeys + key * LANES, F(load)(dkeys + key * LANES) + slope);
        }
        F(store_part)((REAL *)p->dquery + (b * p->N + i) * p->A + a, dq * v, left);
    }
    for (ptrdiff_t key = 0; key < p->M; key++)
        F(store_part)((REAL *)p->dkeys + (b * p->M + key) * p->A + a, F(load)(dkeys + key * LANES) * v, left);
    F(store)(plan->dv + b * plan->Ap + a, dv);
}

static void F(alignment_backward_work)(const member_t *me, void *context) {
    F(alignment_plan) *plan = context;
    const pyrnn_alignment *p = plan->p;
    ptrdiff_t task, first, last;
    while ((task = atomic_fetch_add(&plan->next, 1)) < p->B * plan->row_blocks)
        F(align_dscores)(plan, me->id, task / plan->row_blocks, task % plan->row_blocks * ALIGN_ROWS);
    team_wait(me);
    const ptrdiff_t of_keys = p->B * plan->key_blocks;
    const ptrdiff_t of_rows = p->v ? p->B * (plan->Ap / LANES) : p->B * plan->row_blocks;
    while ((task = atomic_fetch_add(&plan->then, 1)) < of_keys + of_rows) {
        if (task >= of_keys && p->v) {
            task -= of_keys;
            F(align_features)(plan, me->id, task / (plan->Ap / LANES), task % (plan->Ap / LANES) * LANES);
        } else if (task >= of_keys) {
            task -= of_keys;
            F(align_dquery)(plan, me->id, task / plan->row_blocks, task % plan->row_blocks * ALIGN_ROWS);
        } else {
            const ptrdiff_t b = task / plan->key_blocks, key = task % plan->key_blocks * ALIGN_KEYS;
            if (p->dctx)
                F(align_over_rows)(plan, me->id, (const REAL *)p->alpha + b * p->N * p->M, p->M, (const REAL *)p->dctx + b * p->N * p->Dv,
                                   p->Dv, key, (REAL *)p->dvalues + b * p->M * p->Dv);
            else
                memset((REAL *)p->dvalues + (b * p->M + key) * p->Dv, 0, (size_t)(smaller(ALIGN_KEYS, p->M - key) * p->Dv) * sizeof(REAL));
            if (!p->v)
                F(align_over_rows)(plan, me->id, plan->dscores + b * p->N * plan->Mp, plan->Mp, (const REAL *)p->query + b * p->N * p->A,
                                   p->A, key, (REAL *)p->dkeys + b * p->M * p->A);
        }
    }
    if (!p->v) return;
    team_wait(me);
    team_share(me, p->A, LANES, &first, &last);
    for (ptrdiff_t a = first; a < last; a++) {
        REAL sum = 0;
        for (ptrdiff_t b = 0; b < p->B; b++) sum += plan->dv[b * plan->Ap + a];
        ((REAL *)p->dv)[a] = sum;
    }
}

static size_t F(alignment_workspace)(const pyrnn_alignment *p, int backward) {
    F(alignment_plan) plan;
    arena_t arena = {NULL, 64};
    F(plan_alignment)(&plan, p, &arena, backward);
    return arena.used;
}

static void F(alignment_forward)(const pyrnn_alignment *p) {
    F(alignment_plan) plan;
    arena_t arena = {p->workspace, 0};
    F(plan_alignment)(&plan, p, &arena, 0);
    team_run(plan.threads, 0, F(alignment_forward_work), &plan);
}

static void F(alignment_backward)(const pyrnn_alignment *p) {
    F(alignment_plan) plan;
    arena_t arena = {p->workspace, 0};
    F(plan_alignment)(&plan, p, &arena, 1);
    team_run(plan.threads, 0, F(alignment_backward_work), &plan);
}
