/* Attention backward: see attention.h.

   (a) A block of rows against a block of keys gives the weights P and the gradients dS of the scores, and with them adds to
       dq (dS · k), dk (dSᵀ · q) and dv (Pᵀ · dy). Each element of these is one chain: dq's over the keys, dk's and dv's over
       the rows, both ascending. However the blocks are dealt out to tasks, the bits are the same.
   (b) With heads enough, a task is a head of keys with all its rows, and each block is computed once. Otherwise some tasks
       take a part of the keys, for dk and dv, and others a part of the rows, for dq: each block is computed twice.
   (c) The gradient of the bias is summed over what was broadcast: tasks of its own, one for each part of it.
   (d) What a query did not see has no part in it, be it NaN: keys that are not finite are zeros in the product for dq. */
#ifndef PYRNN_ATTENTION_BACKWARD_H
#define PYRNN_ATTENTION_BACKWARD_H
#define BACK_KEYS 128
#define BACK_ROWS 96
#define OF_KEYS 1 /* what a task computes */
#define OF_QUERIES 2
#endif

typedef struct {
    REAL *keys, *values;       /* transposed, in panels */
    REAL *key_rows;            /* [BACK_KEYS][Dp] */
    REAL *weights, *dscores;   /* [BACK_ROWS][BACK_KEYS] */
    REAL *dk, *dv;             /* [BACK_KEYS][Dp], [BACK_KEYS][Dvp] */
    REAL *queries, *dy, *dq;   /* [rows][Dp], [rows][Dvp], [rows][Dp] */
    REAL *row;                 /* [rows][3]: maximum, inverse of the sum, Σ dy·y */
    range_t *seen;             /* [rows] */
} F(back_scratch);

typedef struct {
    const pyrnn_attention *p;
    ptrdiff_t rows, Dp, Dvp;
    ptrdiff_t key_parts, row_parts;  /* tasks a head of keys; key_parts alone where a task computes all */
    ptrdiff_t bias_parts;
    F(back_scratch) *scratch;
    int threads;
    atomic_long next;
    atomic_int stopped;
} F(attention_back_plan);

static void F(take_back)(const F(attention_back_plan) *plan, F(back_scratch) *s, arena_t *arena) {
    const size_t Dp = (size_t)plan->Dp * sizeof(REAL), Dvp = (size_t)plan->Dvp * sizeof(REAL), rows = (size_t)plan->rows;
    F(back_scratch) taken = {
        .keys = take(arena, BACK_KEYS * Dp), .values = take(arena, BACK_KEYS * Dvp), .key_rows = take(arena, BACK_KEYS * Dp),
        .weights = take(arena, BACK_ROWS * BACK_KEYS * sizeof(REAL)), .dscores = take(arena, BACK_ROWS * BACK_KEYS * sizeof(REAL)),
        .dk = take(arena, BACK_KEYS * Dp), .dv = take(arena, BACK_KEYS * Dvp),
        .queries = take(arena, rows * Dp), .dy = take(arena, rows * Dvp), .dq = take(arena, rows * Dp),
        .row = take(arena, rows * 3 * sizeof(REAL)), .seen = take(arena, rows * sizeof(range_t))};
    if (s) *s = taken;
}

static void F(plan_attention_back)(F(attention_back_plan) *plan, const pyrnn_attention *p, arena_t *arena) {
    memset(plan, 0, sizeof *plan);
    plan->p = p;
    plan->rows = p->Hkv ? p->Hq / p->Hkv * p->N : 0;
    plan->Dp = round_up(p->D, LANES);
    plan->Dvp = round_up(p->Dv, LANES);
    const ptrdiff_t heads = p->B * p->Hkv;
    const double keys = (double)smaller(p->M, p->left + p->right + 1);
    plan->threads = 5 * (double)(p->B * p->Hq * p->N) * keys * (double)(p->D + p->Dv) < BUSY_FLOPS ? 1 : p->threads;
    plan->key_parts = 1;
    /* A block computed twice costs 9 products in place of 7; threads that have no head cost all theirs. */
    const ptrdiff_t turns = (heads + plan->threads - 1) / plan->threads;
    if ((double)heads / (double)(turns * plan->threads) < 7.0 / 9.0) {
        const ptrdiff_t wanted = (4 * plan->threads + heads - 1) / larger(1, heads);
        plan->key_parts = larger(1, smaller(wanted, (p->M + BACK_KEYS - 1) / BACK_KEYS));
        plan->row_parts = larger(1, smaller(wanted, (plan->rows + BACK_ROWS - 1) / BACK_ROWS));
    }
    plan->bias_parts = p->dbias ? (p->bias_shape[2] > 1 ? (p->N + BACK_ROWS - 1) / BACK_ROWS : 1) : 0;
    const ptrdiff_t tasks = larger(heads * (plan->key_parts + plan->row_parts), p->dbias ? p->bias_shape[0] * p->bias_shape[1] * plan->bias_parts : 0);
    plan->threads = (int)larger(1, smaller(plan->threads, tasks));
    plan->scratch = take(arena, (size_t)plan->threads * sizeof *plan->scratch);
    for (int t = 0; t < plan->threads; t++) F(take_back)(plan, arena->base ? plan->scratch + t : NULL, arena);
}

/* Bring rows [first, last) of a head of keys to scratch: those that see nothing as zeros. */
static void F(gather_rows)(const pyrnn_attention *p, const F(back_scratch) *s, ptrdiff_t b, ptrdiff_t shared, ptrdiff_t first, ptrdiff_t last) {
    const ptrdiff_t Dp = round_up(p->D, LANES), Dvp = round_up(p->Dv, LANES);
    F(place) row = F(place_of)(p, b, shared, first);
    for (ptrdiff_t r = first; r < last; r++, row = F(place_after)(p, row)) {
        const REAL *stats = (const REAL *)p->stats + ((b * p->Hq + row.head) * p->N + row.i) * 2;
        REAL *to = s->row + (r - first) * 3, *dy = s->dy + (r - first) * Dvp, *q = s->queries + (r - first) * Dp;
        to[0] = stats[0];
        to[1] = stats[1];
        to[2] = 0;
        s->seen[r - first] = stats[0] == UNSEEN ? (range_t){0, 0} : F(range_of)(p, b, row);
        if (stats[0] == UNSEEN) {
            memset(q, 0, (size_t)Dp * sizeof(REAL));
            memset(dy, 0, (size_t)Dvp * sizeof(REAL));
            continue;
        }
        F(pack_rows)(q, F(at4)(&p->q, b, row.head, row.i), 0, p->q.stride[3], 1, p->D);
        F(pack_rows)(dy, F(at4)(&p->dy, b, row.head, row.i), 0, p->dy.stride[3], 1, p->Dv);
        const REAL *y = (const REAL *)p->y + b * p->y_stride[0] + row.head * p->y_stride[1] + row.i * p->y_stride[2];
        F(vec) along = {0};
        for (ptrdiff_t j = 0; j < p->Dv; j += LANES) along = F(fma)(F(load)(dy + j), F(load_part)(y + j, p->Dv - j), along);
        to[2] = F(sum_of)(along);
    }
}

/* The union of what some rows see of keys [key, key + keys), from the start of a panel, as positions in the block. */
static inline range_t F(seen_of_block)(const range_t *seen, ptrdiff_t rows, ptrdiff_t key, ptrdiff_t keys) {
    range_t r = {keys, 0};
    for (ptrdiff_t i = 0; i < rows; i++) {
        if (seen[i].first >= seen[i].last) continue;
        r.first = smaller(r.first, larger(0, seen[i].first - key));
        r.last = larger(r.last, smaller(keys, seen[i].last - key));
    }
    r.first = r.first / WIDTH * WIDTH;
    return r;
}

/* From scores and the weights' gradients of a row to its weights and the scores' gradients, in place; `part`: some keys are not
   seen, and count for nothing (0 · NaN is NaN). */
ALWAYS_INLINE void F(back_row)(
    const int part, REAL *weights, REAL *dscores, F(scoring) how, const REAL *stats, ptrdiff_t from, ptrdiff_t to
) {
    const F(vec) most = F(all)(stats[0]), inverse = F(all)(stats[1]), along = F(all)(stats[2]);
    for (ptrdiff_t j = from; j < to; j += LANES) {
        const F(vec) w = F(power_of)(weights, j, how, most) * inverse;
        F(vec) d = w * (F(load)(dscores + j) - along);
        if (part) {
            const F(vec) exponent = how.added ? F(load)(how.added + j) : F(load)(weights + j) * how.scale;
            d = F(select)(exponent <= UNSEEN / 2, F(all)(0), d);
        }
        F(store)(weights + j, w);
        F(store)(dscores + j, d);
    }
}

/* weights and dscores of some rows (numbered from `row` in the scratch, `first` in the head) and keys [from, to), whole
   vectors: of those rows and panels that anything is seen of, the rest zeros. */
static void F(back_block)(
    const pyrnn_attention *p, const F(back_scratch) *s, ptrdiff_t b, ptrdiff_t shared, ptrdiff_t first, ptrdiff_t row, ptrdiff_t rows,
    ptrdiff_t key, ptrdiff_t keys, ptrdiff_t from, ptrdiff_t to
) {
    const ptrdiff_t Dp = round_up(p->D, LANES), Dvp = round_up(p->Dv, LANES);
    REAL added[BACK_KEYS];
    F(place) place = F(place_of)(p, b, shared, first);
    for (ptrdiff_t r0 = 0; r0 < rows; r0 += ROWS_AT_ONCE) {
        const ptrdiff_t here = smaller(ROWS_AT_ONCE, rows - r0);
        const range_t seen = F(seen_of_block)(s->seen + row + r0, here, key, keys);
        const ptrdiff_t begin = smaller(seen.first, to), end = larger(begin, smaller(to, round_up(seen.last, WIDTH)));
        REAL *weights = s->weights + r0 * BACK_KEYS, *dscores = s->dscores + r0 * BACK_KEYS;
        F(rows_by_keys)(s->queries + (row + r0) * Dp, Dp, here, p->D, s->keys, keys, begin, end, weights, BACK_KEYS);
        F(rows_by_keys)(s->dy + (row + r0) * Dvp, Dvp, here, p->Dv, s->values, keys, begin, end, dscores, BACK_KEYS);
        for (ptrdiff_t r = 0; r < here; r++, place = F(place_after)(p, place), weights += BACK_KEYS, dscores += BACK_KEYS) {
            const REAL *stats = s->row + (row + r0 + r) * 3;
            const range_t own = s->seen[row + r0 + r];
            const int none = own.first >= own.last;
            for (int k = 0; k < 2; k++) {
                REAL *cleared = k ? dscores : weights;
                memset(cleared + from, 0, (size_t)((none ? to : begin) - from) * sizeof(REAL));
                memset(cleared + end, 0, (size_t)(none ? 0 : to - end) * sizeof(REAL));
            }
            if (none || begin == end) continue;
            F(scoring) how;
            F(mask_row)(p, b, place, own, key, weights, begin, end, added, &how);
            if (p->dropout) F(drop)(p, b, place, key, dscores, begin, end);
            if (how.added || own.first - key > begin || own.last - key < end) {
                F(back_row)(1, weights, dscores, how, stats, begin, end);
            } else {
                how.added = NULL;
                F(back_row)(0, weights, dscores, how, stats, begin, end);
            }
            if (p->dropout) F(drop)(p, b, place, key, weights, begin, end);
        }
    }
}

/* Of rows [0, rows) of a block, those from the first to the last that see a panel of keys. */
static inline range_t F(rows_seeing)(const range_t *seen, ptrdiff_t rows, ptrdiff_t key, ptrdiff_t keys) {
    range_t r = {rows, 0};
    for (ptrdiff_t i = 0; i < rows; i++)
        if (seen[i].first < key + keys && seen[i].last > key) {
            r.first = smaller(r.first, i);
            r.last = i + 1;
        }
    return r;
}

/* Write `rows` rows of a scratch, times a factor, to an output of strides. */
static inline void F(write_rows)(REAL *out, ptrdiff_t out_row, const REAL *in, ptrdiff_t rows, ptrdiff_t columns, REAL factor) {
    const ptrdiff_t wide = round_up(columns, LANES);
    for (ptrdiff_t r = 0; r < rows; r++)
        for (ptrdiff_t j = 0; j < columns; j += LANES)
            F(store_part)(out + r * out_row + j, F(load)(in + r * wide + j) * factor, columns - j);
}

static inline void F(pack_key_block)(const pyrnn_attention *p, const F(back_scratch) *s, ptrdiff_t b, ptrdiff_t shared, ptrdiff_t key, ptrdiff_t keys) {
    F(pack_keys)(s->keys, F(at4)(&p->k, b, shared, key), p->k.stride[2], p->k.stride[3], keys, p->D);
    F(pack_keys)(s->values, F(at4)(&p->v, b, shared, key), p->v.stride[2], p->v.stride[3], keys, p->Dv);
}

static void F(attend_back)(
    const F(attention_back_plan) *plan, const F(back_scratch) *s, ptrdiff_t head, ptrdiff_t first, ptrdiff_t last,
    ptrdiff_t key_first, ptrdiff_t key_last, int what
) {
    const pyrnn_attention *p = plan->p;
    const ptrdiff_t b = head / p->Hkv, shared = head % p->Hkv, Dp = plan->Dp, Dvp = plan->Dvp;
    F(gather_rows)(p, s, b, shared, first, last);
    if (what & OF_QUERIES) memset(s->dq, 0, (size_t)((last - first) * Dp) * sizeof(REAL));
    for (ptrdiff_t key = key_first; key < key_last; key += BACK_KEYS) {
        const ptrdiff_t keys = smaller(BACK_KEYS, key_last - key);
        F(pack_key_block)(p, s, b, shared, key, keys);
        if (what & OF_QUERIES) {
            F(pack_rows)(s->key_rows, F(at4)(&p->k, b, shared, key), p->k.stride[2], p->k.stride[3], keys, p->D);
            if (!F(all_finite)(s->key_rows, keys * Dp))
                for (ptrdiff_t i = 0; i < keys * Dp; i++)
                    if (!isfinite(s->key_rows[i])) s->key_rows[i] = 0;
        }
        memset(s->dk, 0, (size_t)(keys * Dp) * sizeof(REAL));
        memset(s->dv, 0, (size_t)(keys * Dvp) * sizeof(REAL));
        for (ptrdiff_t row = 0; row < last - first; row += BACK_ROWS) {
            const ptrdiff_t rows = smaller(BACK_ROWS, last - first - row);
            const range_t seen = F(seen_of_block)(s->seen + row, rows, key, keys);
            if (seen.first >= seen.last) continue;
            F(back_block)(p, s, b, shared, first + row, row, rows, key, keys, seen.first, round_up(seen.last, LANES));
            for (ptrdiff_t j = seen.first; what & OF_KEYS && j < seen.last; j += WIDTH) {
                const ptrdiff_t width = smaller(WIDTH, seen.last - j);
                const range_t by = F(rows_seeing)(s->seen + row, rows, key + j, width);
                if (by.first >= by.last) continue;
                if (p->dv) {
                    const F(product) dv = {
                        .a = s->weights + by.first * BACK_KEYS + j, .a_row = 1, .a_k = BACK_KEYS, .K = by.last - by.first,
                        .b = s->dy + (row + by.first) * Dvp, .b_k = Dvp,
                        .c = s->dv + j * Dvp, .c_row = Dvp, .out = s->dv + j * Dvp, .out_row = Dvp};
                    F(rows_by_columns)(dv, width, Dvp);
                }
                if (p->dk) {
                    const F(product) dk = {
                        .a = s->dscores + by.first * BACK_KEYS + j, .a_row = 1, .a_k = BACK_KEYS, .K = by.last - by.first,
                        .b = s->queries + (row + by.first) * Dp, .b_k = Dp,
                        .c = s->dk + j * Dp, .c_row = Dp, .out = s->dk + j * Dp, .out_row = Dp};
                    F(rows_by_columns)(dk, width, Dp);
                }
            }
            for (ptrdiff_t r = 0; what & OF_QUERIES && r < rows; r += ROWS_AT_ONCE) {
                const ptrdiff_t here = smaller(ROWS_AT_ONCE, rows - r);
                const range_t theirs = F(seen_of_block)(s->seen + row + r, here, key, keys);
                if (theirs.first >= theirs.last) continue;
                const F(product) dq = {
                    .a = s->dscores + r * BACK_KEYS + theirs.first, .a_row = BACK_KEYS, .a_k = 1,
                    .b = s->key_rows + theirs.first * Dp, .b_k = Dp, .K = theirs.last - theirs.first,
                    .c = s->dq + (row + r) * Dp, .c_row = Dp, .out = s->dq + (row + r) * Dp, .out_row = Dp};
                F(rows_by_columns)(dq, here, Dp);
            }
        }
        if (what & OF_KEYS && p->dk)
            F(write_rows)((REAL *)p->dk + b * p->dk_stride[0] + shared * p->dk_stride[1] + key * p->dk_stride[2], p->dk_stride[2],
                          s->dk, keys, p->D, (REAL)p->scale);
        if (what & OF_KEYS && p->dv)
            F(write_rows)((REAL *)p->dv + b * p->dv_stride[0] + shared * p->dv_stride[1] + key * p->dv_stride[2], p->dv_stride[2],
                          s->dv, keys, p->Dv, 1);
    }
    F(place) row = F(place_of)(p, b, shared, first);
    for (ptrdiff_t r = first; what & OF_QUERIES && r < last; r++, row = F(place_after)(p, row)) {
        F(write_rows)((REAL *)p->dq + b * p->dq_stride[0] + row.head * p->dq_stride[1] + row.i * p->dq_stride[2], 0,
                      s->dq + (r - first) * Dp, 1, p->D, (REAL)p->scale);
    }
}

/* dbias += dS of one head of queries, rows [first, last), where the bias's own index is (i, j). */
static void F(attend_bias)(
    const F(attention_back_plan) *plan, const F(back_scratch) *s, ptrdiff_t b, ptrdiff_t head, ptrdiff_t first, ptrdiff_t last, REAL *dbias
) {
    const pyrnn_attention *p = plan->p;
    const ptrdiff_t group = p->Hq / p->Hkv, shared = head / group, at = head % group * p->N, columns = p->bias_shape[3];
    F(gather_rows)(p, s, b, shared, at + first, at + last);
    for (ptrdiff_t key = 0; key < p->M; key += BACK_KEYS) {
        const ptrdiff_t keys = smaller(BACK_KEYS, p->M - key);
        F(pack_key_block)(p, s, b, shared, key, keys);
        for (ptrdiff_t row = 0; row < last - first; row += BACK_ROWS) {
            const ptrdiff_t rows = smaller(BACK_ROWS, last - first - row);
            const range_t seen = F(seen_of_block)(s->seen + row, rows, key, keys);
            if (seen.first >= seen.last) continue;
            F(back_block)(p, s, b, shared, at + first + row, row, rows, key, keys, seen.first, round_up(seen.last, LANES));
            for (ptrdiff_t r = 0; r < rows; r++) {
                const REAL *d = s->dscores + r * BACK_KEYS;
                REAL *to = dbias + (p->bias_shape[2] > 1 ? first + row + r : 0) * columns;
                if (columns > 1) {
                    for (ptrdiff_t j = seen.first; j < seen.last; j += LANES) {
                        const ptrdiff_t left = keys - j;
                        F(store_part)(to + key + j, F(load_part)(to + key + j, left) + F(load)(d + j), left);
                    }
                } else {
                    F(vec) sum = {0};
                    for (ptrdiff_t j = seen.first; j < seen.last; j += LANES) sum += F(load)(d + j);
                    *to += F(sum_of)(sum);
                }
            }
        }
    }
}

static void F(bias_task)(const F(attention_back_plan) *plan, const F(back_scratch) *s, ptrdiff_t task) {
    const pyrnn_attention *p = plan->p;
    const ptrdiff_t *shape = p->bias_shape, part = task % plan->bias_parts, of = task / plan->bias_parts;
    const ptrdiff_t i = of / shape[1], j = of % shape[1];
    const ptrdiff_t first = shape[2] > 1 ? part * BACK_ROWS : 0, last = shape[2] > 1 ? smaller(p->N, first + BACK_ROWS) : p->N;
    REAL *dbias = (REAL *)p->dbias + of * shape[2] * shape[3];
    memset(dbias + (shape[2] > 1 ? first * shape[3] : 0), 0, (size_t)((shape[2] > 1 ? last - first : shape[2]) * shape[3]) * sizeof(REAL));
    for (ptrdiff_t b = shape[0] > 1 ? i : 0; b < (shape[0] > 1 ? i + 1 : p->B); b++)
        for (ptrdiff_t head = shape[1] > 1 ? j : 0; head < (shape[1] > 1 ? j + 1 : p->Hq); head++)
            F(attend_bias)(plan, s, b, head, first, last, dbias);
}

static void F(attention_backward_work)(const member_t *me, void *context) {
    F(attention_back_plan) *plan = context;
    const pyrnn_attention *p = plan->p;
    const F(back_scratch) *s = plan->scratch + me->id;
    const ptrdiff_t heads = p->B * p->Hkv, parts = plan->key_parts + plan->row_parts, tasks = p->dq || p->dk || p->dv ? heads * parts : 0;
    const ptrdiff_t more = p->dbias ? p->bias_shape[0] * p->bias_shape[1] * plan->bias_parts : 0;
    const int all = (p->dk || p->dv ? OF_KEYS : 0) | (p->dq ? OF_QUERIES : 0);
    ptrdiff_t task;
    while (!atomic_load(&plan->stopped) && (task = atomic_fetch_add(&plan->next, 1)) < tasks + more) {
        if (me->id == 0 && p->interrupted()) atomic_store(&plan->stopped, 1);
        if (task >= tasks) {
            F(bias_task)(plan, s, task - tasks);
            continue;
        }
        const ptrdiff_t head = task / parts, part = task % parts;
        if (!plan->row_parts) {
            F(attend_back)(plan, s, head, 0, plan->rows, 0, p->M, all);
        } else if (part < plan->key_parts) {
            const ptrdiff_t blocks = (p->M + BACK_KEYS - 1) / BACK_KEYS;
            const ptrdiff_t first = blocks * part / plan->key_parts * BACK_KEYS, last = blocks * (part + 1) / plan->key_parts * BACK_KEYS;
            if (all & OF_KEYS) F(attend_back)(plan, s, head, 0, plan->rows, first, smaller(last, p->M), OF_KEYS);
        } else if (all & OF_QUERIES) {
            const ptrdiff_t blocks = (plan->rows + BACK_ROWS - 1) / BACK_ROWS, at = part - plan->key_parts;
            const ptrdiff_t first = blocks * at / plan->row_parts * BACK_ROWS, last = blocks * (at + 1) / plan->row_parts * BACK_ROWS;
            F(attend_back)(plan, s, head, first, smaller(last, plan->rows), 0, p->M, OF_QUERIES);
        }
    }
}

static size_t F(attention_workspace)(const pyrnn_attention *p, int backward) {
    arena_t arena = {NULL, 64};
    if (backward) {
        F(attention_back_plan) plan;
        F(plan_attention_back)(&plan, p, &arena);
    } else {
        F(attention_plan) plan;
        F(plan_attention)(&plan, p, &arena);
    }
    return arena.used;
}

static int F(attention_backward)(const pyrnn_attention *p) {
    F(attention_back_plan) plan;
    arena_t arena = {p->workspace, 0};
    F(plan_attention_back)(&plan, p, &arena);
    team_run(plan.threads, 0, F(attention_backward_work), &plan);
    return plan.stopped;
}
