/* y = x Wᵀ + b through the same panels, so that a row's result does not depend on the rows around it.

   (a) Products run in blocks of LINEAR_ROWS rows and K_BLOCK of k: a block of rows stays in L2 while the panels pass.
   (b) A weight gradient is summed over blocks of LINEAR_SUM rows, more than a layer's: it may be too large for a cache, and is
       read and written once a block. */
#ifndef PYRNN_LINEAR_H
#define PYRNN_LINEAR_H
#define LINEAR_ROWS 240
#define LINEAR_SUM 1024
#endif

typedef struct {
    const pyrnn_linear *p;
    ptrdiff_t Op, Ip;
    REAL *w, *bias;                      /* forward: packed */
    REAL *w_back, *x_panels, *dw, *db;   /* backward */
    REAL *scratch;                       /* of add_outer, per thread */
    int threads;
} F(linear_plan);

static void F(take_linear)(F(linear_plan) *plan, arena_t *arena) {
    plan->w = take(arena, (size_t)(plan->Op * plan->p->I) * sizeof(REAL));
    plan->bias = take(arena, (size_t)plan->Op * sizeof(REAL));
}

static void F(plan_linear)(F(linear_plan) *plan, const pyrnn_linear *p, arena_t *arena, int backward) {
    memset(plan, 0, sizeof *plan);
    plan->p = p;
    plan->Op = round_up(p->O, LANES);
    plan->Ip = round_up(p->I, LANES);
    const ptrdiff_t shares = larger(p->M / ROWS(MAX_VECTORS), larger(plan->Op, plan->Ip) / WIDTH);
    plan->threads = 2.0 * (double)p->M * (double)p->I * (double)p->O < 1e6 ? 1 : (int)smaller(p->threads, larger(shares, 1));
    if (!backward) {
        arena_t given = {p->packed, 0};
        F(take_linear)(plan, p->packed ? &given : arena);
        return;
    }
    const ptrdiff_t sum_rows = smaller(LINEAR_SUM, p->M);
    if (p->dx) plan->w_back = take(arena, (size_t)(p->O * plan->Ip) * sizeof(REAL));
    if (p->dw) {
        plan->x_panels = take(arena, (size_t)(sum_rows * plan->Ip) * sizeof(REAL));
        plan->scratch = take(arena, (size_t)(p->threads * sum_rows * SCRATCH_ROW) * sizeof(REAL));
        plan->dw = F(sums)(p->dw, p->O, p->I, plan->Ip, arena);
    }
    if (p->db) plan->db = take(arena, (size_t)plan->Op * sizeof(REAL));
}

/* to[first..last, :] = start + a · panels, `columns` columns, panels of WIDTH with K rows each. */
static void F(rows_times_panels)(
    const REAL *a, ptrdiff_t K, const REAL *panels, const REAL *start, REAL *to, ptrdiff_t columns, ptrdiff_t first, ptrdiff_t last
) {
    static const REAL zeros[WIDTH];
    REAL edge[LINEAR_ROWS * WIDTH]; /* the last panel's columns, some of which do not exist */
    const ptrdiff_t padded = round_up(columns, LANES), whole = columns / WIDTH * WIDTH, rest = padded - whole;
    for (ptrdiff_t r = first; r < last; r += LINEAR_ROWS) {
        const ptrdiff_t rows = smaller(LINEAR_ROWS, last - r);
        ptrdiff_t k = 0;
        do {
            const ptrdiff_t here = smaller(K_BLOCK, K - k);
            F(product) p = {
                .a = a + r * K + k, .a_row = K, .a_k = 1, .K = here,
                .b = panels + k * WIDTH, .b_k = WIDTH, .b_next = WIDTH * K,
                .c = k ? to + r * columns : start ? start : zeros, .c_row = k ? columns : 0, .c_next = k || start ? WIDTH : 0,
                .out = to + r * columns, .out_row = columns, .out_next = WIDTH};
            F(multiply)(MAX_VECTORS, whole / LANES, rows, p);
            if (rest) {
                p.b = panels + whole * K + k * rest;
                p.b_k = rest;
                p.c = k ? edge : start ? start + whole : zeros;
                p.c_row = k ? rest : 0;
                p.out = edge;
                p.out_row = rest;
                F(panel_rows)((int)(rest / LANES), rows, p);
            }
            k += here;
        } while (k < K);
        for (ptrdiff_t m = 0; rest && m < rows; m++)
            memcpy(to + (r + m) * columns + whole, edge + m * rest, (size_t)(columns - whole) * sizeof(REAL));
    }
}

static void F(pack_linear)(const F(linear_plan) *plan, ptrdiff_t first, ptrdiff_t last) {
    const pyrnn_linear *p = plan->p;
    for (ptrdiff_t unit = first; unit < last; unit += WIDTH) {
        const ptrdiff_t wide = smaller(WIDTH, plan->Op - unit);
        F(pack_units)(plan->w + unit * p->I, &p->w, GATE_NUMBERS, 1, unit, wide, p->O, p->I);
        F(pack_bias)(plan->bias + unit, &p->b, GATE_NUMBERS, 1, unit, wide, p->O);
    }
}

static void F(linear_forward_work)(const member_t *me, void *context) {
    const F(linear_plan) *plan = context;
    const pyrnn_linear *p = plan->p;
    ptrdiff_t unit, end, first, last;
    team_share(me, plan->Op, WIDTH, &unit, &end);
    if (!p->packed) {
        F(pack_linear)(plan, unit, end);
        team_wait(me);
    }
    team_share(me, p->M, ROWS(MAX_VECTORS), &first, &last);
    F(rows_times_panels)(p->x, p->I, plan->w, plan->bias, p->y, p->O, first, last);
}

static void F(linear_backward_work)(const member_t *me, void *context) {
    const F(linear_plan) *plan = context;
    const pyrnn_linear *p = plan->p;
    const pyrnn_in x = {p->x, {p->I, 1, 0}};
    ptrdiff_t first, last, column, end, unit, unit_end;
    team_share(me, p->M, ROWS(MAX_VECTORS), &first, &last);
    team_share(me, plan->Ip, WIDTH, &column, &end);
    team_share(me, p->O, WIDTH, &unit, &unit_end);
    if (p->dx) {
        for (ptrdiff_t j = column; j < end; j += WIDTH)
            F(pack_columns)(plan->w_back + j * p->O, &p->w, j, smaller(WIDTH, plan->Ip - j), p->I, p->O);
        team_wait(me);
        F(rows_times_panels)(p->dy, p->O, plan->w_back, NULL, p->dx, p->I, first, last);
    }
    if (plan->db) memset(plan->db + unit, 0, (size_t)(unit_end - unit) * sizeof(REAL));
    if (plan->dw) memset(plan->dw + unit * plan->Ip, 0, (size_t)((unit_end - unit) * plan->Ip) * sizeof(REAL));
    for (ptrdiff_t row = 0; row < p->M; row += LINEAR_SUM) {
        const ptrdiff_t rows = smaller(LINEAR_SUM, p->M - row);
        const REAL *dy = (const REAL *)p->dy + row * p->O;
        if (plan->db) F(add_columns)(dy, p->O, rows, unit, unit_end, plan->db);
        if (!plan->dw) continue;
        pyrnn_in block = x;
        block.data = (const REAL *)p->x + row * p->I;
        for (ptrdiff_t j = column; j < end; j += WIDTH)
            F(pack_columns)(plan->x_panels + j * rows, &block, j, smaller(WIDTH, plan->Ip - j), p->I, rows);
        team_wait(me);
        const F(outer) outer = {plan->x_panels, plan->Ip, plan->dw + unit * plan->Ip, plan->Ip};
        F(add_outer)(dy + unit, p->O, unit_end - unit, rows, 1, &outer,
                     plan->scratch + me->id * smaller(LINEAR_SUM, p->M) * SCRATCH_ROW);
        team_wait(me);
    }
    if (p->db) memcpy((REAL *)p->db + unit, plan->db + unit, (size_t)(unit_end - unit) * sizeof(REAL));
    F(copy_rows)(p->dw, plan->dw, unit, unit_end, p->I, plan->Ip);
}

static void F(linear_forward)(const pyrnn_linear *p) {
    F(linear_plan) plan;
    arena_t arena = {p->workspace, 0};
    F(plan_linear)(&plan, p, &arena, 0);
    team_run(plan.threads, 0, F(linear_forward_work), &plan);
}

static void F(linear_backward)(const pyrnn_linear *p) {
    F(linear_plan) plan;
    arena_t arena = {p->workspace, 0};
    F(plan_linear)(&plan, p, &arena, 1);
    team_run(plan.threads, 0, F(linear_backward_work), &plan);
}

static size_t F(linear_pack)(const pyrnn_linear *p, void *packed) {
    F(linear_plan) plan = {.p = p, .Op = round_up(p->O, LANES)};
    arena_t arena = {packed, 0};
    F(take_linear)(&plan, &arena);
    if (packed) F(pack_linear)(&plan, 0, plan.Op);
    return arena.used + 64;
}

static size_t F(linear_workspace)(const pyrnn_linear *p, int backward) {
    F(linear_plan) plan;
    arena_t arena = {NULL, 64};
    F(plan_linear)(&plan, p, &arena, backward);
    return arena.used;
}
