/* y = x Wᵀ + b through the same panels, so that a row's result does not depend on the rows around it. */

typedef struct {
    const pyrnn_linear *p;
    ptrdiff_t Op, Ip;
    REAL *w, *bias;                      /* forward: packed */
    REAL *w_back, *x_panels, *dw, *db;   /* backward */
    int threads;
} F(linear_plan);

static void F(plan_linear)(F(linear_plan) *plan, const pyrnn_linear *p, arena_t *arena, int backward) {
    memset(plan, 0, sizeof *plan);
    plan->p = p;
    plan->Op = round_up(p->O, WIDTH);
    plan->Ip = round_up(p->I, WIDTH);
    const ptrdiff_t shares = larger(p->M / ROWS(2), larger(plan->Op, plan->Ip) / WIDTH);
    plan->threads = 2.0 * (double)p->M * (double)p->I * (double)p->O < 1e6 ? 1 : (int)smaller(p->threads, larger(shares, 1));
    if (!backward) {
        plan->w = take(arena, (size_t)(plan->Op * p->I) * sizeof(REAL));
        plan->bias = take(arena, (size_t)plan->Op * sizeof(REAL));
        return;
    }
    if (p->dx) plan->w_back = take(arena, (size_t)(p->O * plan->Ip) * sizeof(REAL));
    if (p->dw) {
        plan->x_panels = take(arena, (size_t)(BLOCK_ROWS * plan->Ip) * sizeof(REAL));
        plan->dw = take(arena, (size_t)(p->O * plan->Ip) * sizeof(REAL));
    }
    if (p->db) plan->db = take(arena, (size_t)plan->Op * sizeof(REAL));
}

/* to[first..last, :] = start + a · panels, `columns` columns, panels of WIDTH with K rows each. */
static void F(rows_times_panels)(
    const REAL *a, ptrdiff_t K, const REAL *panels, const REAL *start, REAL *to, ptrdiff_t columns, ptrdiff_t first, ptrdiff_t last
) {
    static const REAL zeros[WIDTH];
    REAL tile[MAX_ROWS * WIDTH];
    for (ptrdiff_t column = 0; column < columns; column += WIDTH) {
        const size_t bytes = (size_t)smaller(WIDTH, columns - column) * sizeof(REAL);
        for (ptrdiff_t r = first; r < last; r += ROWS(2)) {
            const ptrdiff_t count = smaller(ROWS(2), last - r);
            const F(product) product = {
                a + r * K, K, 1, panels + column * K, K, start ? start + column : zeros, 0, tile, WIDTH};
            F(tiles)[2][count](&product);
            for (ptrdiff_t m = 0; m < count; m++) memcpy(to + (r + m) * columns + column, tile + m * WIDTH, bytes);
        }
    }
}

static void F(linear_forward_work)(const member_t *me, void *context) {
    const F(linear_plan) *plan = context;
    const pyrnn_linear *p = plan->p;
    ptrdiff_t unit, end, first, last;
    team_share(me, plan->Op, WIDTH, &unit, &end);
    for (; unit < end; unit += WIDTH) {
        F(pack_units)(plan->w + unit * p->I, &p->w, GATE_NUMBERS, 1, unit, WIDTH, p->O, p->I);
        F(pack_bias)(plan->bias + unit, &p->b, GATE_NUMBERS, 1, unit, WIDTH, p->O);
    }
    team_wait(me);
    team_share(me, p->M, ROWS(2), &first, &last);
    F(rows_times_panels)(p->x, p->I, plan->w, plan->bias, p->y, p->O, first, last);
}

static void F(linear_backward_work)(const member_t *me, void *context) {
    const F(linear_plan) *plan = context;
    const pyrnn_linear *p = plan->p;
    const pyrnn_in x = {p->x, {p->I, 1, 0}};
    ptrdiff_t first, last, column, end, unit, unit_end;
    team_share(me, p->M, ROWS(2), &first, &last);
    team_share(me, plan->Ip, WIDTH, &column, &end);
    team_share(me, p->O, WIDTH, &unit, &unit_end);
    if (p->dx) {
        for (ptrdiff_t j = column; j < end; j += WIDTH)
            F(pack_columns)(plan->w_back + j * p->O, &p->w, j, p->I, p->O);
        team_wait(me);
        F(rows_times_panels)(p->dy, p->O, plan->w_back, NULL, p->dx, p->I, first, last);
    }
    if (plan->db) memset(plan->db + unit, 0, (size_t)(unit_end - unit) * sizeof(REAL));
    if (plan->dw) memset(plan->dw + unit * plan->Ip, 0, (size_t)((unit_end - unit) * plan->Ip) * sizeof(REAL));
    for (ptrdiff_t row = 0; row < p->M; row += BLOCK_ROWS) {
        const ptrdiff_t rows = smaller(BLOCK_ROWS, p->M - row);
        const REAL *dy = (const REAL *)p->dy + row * p->O;
        if (plan->db) F(add_columns)(dy, p->O, rows, unit, unit_end, plan->db);
        if (!plan->dw) continue;
        pyrnn_in block = x;
        block.data = (const REAL *)p->x + row * p->I;
        for (ptrdiff_t j = column; j < end; j += WIDTH) F(pack_columns)(plan->x_panels + j * rows, &block, j, p->I, rows);
        team_wait(me);
        for (ptrdiff_t j = 0; j < plan->Ip; j += WIDTH)
            F(add_outer)(dy + unit, p->O, unit_end - unit, plan->x_panels + j * rows, rows,
                         plan->dw + unit * plan->Ip + j, plan->Ip);
        team_wait(me);
    }
    if (p->db) memcpy((REAL *)p->db + unit, plan->db + unit, (size_t)(unit_end - unit) * sizeof(REAL));
    F(copy_rows)(p->dw, plan->dw, unit, unit_end, p->I, plan->Ip);
}

static void F(linear_forward)(const pyrnn_linear *p) {
    F(linear_plan) plan;
    arena_t arena = {p->workspace, 0};
    F(plan_linear)(&plan, p, &arena, 0);
    team_run(plan.threads, F(linear_forward_work), &plan);
}

static void F(linear_backward)(const pyrnn_linear *p) {
    F(linear_plan) plan;
    arena_t arena = {p->workspace, 0};
    F(plan_linear)(&plan, p, &arena, 1);
    team_run(plan.threads, F(linear_backward_work), &plan);
}

static size_t F(linear_workspace)(const pyrnn_linear *p, int backward) {
    F(linear_plan) plan;
    arena_t arena = {NULL, 64};
    F(plan_linear)(&plan, p, &arena, backward);
    return arena.used;
}
