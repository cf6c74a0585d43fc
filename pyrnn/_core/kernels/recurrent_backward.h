/* The backward walk: the same blocks, last first. Steps make gate gradients; a block makes weight and input gradients. */

static void F(plan_backward)(F(plan) *plan, const pyrnn_recurrent *p, arena_t *arena) {
    F(begin_plan)(plan, p, arena);
    const cell_t *cell = plan->cell;
    const ptrdiff_t rows = plan->block * p->B, weights = cell->gates * p->H;
    plan->d_row = cell->grads * plan->Hp + LANES;
    plan->hh_back = take(arena, (size_t)(weights * plan->Hp) * sizeof(REAL));
    plan->dh = take(arena, (size_t)(p->B * plan->Hp) * sizeof(REAL));
    if (p->cell == PYRNN_LSTM) plan->dc = take(arena, (size_t)(p->B * plan->Hp) * sizeof(REAL));
    plan->d = take(arena, (size_t)(rows * plan->d_row) * sizeof(REAL));
    if (p->dx) {
        plan->ih_back = take(arena, (size_t)(weights * plan->Ip) * sizeof(REAL));
        plan->made = take(arena, (size_t)(rows * WIDTH) * sizeof(REAL));
    }
    if (p->dw_ih) {
        plan->x_panels = take(arena, (size_t)(rows * plan->Ip) * sizeof(REAL));
        plan->dw_ih = F(sums)(p->dw_ih, weights, p->I, plan->Ip, arena);
    }
    if (p->dw_hh) {
        plan->h_panels = take(arena, (size_t)(rows * plan->Hp) * sizeof(REAL));
        if (p->cell == PYRNN_GRU_BEFORE) plan->r_panels = take(arena, (size_t)(rows * plan->Hp) * sizeof(REAL));
        plan->dw_hh = F(sums)(p->dw_hh, weights, p->H, plan->Hp, arena);
    }
    if (p->dw_ih || p->dw_hh) plan->scratch = take(arena, (size_t)(p->threads * rows * SCRATCH_ROW) * sizeof(REAL));
    if (p->db || p->db_hn) plan->db = take(arena, (size_t)(cell->grads * plan->Hp) * sizeof(REAL));
}

/* The gate gradients of step s for this part, and what goes on to the earlier state without a product. */
static void F(gate_gradients)(const F(plan) *plan, const F(part) *part, ptrdiff_t s, REAL *d_step) {
    const pyrnn_recurrent *p = plan->p;
    const ptrdiff_t rows = F(own)(part, plan->active[s]);
    for (ptrdiff_t r = 0; r < rows; r++) {
        const ptrdiff_t i = part->first + r * part->stride;
        REAL *d = d_step + i * plan->d_row, *carried = plan->dh + i * plan->Hp;
        const REAL *dy = p->dy.data ? F(at)(&p->dy, F(caller_row)(p, i), F(element)(p, i, s), 0) : NULL;
        for (ptrdiff_t unit = part->unit; unit < part->unit_end; unit += LANES) {
            F(vec) dh = F(load)(carried + unit);
            if (dy) dh += F(load_part)(dy + unit, p->H - unit);
            F(vec) on;
            switch (p->cell) {
            case PYRNN_LSTM: on = F(lstm_back)(plan, s, i, unit, dh, d); break;
            case PYRNN_GRU_AFTER:
            case PYRNN_GRU_BEFORE: on = F(gru_back)(plan, s, i, unit, dh, d); break;
            default: on = F(rnn_back)(plan, s, i, unit, dh, d);
            }
            F(store)(carried + unit, on);
        }
    }
}

/* dh += d · W_hh over the gates [first_gate, last_gate) for this part's rows and units. */
static void F(units_gradients)(
    const F(plan) *plan, const F(part) *part, ptrdiff_t s, const REAL *d_step, int first_gate, int last_gate
) {
    const pyrnn_recurrent *p = plan->p;
    const cell_t *cell = plan->cell;
    const ptrdiff_t Hp = plan->Hp, rows = F(own)(part, plan->active[s]), stride = part->stride, d_row = plan->d_row;
    for (ptrdiff_t unit = part->unit, units; rows && unit < part->unit_end; unit += units) {
        const ptrdiff_t panel = unit / WIDTH * WIDTH, wide = smaller(WIDTH, Hp - panel);
        const int several = rows == 1 && unit == panel && unit + PANELS(MAX_VECTORS) * WIDTH <= part->unit_end;
        units = several ? PANELS(MAX_VECTORS) * WIDTH : smaller(panel + wide, part->unit_end) - unit;
        REAL *dh = plan->dh + part->first * Hp + unit;
        for (int g = first_gate; g < last_gate; g++) {
            const F(product) product = {
                .a = d_step + part->first * d_row + cell->hh_plane[g] * Hp, .a_row = stride * d_row, .a_k = 1, .K = p->H,
                .b = plan->hh_back + (panel * cell->gates + g * wide) * p->H + unit - panel, .b_k = wide,
                .b_next = WIDTH * cell->gates * p->H,
                .c = dh, .c_row = stride * Hp, .c_next = WIDTH,
                .out = dh, .out_row = stride * Hp, .out_next = WIDTH};
            if (several) F(row_tiles)[MAX_VECTORS](&product, product.b);
            else F(panel_rows)((int)(units / LANES), rows, product);
        }
    }
}

static void F(state_gradients)(
    const F(plan) *plan, const F(part) *part, ptrdiff_t s, const REAL *d_step, int first_gate, int last_gate
) {
    const ptrdiff_t weights = (part->unit_end - part->unit) * (last_gate - first_gate) * plan->p->H;
    const ptrdiff_t units = TURN(MAX_VECTORS), turns = F(turns)(part, units, weights * (ptrdiff_t)sizeof(REAL));
    for (ptrdiff_t t = 0; t < turns; t++) {
        const F(part) piece = F(turn)(part, units, turns, t, s);
        F(units_gradients)(plan, &piece, s, d_step, first_gate, last_gate);
    }
}

static void F(step_backward)(const F(plan) *plan, const F(part) *part, ptrdiff_t s, REAL *d_step) {
    F(gate_gradients)(plan, part, s, d_step);
    F(wait_for_units)(plan, part->me);
    if (plan->p->cell == PYRNN_GRU_BEFORE) {
        F(gru_before_reset_back)(plan, part, s, d_step);
        F(wait_for_units)(plan, part->me);
        F(state_gradients)(plan, part, s, d_step, 0, 2);
    } else {
        F(state_gradients)(plan, part, s, d_step, 0, plan->cell->gates);
    }
}

/* The block's inputs and earlier states as panels, this thread's columns of them. */
static void F(gather_panels)(const F(plan) *plan, const member_t *me, ptrdiff_t s0, ptrdiff_t s1, ptrdiff_t rows) {
    const pyrnn_recurrent *p = plan->p;
    ptrdiff_t x_first, x_last, h_first, h_last, row = 0;
    team_share(me, plan->Ip, WIDTH, &x_first, &x_last);
    team_share(me, plan->Hp, WIDTH, &h_first, &h_last);
    for (ptrdiff_t s = s0; s < s1; s++) {
        for (ptrdiff_t i = 0; i < plan->active[s]; i++, row++) {
            if (plan->x_panels) {
                const REAL *x = F(at)(&p->x, F(caller_row)(p, i), F(element)(p, i, s), 0);
                for (ptrdiff_t j = x_first; j < x_last; j += WIDTH) {
                    const ptrdiff_t wide = smaller(WIDTH, plan->Ip - j), here = smaller(wide, p->I - j);
                    REAL *to = plan->x_panels + j * rows + row * wide;
                    if (here == WIDTH && p->x.stride[2] == 1) {
                        for (ptrdiff_t k = 0; k < WIDTH; k += LANES) F(store)(to + k, F(load)(x + j + k));
                        continue;
                    }
                    for (ptrdiff_t k = 0; k < here; k++) to[k] = x[(j + k) * p->x.stride[2]];
                    for (ptrdiff_t k = here; k < wide; k++) to[k] = 0;
                }
            }
            if (plan->h_panels) {
                const REAL *h = F(h_slot)(p, plan, s) + i * plan->Hp;
                for (ptrdiff_t j = h_first; j < h_last; j += LANES) {
                    const ptrdiff_t panel = j / WIDTH * WIDTH, wide = smaller(WIDTH, plan->Hp - panel);
                    const ptrdiff_t to = panel * rows + row * wide + j % WIDTH;
                    F(store)(plan->h_panels + to, F(load)(h + j));
                    if (plan->r_panels)
                        F(store)(plan->r_panels + to, F(load)(h + j) * F(load)(F(gates_of)(p, plan, s, i) + j));
                }
            }
        }
    }
}

/* Add the block's part of the weight gradients, for this thread's slice of units of every gate. */
static void F(weight_gradients)(const F(plan) *plan, const member_t *me, ptrdiff_t rows) {
    const pyrnn_recurrent *p = plan->p;
    const cell_t *cell = plan->cell;
    const ptrdiff_t Hp = plan->Hp;
    REAL *scratch = plan->scratch + me->id * plan->block * p->B * SCRATCH_ROW;
    ptrdiff_t first, last;
    team_share(me, p->H, LANES, &first, &last);
    for (int g = 0; g < cell->gates; g++) {
        const REAL *d = plan->d + first;
        F(outer) outers[2];
        int n = 0;
        if (plan->dw_ih) {
            outers[n++] = (F(outer)){
                plan->x_panels, plan->Ip, plan->dw_ih + (g * p->H + first) * plan->Ip, plan->Ip};
        }
        if (cell->hh_plane[g] != g) { /* another gradient for the state than for the inputs */
            F(add_outer)(d + g * Hp, plan->d_row, last - first, rows, n, outers, scratch);
            n = 0;
        }
        if (plan->dw_hh) {
            const REAL *h = p->cell == PYRNN_GRU_BEFORE && g == 2 ? plan->r_panels : plan->h_panels;
            outers[n++] = (F(outer)){h, Hp, plan->dw_hh + (g * p->H + first) * Hp, Hp};
        }
        F(add_outer)(d + cell->hh_plane[g] * Hp, plan->d_row, last - first, rows, n, outers, scratch);
    }
    for (int plane = 0; plan->db && plane < cell->grads; plane++)
        F(add_columns)(plan->d + plane * Hp, plan->d_row, rows, first, last, plan->db + plane * Hp);
}

/* dx = d · W_ih for this thread's share of the block's rows, written where the caller's rows lie. */
static void F(input_gradients)(const F(plan) *plan, const member_t *me, ptrdiff_t s0, ptrdiff_t s1, ptrdiff_t rows) {
    static const REAL zeros[WIDTH];
    const pyrnn_recurrent *p = plan->p;
    ptrdiff_t first, last;
    team_share(me, rows, ROWS(MAX_VECTORS), &first, &last);
    REAL *made = plan->made + first * WIDTH; /* [row][wide] */
    for (ptrdiff_t column = 0; first < last && column < plan->Ip; column += WIDTH) {
        const ptrdiff_t wide = smaller(WIDTH, plan->Ip - column);
        for (int g = 0; g < plan->cell->gates; g++) {
            const F(product) product = {
                .a = plan->d + first * plan->d_row + g * plan->Hp, .a_row = plan->d_row, .a_k = 1, .K = p->H,
                .b = plan->ih_back + (column * plan->cell->gates + g * wide) * p->H, .b_k = wide,
                .c = g ? made : zeros, .c_row = g ? wide : 0, .out = made, .out_row = wide};
            F(panel_rows)((int)(wide / LANES), last - first, product);
        }
        ptrdiff_t s = s0, i = first; /* the step and row of compact row r */
        while (s < s1 && i >= plan->active[s]) i -= plan->active[s++];
        for (ptrdiff_t r = first; r < last; r++) {
            REAL *to = (REAL *)p->dx + (F(caller_row)(p, i) * p->T + F(element)(p, i, s)) * p->I + column;
            memcpy(to, made + (r - first) * wide, (size_t)smaller(wide, p->I - column) * sizeof(REAL));
            if (++i == plan->active[s]) i = 0, s++;
        }
    }
}

/* The sums to the caller, unless they were taken there. */
static void F(copy_rows)(void *to, const REAL *from, ptrdiff_t first, ptrdiff_t last, ptrdiff_t columns, ptrdiff_t padded) {
    for (ptrdiff_t m = first; to && to != from && m < last; m++)
        memcpy((REAL *)to + m * columns, from + m * padded, (size_t)columns * sizeof(REAL));
}

static void F(backward_work)(const member_t *me, void *context) {
    F(plan) *plan = context;
    const pyrnn_recurrent *p = plan->p;
    const cell_t *cell = plan->cell;
    const F(part) part = F(part_of)(plan, me);
    const ptrdiff_t Hp = plan->Hp, weights = cell->gates * p->H;
    ptrdiff_t first, last, unit, unit_end, column, column_end;
    team_share(me, p->B, 1, &first, &last);
    team_share(me, Hp, WIDTH, &unit, &unit_end);
    team_share(me, plan->Ip, WIDTH, &column, &column_end);

    /* W_hh and W_ih by their own rows: gate after gate, H rows each, in panels of state or input columns. */
    for (; unit < unit_end; unit += WIDTH)
        F(pack_columns)(plan->hh_back + unit * weights, &p->w_hh, unit, smaller(WIDTH, Hp - unit), p->H, weights);
    for (; plan->ih_back && column < column_end; column += WIDTH)
        F(pack_columns)(
            plan->ih_back + column * weights, &p->w_ih, column, smaller(WIDTH, plan->Ip - column), p->I, weights);
    F(load_state)(plan, &p->dh_n, plan->dh, first, last);
    if (plan->dc) F(load_state)(plan, &p->dc_n, plan->dc, first, last);
    if (p->dx)
        for (ptrdiff_t i = first; i < last; i++)
            memset((REAL *)p->dx + (F(caller_row)(p, i) * p->T + F(length)(p, i)) * p->I, 0,
                   (size_t)((p->T - F(length)(p, i)) * p->I) * sizeof(REAL));
    if (me->id == 0) {
        if (plan->dw_ih) memset(plan->dw_ih, 0, (size_t)(weights * plan->Ip) * sizeof(REAL));
        if (plan->dw_hh) memset(plan->dw_hh, 0, (size_t)(weights * Hp) * sizeof(REAL));
        if (plan->db) memset(plan->db, 0, (size_t)(cell->grads * Hp) * sizeof(REAL));
    }
    team_wait(me);

    const ptrdiff_t blocks = (plan->steps + plan->block - 1) / plan->block;
    for (ptrdiff_t block = blocks - 1; block >= 0; block--) {
        const ptrdiff_t s0 = block * plan->block, s1 = smaller(s0 + plan->block, plan->steps);
        ptrdiff_t rows = 0;
        for (ptrdiff_t s = s0; s < s1; s++) rows += plan->active[s];
        ptrdiff_t offset = rows;
        F(gather_panels)(plan, me, s0, s1, rows);
        for (ptrdiff_t s = s1 - 1; s >= s0; s--) {
            offset -= plan->active[s];
            F(step_backward)(plan, &part, s, plan->d + offset * plan->d_row);
        }
        team_wait(me);
        F(weight_gradients)(plan, me, rows);
        if (p->dx) F(input_gradients)(plan, me, s0, s1, rows);
        F(ask_to_stop)(plan, me);
        team_wait(me);
        if (plan->stop) return;
    }

    team_share(me, p->H, LANES, &unit, &unit_end);
    for (int g = 0; g < cell->gates; g++) {
        F(copy_rows)(p->dw_ih, plan->dw_ih, g * p->H + unit, g * p->H + unit_end, p->I, plan->Ip);
        F(copy_rows)(p->dw_hh, plan->dw_hh, g * p->H + unit, g * p->H + unit_end, p->H, Hp);
        if (p->db) memcpy((REAL *)p->db + g * p->H + unit, plan->db + g * Hp + unit, (size_t)(unit_end - unit) * sizeof(REAL));
    }
    if (p->db_hn) memcpy((REAL *)p->db_hn + unit, plan->db + 3 * Hp + unit, (size_t)(unit_end - unit) * sizeof(REAL));
    for (ptrdiff_t i = first; i < last; i++) {
        if (p->dh0) F(store_state)(plan, plan->dh + i * Hp, p->dh0, i, 0, Hp);
        if (plan->dc && p->dc0) F(store_state)(plan, plan->dc + i * Hp, p->dc0, i, 0, Hp);
    }
}

static int F(recurrent_backward)(const pyrnn_recurrent *p) {
    F(plan) plan;
    arena_t arena = {p->workspace, 0};
    F(plan_backward)(&plan, p, &arena);
    team_run(plan.threads, plan.brief, F(backward_work), &plan);
    return plan.stop;
}

static size_t F(recurrent_workspace)(const pyrnn_recurrent *p, int backward) {
    F(plan) plan;
    arena_t arena = {NULL, 64};
    if (backward) F(plan_backward)(&plan, p, &arena);
    else F(plan_forward)(&plan, p, &arena);
    return arena.used;
}
