/* The forward walk: pack, then block after block gather, project, and step. */

static void F(plan_forward)(F(plan) *plan, const pyrnn_recurrent *p, arena_t *arena) {
    F(begin_plan)(plan, p, arena);
    const ptrdiff_t rows = plan->block * p->B;
    for (int set = 0; set < plan->cell->sets; set++) {
        const size_t columns = (size_t)(plan->cell->set[set].count * plan->Hp);
        plan->ih[set] = take(arena, columns * (size_t)p->I * sizeof(REAL));
        plan->hh[set] = take(arena, columns * (size_t)p->H * sizeof(REAL));
        plan->bias[set] = take(arena, columns * sizeof(REAL));
        plan->before[set] = take(arena, columns * (size_t)rows * sizeof(REAL));
    }
    plan->inputs = take(arena, (size_t)(rows * p->I) * sizeof(REAL));
    plan->b_hn = take(arena, (size_t)plan->Hp * sizeof(REAL));
    if (p->cell == PYRNN_GRU_BEFORE) plan->reset = take(arena, (size_t)(p->B * plan->Hp) * sizeof(REAL));
}

/* Pack this part's panels. By rows every thread needs every panel, so the team shares the packing. */
static void F(pack_forward)(const F(plan) *plan, const member_t *me) {
    const pyrnn_recurrent *p = plan->p;
    ptrdiff_t unit, end;
    team_share(me, plan->Hp, WIDTH, &unit, &end);
    for (int set = 0; set < plan->cell->sets; set++) {
        const int count = plan->cell->set[set].count, *gates = GATE_NUMBERS + plan->cell->set[set].first;
        const ptrdiff_t wide = plan->cell->set[set].vectors * LANES;
        for (ptrdiff_t u = unit; u < end; u += wide) {
            F(pack_units)(plan->ih[set] + u * count * p->I, &p->w_ih, gates, count, u, wide, p->H, p->I);
            F(pack_units)(plan->hh[set] + u * count * p->H, &p->w_hh, gates, count, u, wide, p->H, p->H);
            F(pack_bias)(plan->bias[set] + u * count, &p->b, gates, count, u, wide, p->H);
        }
    }
    for (ptrdiff_t u = unit; u < end; u += WIDTH)
        F(pack_bias)(plan->b_hn + u, &p->b_hn, GATE_NUMBERS, 1, u, WIDTH, p->H);
}

/* A state (B, H) of the caller's into a slot [B][Hp]; zeros where it is not given. */
static void F(load_state)(const F(plan) *plan, const pyrnn_in *from, REAL *slot, ptrdiff_t first, ptrdiff_t last) {
    const pyrnn_recurrent *p = plan->p;
    for (ptrdiff_t i = first; i < last; i++)
        for (ptrdiff_t j = 0; j < plan->Hp; j++)
            slot[i * plan->Hp + j] = from->data && j < p->H ? *F(at)(from, p->order[i], j, 0) : 0;
}

static void F(store_state)(const F(plan) *plan, const REAL *row, REAL *to, ptrdiff_t i) {
    if (to) memcpy(to + plan->p->order[i] * plan->p->H, row, (size_t)plan->p->H * sizeof(REAL));
}

/* This part's rows of a block's steps; by units the team shares them. */
static void F(gather_inputs)(const F(plan) *plan, const F(part) *part, ptrdiff_t s0, ptrdiff_t s1) {
    const pyrnn_recurrent *p = plan->p;
    const ptrdiff_t begin = plan->split == BY_UNITS ? part->me->id : 0, step = plan->split == BY_UNITS ? part->me->size : 1;
    REAL *to = part->inputs;
    for (ptrdiff_t s = s0; s < s1; s++) {
        const ptrdiff_t rows = F(own)(part, plan->active[s]);
        for (ptrdiff_t r = begin; r < rows; r += step) {
            const ptrdiff_t i = part->first + r * part->stride;
            const REAL *from = F(at)(&p->x, p->order[i], F(element)(p, i, s), 0);
            if (p->x.stride[2] == 1) memcpy(to + r * p->I, from, (size_t)p->I * sizeof(REAL));
            else for (ptrdiff_t k = 0; k < p->I; k++) to[r * p->I + k] = from[k * p->x.stride[2]];
        }
        to += rows * p->I;
    }
}

/* before = bias + inputs · W_ih for this part's rows of the block and units. */
static void F(project)(const F(plan) *plan, const F(part) *part, ptrdiff_t rows) {
    const pyrnn_recurrent *p = plan->p;
    for (int set = 0; rows && set < plan->cell->sets; set++) {
        const int vectors = plan->cell->set[set].count * plan->cell->set[set].vectors;
        const ptrdiff_t wide = plan->cell->set[set].vectors * LANES, columns = vectors * LANES;
        for (ptrdiff_t u = part->unit; u < part->unit_end; u += wide) {
            const ptrdiff_t panel = u / wide;
            const F(product) product = {
                part->inputs, p->I, 1, plan->ih[set] + panel * columns * p->I, p->I,
                plan->bias[set] + panel * columns, 0, part->before[set] + panel * rows * columns, columns};
            F(panel_rows)(vectors, rows, product);
        }
    }
}

/* One set of gates for a step: the recurrent product from `state` [B][Hp], tile by tile, and on each tile the cell's
   `finish`, LANES units of a row at a time, while the tile is in L1. With `fresh` the last gate's chains begin there
   (by unit), not at the inputs' part. */
ALWAYS_INLINE void F(walk_step)(
    const F(plan) *plan, const F(part) *part, ptrdiff_t s, ptrdiff_t offset, ptrdiff_t block_rows, int set,
    const REAL *state, const REAL *fresh, void (*finish)(const F(plan) *, const F(lanes) *)
) {
    const pyrnn_recurrent *p = plan->p;
    const ptrdiff_t Hp = plan->Hp, rows = F(own)(part, plan->active[s]);
    const int count = plan->cell->set[set].count, vectors = plan->cell->set[set].vectors * count;
    const ptrdiff_t wide = plan->cell->set[set].vectors * LANES, NR = vectors * LANES;
    REAL tile[MAX_ROWS * MAX_VECTORS * LANES];
    F(lanes) at = {.step = s, .gate = wide};
    for (ptrdiff_t unit = part->unit; unit < part->unit_end; unit += wide) {
        const REAL *before = part->before[set] + (unit / wide * block_rows + offset) * NR;
        for (ptrdiff_t r = 0; r < rows; r += ROWS(vectors), before += ROWS(vectors) * NR) {
            const ptrdiff_t height = smaller(ROWS(vectors), rows - r), row = part->first + r * part->stride;
            F(product) product = {
                state + row * Hp, part->stride * Hp, 1, plan->hh[set] + unit * count * p->H, p->H, before, NR, tile, NR};
            if (fresh) {
                for (ptrdiff_t m = 0; m < height; m++) {
                    memcpy(tile + m * NR, before + m * NR, (size_t)(NR - wide) * sizeof(REAL));
                    memcpy(tile + (m + 1) * NR - wide, fresh + unit, (size_t)wide * sizeof(REAL));
                }
                product.c = tile;
            }
            F(tiles)[vectors][height](&product);
            for (ptrdiff_t m = 0; m < height; m++) {
                at.row = row + m * part->stride;
                for (ptrdiff_t j = 0; j < wide; j += LANES) {
                    at.unit = unit + j;
                    at.gates = tile + m * NR + j;
                    at.inputs = before + m * NR + j;
                    finish(plan, &at);
                }
            }
        }
    }
}

static void F(step_forward)(const F(plan) *plan, const F(part) *part, ptrdiff_t s, ptrdiff_t offset, ptrdiff_t rows) {
    const REAL *h = F(h_slot)(plan->p, plan, s);
    switch (plan->p->cell) {
    case PYRNN_LSTM: F(walk_step)(plan, part, s, offset, rows, 0, h, NULL, F(lstm_forward)); break;
    case PYRNN_GRU_AFTER: F(walk_step)(plan, part, s, offset, rows, 0, h, plan->b_hn, F(gru_after_forward)); break;
    case PYRNN_GRU_BEFORE:
        F(walk_step)(plan, part, s, offset, rows, 0, h, NULL, F(gru_before_gates));
        F(wait_for_units)(plan, part->me);
        F(walk_step)(plan, part, s, offset, rows, 1, plan->reset, NULL, F(gru_before_candidate));
        break;
    default: F(walk_step)(plan, part, s, offset, rows, 0, h, NULL, F(rnn_forward));
    }
}

static void F(forward_work)(const member_t *me, void *context) {
    F(plan) *plan = context;
    const pyrnn_recurrent *p = plan->p;
    const F(part) part = F(part_of)(plan, me);
    ptrdiff_t first, last;
    team_share(me, p->B, 1, &first, &last);
    F(pack_forward)(plan, me);
    F(load_state)(plan, &p->h0, F(h_slot)(p, plan, 0), first, last);
    if (p->cs) F(load_state)(plan, &p->c0, F(c_slot)(p, plan, 0), first, last);
    for (ptrdiff_t i = first; i < last; i++)
        memset((REAL *)p->y + (p->order[i] * p->T + p->lengths[i]) * p->H, 0,
               (size_t)((p->T - p->lengths[i]) * p->H) * sizeof(REAL));
    team_wait(me);

    for (ptrdiff_t s0 = 0; s0 < plan->steps && !plan->stop; s0 += plan->block) {
        const ptrdiff_t s1 = smaller(s0 + plan->block, plan->steps);
        ptrdiff_t rows = 0, offset = 0;
        for (ptrdiff_t s = s0; s < s1; s++) rows += F(own)(&part, plan->active[s]);
        F(gather_inputs)(plan, &part, s0, s1);
        F(wait_for_units)(plan, me);
        F(project)(plan, &part, rows);
        for (ptrdiff_t s = s0; s < s1; s++) {
            F(step_forward)(plan, &part, s, offset, rows);
            F(wait_for_units)(plan, me);
            offset += F(own)(&part, plan->active[s]);
        }
        F(ask_to_stop)(plan, me);
        F(wait_for_units)(plan, me);
    }
    team_wait(me);
    for (ptrdiff_t i = first; i < last; i++) {
        F(store_state)(plan, F(h_slot)(p, plan, p->lengths[i]) + i * plan->Hp, p->h_n, i);
        if (p->cs) F(store_state)(plan, F(c_slot)(p, plan, p->lengths[i]) + i * plan->Hp, p->c_n, i);
    }
}

static int F(recurrent_forward)(const pyrnn_recurrent *p) {
    F(plan) plan;
    arena_t arena = {p->workspace, 0};
    F(plan_forward)(&plan, p, &arena);
    team_run(plan.threads, F(forward_work), &plan);
    return plan.stop;
}
