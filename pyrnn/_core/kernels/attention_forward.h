/* Attention forward: see attention.h. */

typedef struct {
    const pyrnn_attention *p;
    ptrdiff_t rows, block, blocks;   /* of queries that share keys; of a task; tasks a head of keys */
    ptrdiff_t splits;                /* of keys that tasks share, or 1: then a task takes all */
    ptrdiff_t Dvp;                   /* Dv in whole vectors */
    REAL *keys, *values, *scores, *queries, *sums; /* per thread */
    REAL *states;                    /* per thread: maxima and totals of the rows of a task */
    REAL *parts, *part_states;       /* with splits, of each task: sums [rows][Dvp], maxima and totals */
    int threads;
    atomic_long next;
    atomic_int stopped;
} F(attention_plan);

static void F(plan_attention)(F(attention_plan) *plan, const pyrnn_attention *p, arena_t *arena) {
    memset(plan, 0, sizeof *plan);
    plan->p = p;
    plan->rows = p->Hkv ? p->Hq / p->Hkv * p->N : 0;
    plan->Dvp = round_up(p->Dv, LANES);
    const ptrdiff_t heads = p->B * p->Hkv, all_splits = (p->M + KEY_SPLIT - 1) / KEY_SPLIT;
    const double keys = (double)smaller(p->M, p->left + p->right + 1);
    const double flops = 2 * (double)(p->B * p->Hq * p->N) * keys * (double)(p->D + p->Dv);
    plan->threads = flops < BUSY_FLOPS ? 1 : p->threads;
    plan->block = plan->rows;
    plan->splits = 1;
    const int uneven = heads % plan->threads || p->lengths || p->q_lengths;
    if (uneven && heads < 8 * plan->threads) { /* too few to share them evenly */
        const ptrdiff_t most = larger(1, plan->rows / (4 * ROWS_AT_ONCE)), wanted = (8 * plan->threads + heads - 1) / larger(1, heads);
        plan->block = round_up((plan->rows + smaller(most, wanted) - 1) / smaller(most, wanted), ROWS_AT_ONCE);
        if (plan->rows <= ROWS_AT_ONCE && heads < plan->threads) plan->splits = larger(1, all_splits);
    }
    plan->blocks = plan->rows ? (plan->rows + plan->block - 1) / plan->block : 0;
    const ptrdiff_t tasks = heads * plan->blocks * plan->splits;
    plan->threads = (int)larger(1, smaller(plan->threads, tasks));
    const size_t each = (size_t)plan->threads * sizeof(REAL);
    plan->keys = take(arena, each * KEY_SPLIT * (size_t)p->D);
    plan->values = take(arena, each * KEY_SPLIT * (size_t)plan->Dvp);
    plan->scores = take(arena, each * ROWS_AT_ONCE * KEY_SPLIT);
    plan->queries = take(arena, each * ROWS_AT_ONCE * (size_t)round_up(p->D, LANES));
    plan->sums = take(arena, each * ROWS_AT_ONCE * (size_t)plan->Dvp);
    plan->states = take(arena, each * 2 * (size_t)plan->block);
    if (plan->splits > 1) {
        plan->parts = take(arena, (size_t)(tasks * plan->rows * plan->Dvp) * sizeof(REAL));
        plan->part_states = take(arena, (size_t)(tasks * plan->rows * 2) * sizeof(REAL));
    }
}

/* The powers of a row of scores, in place, and their sum. */
ALWAYS_INLINE REAL F(sum_powers)(REAL *scores, F(scoring) how, REAL maximum, ptrdiff_t from, ptrdiff_t to) {
    const F(vec) most = F(all)(maximum);
    F(vec) total = {0};
    for (ptrdiff_t j = from; j < to; j += LANES) {
        const F(vec) e = F(power_of)(scores, j, how, most);
        F(store)(scores + j, e);
        total += e;
    }
    return F(sum_of)(total);
}
static inline REAL F(weigh_row)(REAL *scores, F(scoring) how, REAL maximum, ptrdiff_t from, ptrdiff_t to) {
    if (how.added) return F(sum_powers)(scores, how, maximum, from, to);
    how.added = NULL;
    return F(sum_powers)(scores, how, maximum, from, to);
}

/* Rows whose maxima and sums of exponentials so far lie in vectors. */
#define STATE_ROWS 32 /* ROWS_AT_ONCE in whole vectors */
typedef struct {
    REAL maximum[STATE_ROWS], total[STATE_ROWS];
} F(states);

/* Merge the states of a split into those of the splits before it, and give what the sums of both are to be multiplied with. */
static inline void F(merge_states)(REAL *maxima, REAL *totals, const F(states) *more, ptrdiff_t rows, REAL *kept, REAL *added) {
    for (ptrdiff_t r = 0; r < rows; r += LANES) {
        const F(vec) before = F(load_part)(maxima + r, rows - r), after = F(load_part)(more->maximum + r, rows - r);
        const F(vec) most = F(at_least)(before, after);
        const F(vec) keep = F(exp2_negative)(before - most), add = F(exp2_negative)(after - most);
        const F(vec) total = F(fma)(F(load_part)(more->total + r, rows - r), add, F(load_part)(totals + r, rows - r) * keep);
        F(store_part)(maxima + r, most, rows - r);
        F(store_part)(totals + r, total, rows - r);
        F(store)(kept + r, keep);
        F(store)(added + r, add);
    }
}

static inline void F(merge_sums)(REAL *sums, REAL kept, const REAL *more, REAL added, ptrdiff_t n) {
    ptrdiff_t j = 0;
    for (; j + LANES <= n; j += LANES) F(store)(sums + j, F(fma)(F(load)(more + j), F(all)(added), F(load)(sums + j) * kept));
    if (j < n) F(store_part)(sums + j, F(fma)(F(load)(more + j), F(all)(added), F(load_part)(sums + j, n - j) * kept), n - j);
}

/* weights · values of one row, of the keys alone that are seen. */
static void F(weigh_seen)(
    const pyrnn_attention *p, ptrdiff_t b, ptrdiff_t shared, F(place) row, range_t seen, ptrdiff_t split, const REAL *weights, REAL *sums
) {
    const ptrdiff_t step = p->v.stride[3];
    memset(sums, 0, (size_t)p->Dv * sizeof(REAL));
    for (ptrdiff_t key = larger(seen.first, split); key < smaller(seen.last, split + KEY_SPLIT); key++) {
        if (!F(allowed)(p, b, row, key)) continue;
        const REAL *v = F(at4)(&p->v, b, shared, key);
        for (ptrdiff_t d = 0; d < p->Dv; d++) {
            const F(vec) sum = F(fma)(F(all)(weights[key - split]), F(all)(v[d * step]), F(all)(sums[d]));
            sums[d] = sum[0];
        }
    }
}

/* Where the sums of a row are taken: in y, or in a part of the task. */
static inline REAL *F(sums_of)(const F(attention_plan) *plan, ptrdiff_t task, ptrdiff_t b, F(place) place, ptrdiff_t row) {
    const pyrnn_attention *p = plan->p;
    if (plan->parts) return plan->parts + (task * plan->rows + row) * plan->Dvp;
    return (REAL *)p->y + b * p->y_stride[0] + place.head * p->y_stride[1] + place.i * p->y_stride[2];
}

/* Rows [first, last) of a head, at most ROWS_AT_ONCE, against the keys of a split. */
static void F(attend_split)(
    const F(attention_plan) *plan, int thread, ptrdiff_t task, ptrdiff_t b, ptrdiff_t shared, ptrdiff_t first, ptrdiff_t last,
    ptrdiff_t split, const REAL *keys, const REAL *values, ptrdiff_t values_row, REAL *maxima, REAL *totals
) {
    const pyrnn_attention *p = plan->p;
    REAL *scores = plan->scores + thread * ROWS_AT_ONCE * KEY_SPLIT, *queries = plan->queries + thread * ROWS_AT_ONCE * round_up(p->D, LANES);
    REAL *sums = plan->sums + thread * ROWS_AT_ONCE * plan->Dvp;
    const ptrdiff_t rows = last - first, here = smaller(KEY_SPLIT, p->M - split), wide = round_up(here, LANES);
    F(place) places[ROWS_AT_ONCE];
    range_t seen[ROWS_AT_ONCE];
    ptrdiff_t from = here, to = 0;
    places[0] = F(place_of)(p, b, shared, first);
    for (ptrdiff_t r = 0; r < rows; r++) {
        if (r) places[r] = F(place_after)(p, places[r - 1]);
        seen[r] = F(range_of)(p, b, places[r]);
        from = smaller(from, larger(0, seen[r].first - split));
        to = larger(to, smaller(here, seen[r].last - split));
    }
    if (from >= to) return;
    from = from / WIDTH * WIDTH;
    to = smaller(wide, round_up(to, WIDTH));
    const ptrdiff_t Dp = round_up(p->D, LANES);
    for (ptrdiff_t r = 0; r < rows; r++)
        F(pack_rows)(queries + r * Dp, F(at4)(&p->q, b, places[r].head, places[r].i), 0, p->q.stride[3], 1, p->D);
#if defined(__AVX512F__)
    if (!keys)
        F(few_scores)(rows, queries, Dp, p->D, F(at4)(&p->k, b, shared, split), p->k.stride[2], from, smaller(here, to), scores, KEY_SPLIT);
    else
#endif
        F(rows_by_keys)(queries, Dp, rows, p->D, keys, here, from, to, scores, KEY_SPLIT);
    REAL added[KEY_SPLIT], factors[2][STATE_ROWS];
    F(states) here_only;
    for (ptrdiff_t r = 0; r < rows; r++) {
        REAL *row = scores + r * KEY_SPLIT;
        F(scoring) how;
        here_only.maximum[r] = F(mask_row)(p, b, places[r], seen[r], split, row, from, to, added, &how);
        here_only.total[r] = 0;
        if (here_only.maximum[r] == UNSEEN) memset(row + from, 0, (size_t)(to - from) * sizeof(REAL));
        else here_only.total[r] = F(weigh_row)(row, how, here_only.maximum[r], from, to);
        if (p->dropout) F(drop)(p, b, places[r], split, row, from, to);
    }
    const F(product) product = {
        .a = scores + from, .a_row = KEY_SPLIT, .a_k = 1, .b = values + from * values_row, .b_k = values_row,
        .K = smaller(to, here) - from, .out = sums, .out_row = plan->Dvp};
    F(rows_by_columns)(product, rows, plan->Dvp);
    F(merge_states)(maxima, totals, &here_only, rows, factors[0], factors[1]);
    for (ptrdiff_t r = 0; r < rows; r++) {
        REAL *more = sums + r * plan->Dvp;
        if (!F(all_finite)(more, plan->Dvp)) F(weigh_seen)(p, b, shared, places[r], seen[r], split, scores + r * KEY_SPLIT, more);
        F(merge_sums)(F(sums_of)(plan, task, b, places[r], first + r), factors[0][r], more, factors[1][r], p->Dv);
    }
}

/* Divide by the sum of exponentials, and tell the backward. */
static inline void F(finish_row)(const pyrnn_attention *p, ptrdiff_t b, F(place) row, REAL *y, REAL maximum, REAL total) {
    const REAL inverse = maximum == UNSEEN ? 0 : 1 / total;
    for (ptrdiff_t j = 0; j < p->Dv; j += LANES) F(store_part)(y + j, F(load_part)(y + j, p->Dv - j) * inverse, p->Dv - j);
    if (!p->stats) return;
    REAL *stats = (REAL *)p->stats + ((b * p->Hq + row.head) * p->N + row.i) * 2;
    stats[0] = maximum;
    stats[1] = inverse;
}

static void F(attend_task)(const F(attention_plan) *plan, int thread, ptrdiff_t task) {
    const pyrnn_attention *p = plan->p;
    const ptrdiff_t part = task % plan->splits, block = task / plan->splits % plan->blocks, head = task / plan->splits / plan->blocks;
    const ptrdiff_t b = head / p->Hkv, shared = head % p->Hkv;
    const ptrdiff_t first = block * plan->block, last = smaller(plan->rows, first + plan->block);
    REAL *keys = plan->keys + thread * KEY_SPLIT * p->D, *packed = plan->values + thread * KEY_SPLIT * plan->Dvp;
    REAL *maxima, *totals;
    if (plan->parts) {
        maxima = plan->part_states + task * 2 * plan->rows;
        totals = maxima + plan->rows;
    } else {
        maxima = plan->states + thread * 2 * plan->block;
        totals = maxima + plan->block;
    }
    ptrdiff_t from = p->M, to = 0;
    F(place) place = F(place_of)(p, b, shared, first);
    for (ptrdiff_t r = first; r < last; r++, place = F(place_after)(p, place)) {
        const range_t seen = F(range_of)(p, b, place);
        if (seen.first < seen.last) {
            from = smaller(from, seen.first);
            to = larger(to, seen.last);
        }
        maxima[r - first] = UNSEEN;
        totals[r - first] = 0;
        memset(F(sums_of)(plan, task, b, place, r), 0, (size_t)(plan->parts ? plan->Dvp : p->Dv) * sizeof(REAL));
    }
    if (plan->splits > 1) {
        from = larger(from, part * KEY_SPLIT);
        to = smaller(to, (part + 1) * KEY_SPLIT);
    }
    const int in_place = last - first <= ROWS_AT_ONCE && plan->Dvp == p->Dv && p->v.stride[3] == 1;
    int few = 0; /* rows, for which keys are not packed */
#if defined(__AVX512F__)
    few = last - first <= FEW_ROWS && p->k.stride[3] == 1;
#endif
    for (ptrdiff_t split = from / KEY_SPLIT * KEY_SPLIT; split < to; split += KEY_SPLIT) {
        const ptrdiff_t here = smaller(KEY_SPLIT, p->M - split);
        const REAL *values = F(at4)(&p->v, b, shared, split);
        if (!few) F(pack_keys)(keys, F(at4)(&p->k, b, shared, split), p->k.stride[2], p->k.stride[3], here, p->D);
        if (!in_place) F(pack_rows)(packed, values, p->v.stride[2], p->v.stride[3], here, p->Dv);
        for (ptrdiff_t r = first; r < last; r += ROWS_AT_ONCE)
            F(attend_split)(plan, thread, task, b, shared, r, smaller(last, r + ROWS_AT_ONCE), split, few ? NULL : keys,
                            in_place ? values : packed, in_place ? p->v.stride[2] : plan->Dvp, maxima + (r - first), totals + (r - first));
    }
    place = F(place_of)(p, b, shared, first);
    for (ptrdiff_t r = first; !plan->parts && r < last; r++, place = F(place_after)(p, place))
        F(finish_row)(p, b, place, F(sums_of)(plan, task, b, place, r), maxima[r - first], totals[r - first]);
}

/* With splits: merge the parts of a row. */
static void F(merge_parts)(const F(attention_plan) *plan, ptrdiff_t head, ptrdiff_t row) {
    const pyrnn_attention *p = plan->p;
    const ptrdiff_t b = head / p->Hkv;
    const F(place) place = F(place_of)(p, b, head % p->Hkv, row);
    REAL *y = (REAL *)p->y + b * p->y_stride[0] + place.head * p->y_stride[1] + place.i * p->y_stride[2];
    REAL maximum = UNSEEN, total = 0, factors[2][STATE_ROWS];
    F(states) more;
    memset(y, 0, (size_t)p->Dv * sizeof(REAL));
    for (ptrdiff_t split = 0; split < plan->splits; split++) {
        const ptrdiff_t task = head * plan->splits + split;
        more.maximum[0] = plan->part_states[task * 2 * plan->rows + row];
        more.total[0] = plan->part_states[(task * 2 + 1) * plan->rows + row];
        F(merge_states)(&maximum, &total, &more, 1, factors[0], factors[1]);
        F(merge_sums)(y, factors[0][0], plan->parts + (task * plan->rows + row) * plan->Dvp, factors[1][0], p->Dv);
    }
    F(finish_row)(p, b, place, y, maximum, total);
}

static void F(attention_forward_work)(const member_t *me, void *context) {
    F(attention_plan) *plan = context;
    const ptrdiff_t heads = plan->p->B * plan->p->Hkv, tasks = heads * plan->blocks * plan->splits;
    ptrdiff_t task, first, last;
    while (!atomic_load(&plan->stopped) && (task = atomic_fetch_add(&plan->next, 1)) < tasks) {
        if (me->id == 0 && plan->p->interrupted()) atomic_store(&plan->stopped, 1);
        F(attend_task)(plan, me->id, task);
    }
    if (!plan->parts) return;
    team_wait(me);
    team_share(me, heads * plan->rows, 1, &first, &last);
    for (; first < last; first++) F(merge_parts)(plan, first / plan->rows, first % plan->rows);
}

static int F(attention_forward)(const pyrnn_attention *p) {
    F(attention_plan) plan;
    arena_t arena = {p->workspace, 0};
    F(plan_attention)(&plan, p, &arena);
    team_run(plan.threads, 0, F(attention_forward_work), &plan);
    return plan.stopped;
}
