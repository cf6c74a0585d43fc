/* The forward walk: pack, then block after block gather, project, and step. */

/* Room for the panels of `units` units. */
static F(weights) F(take_weights)(const cell_t *cell, ptrdiff_t units, ptrdiff_t I, ptrdiff_t H, arena_t *arena) {
    F(weights) weights;
    memset(&weights, 0, sizeof weights);
    for (int set = 0; set < cell->sets; set++) {
        const size_t columns = (size_t)(cell->set[set].count * units);
        weights.ih[set] = take(arena, columns * (size_t)I * sizeof(REAL));
        weights.hh[set] = take(arena, columns * (size_t)H * sizeof(REAL));
        weights.bias[set] = take(arena, columns * sizeof(REAL));
    }
    weights.b_hn = take(arena, (size_t)units * sizeof(REAL));
    return weights;
}

static void F(plan_forward)(F(plan) *plan, const pyrnn_recurrent *p, arena_t *arena) {
    F(begin_plan)(plan, p, arena);
    const ptrdiff_t rows = plan->block * p->B;
    if (p->packed) {
        arena_t given = {p->packed, 0};
        plan->packed = F(take_weights)(plan->cell, plan->Hp, p->I, p->H, &given);
    } else if (p->T == 1) {
        plan->as_it_goes = 1;
        for (int id = 0; id < p->threads; id++) {
            const size_t before = arena->used;
            const F(weights) mine = F(take_weights)(plan->cell, WIDTH, p->I, p->H, arena);
            if (id == 0) plan->packed = mine;
            plan->apart = arena->used - before;
        }
    } else {
        plan->packed = F(take_weights)(plan->cell, plan->Hp, p->I, p->H, arena);
    }
    for (int set = 0; set < plan->cell->sets; set++)
        plan->before[set] = take(arena, (size_t)(plan->cell->set[set].count * plan->Hp * rows) * sizeof(REAL));
    if (!p->hs) {
        const size_t slot = (size_t)(p->B * plan->Hp) * sizeof(REAL);
        plan->hs = take(arena, 2 * slot);
        if (p->cell == PYRNN_LSTM) plan->cs = take(arena, 2 * slot);
        if (p->cell == PYRNN_GRU_BEFORE) plan->gates = take(arena, 3 * slot); /* its two halves share them */
        plan->slots = 2;
        plan->gate_slots = 1;
    }
    plan->inputs = take(arena, (size_t)(rows * p->I) * sizeof(REAL));
    if (p->cell == PYRNN_GRU_BEFORE) plan->reset = take(arena, (size_t)(p->B * plan->Hp) * sizeof(REAL));
}

/* Pack the panels of one set of gates for the units [unit, end). */
static void F(pack_set)(
    const pyrnn_recurrent *p, const F(weights) *to, ptrdiff_t origin, int set, ptrdiff_t unit, ptrdiff_t end
) {
    const cell_t *cell = &CELLS[p->cell];
    const int count = cell->set[set].count, *gates = GATE_NUMBERS + cell->set[set].first;
    const ptrdiff_t full = cell->set[set].vectors * LANES;
    for (ptrdiff_t u = unit; u < end; u += full) {
        const ptrdiff_t wide = smaller(full, end - u), at = (u - origin) * count;
        F(pack_units)(to->ih[set] + at * p->I, &p->w_ih, gates, count, u, wide, p->H, p->I);
        F(pack_units)(to->hh[set] + at * p->H, &p->w_hh, gates, count, u, wide, p->H, p->H);
        F(pack_bias)(to->bias[set] + at, &p->b, gates, count, u, wide, p->H);
    }
    if (p->cell == PYRNN_GRU_AFTER) F(pack_bias)(to->b_hn + unit - origin, &p->b_hn, GATE_NUMBERS, 1, unit, end - unit, p->H);
}

/* A state (B, H) of the caller's into a slot [B][Hp]; zeros where it is not given. */
static void F(load_state)(const F(plan) *plan, const pyrnn_in *from, REAL *slot, ptrdiff_t first, ptrdiff_t last) {
    const pyrnn_recurrent *p = plan->p;
    for (ptrdiff_t i = first; i < last; i++) {
        REAL *row = slot + i * plan->Hp;
        const REAL *in = from->data ? F(at)(from, F(caller_row)(p, i), 0, 0) : NULL;
        for (ptrdiff_t j = 0; j < plan->Hp; j++) row[j] = in && j < p->H ? in[j * from->stride[1]] : 0;
    }
}

/* The units [unit, end) of our row i of a state to the caller's. */
static void F(store_state)(const F(plan) *plan, const REAL *row, REAL *to, ptrdiff_t i, ptrdiff_t unit, ptrdiff_t end) {
    const ptrdiff_t units = smaller(end, plan->p->H) - unit;
    to += F(caller_row)(plan->p, i) * plan->p->state_row + unit;
    if (units > 0) memcpy(to, row + unit, (size_t)units * sizeof(REAL));
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
            const REAL *from = F(at)(&p->x, F(caller_row)(p, i), F(element)(p, i, s), 0);
            if (p->x.stride[2] == 1) memcpy(to + r * p->I, from, (size_t)p->I * sizeof(REAL));
            else for (ptrdiff_t k = 0; k < p->I; k++) to[r * p->I + k] = from[k * p->x.stride[2]];
        }
        to += rows * p->I;
    }
}

/* before = bias + inputs · W_ih for this part's rows of the block and units. */
static void F(project)(const F(plan) *plan, const F(part) *part, int set, ptrdiff_t rows) {
    const pyrnn_recurrent *p = plan->p;
    const int count = plan->cell->set[set].count;
    F(slice) here;
    for (ptrdiff_t unit = part->unit; rows && unit < part->unit_end; unit += here.units) {
        here = F(slice_at)(plan, part, set, unit, p->I);
        const ptrdiff_t NR = here.units * count;
        const F(product) product = {
            .a = part->inputs, .a_row = p->I, .a_k = 1, .K = p->I, .b = part->weights.ih[set] + here.b, .b_k = here.b_k,
            .c = part->weights.bias[set] + (unit - part->origin) * count, .c_row = 0,
            .out = part->before[set] + unit * count * rows, .out_row = NR};
        F(panel_rows)((int)(NR / LANES), rows, product);
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
    const int count = plan->cell->set[set].count, vectors = count * plan->cell->set[set].vectors;
    REAL tile[MAX_ROWS * 2 * MAX_VECTORS * LANES];
    F(lanes) at = {.step = s};
    for (ptrdiff_t unit = part->unit, panels; rows && unit < part->unit_end; unit += panels * at.gate) {
        const F(slice) here = F(slice_at)(plan, part, set, unit, p->H);
        const ptrdiff_t NR = here.units * count, nv = NR / LANES, tiles = (rows + ROWS(nv) - 1) / ROWS(nv);
        const ptrdiff_t before_panel = NR * block_rows; /* from one panel to the next */
        const int whole = nv == vectors && here.b_k == NR && unit + PANELS(vectors) * here.units <= part->unit_end;
        panels = rows == 1 && whole ? PANELS(vectors) : 1;
        at.gate = here.units;
        F(product) product = {
            .a_row = part->stride * Hp, .a_k = 1, .K = p->H,
            .b = part->weights.hh[set] + here.b, .b_k = here.b_k, .b_next = NR * p->H,
            .out = tile, .out_row = NR, .out_next = NR};
        for (ptrdiff_t t = 0; t < tiles; t++) {
            const ptrdiff_t r = first_row(rows, tiles, t), height = first_row(rows, tiles, t + 1) - r;
            const REAL *before = part->before[set] + unit * count * block_rows + (offset + r) * NR;
            product.a = state + (part->first + r * part->stride) * Hp;
            product.c = before;
            product.c_row = NR;
            product.c_next = before_panel;
            if (fresh) {
                for (ptrdiff_t m = 0; m < height * panels; m++) {
                    const ptrdiff_t panel = m / height, row = m % height;
                    REAL *to = tile + (row + panel) * NR; /* one of them is 0 */
                    memcpy(to, before + row * NR + panel * before_panel, (size_t)(NR - at.gate) * sizeof(REAL));
                    memcpy(to + NR - at.gate, fresh + unit - part->origin + panel * at.gate, (size_t)at.gate * sizeof(REAL));
                }
                product.c = tile;
                product.c_next = NR;
            }
            if (panels > 1) F(row_tiles)[nv](&product, product.b);
            else F(tiles)[nv][height](&product, product.b + p->H * (here.b_k + t % nv * LANES));
            for (ptrdiff_t m = 0; m < height * panels; m++) {
                const ptrdiff_t panel = m / height, row = m % height;
                at.row = part->first + (r + row) * part->stride;
                for (ptrdiff_t j = 0; j < at.gate; j += LANES) {
                    at.unit = unit + panel * at.gate + j;
                    at.gates = tile + (row + panel) * NR + j;
                    at.inputs = before + row * NR + panel * before_panel + j;
                    finish(plan, &at);
                }
            }
        }
    }
}

static void F(step_units)(
    const F(plan) *plan, const F(part) *part, int set, ptrdiff_t s, ptrdiff_t offset, ptrdiff_t rows
) {
    const REAL *h = F(h_slot)(plan->p, plan, s);
    switch (plan->p->cell) {
    case PYRNN_LSTM: F(walk_step)(plan, part, s, offset, rows, 0, h, NULL, F(lstm_forward)); break;
    case PYRNN_GRU_AFTER:
        F(walk_step)(plan, part, s, offset, rows, 0, h, part->weights.b_hn, F(gru_after_forward));
        break;
    case PYRNN_GRU_BEFORE:
        if (set == 0) F(walk_step)(plan, part, s, offset, rows, 0, h, NULL, F(gru_before_gates));
        else F(walk_step)(plan, part, s, offset, rows, 1, plan->reset, NULL, F(gru_before_candidate));
        break;
    default: F(walk_step)(plan, part, s, offset, rows, 0, h, NULL, F(rnn_forward));
    }
}

static void F(step_forward)(
    const F(plan) *plan, const F(part) *part, int set, ptrdiff_t s, ptrdiff_t offset, ptrdiff_t rows
) {
    const pyrnn_recurrent *p = plan->p;
    const ptrdiff_t units = TURN(plan->cell->set[set].vectors), columns = (part->unit_end - part->unit) * plan->cell->gates;
    const ptrdiff_t turns = F(turns)(part, units, columns * p->H * (ptrdiff_t)sizeof(REAL));
    for (ptrdiff_t t = 0; t < turns; t++) {
        const F(part) piece = F(turn)(part, units, turns, t, s);
        F(step_units)(plan, &piece, set, s, offset, rows);
    }
}

/* All of the steps, the panels packed before. */
static void F(walk_forward)(F(plan) *plan, const F(part) *part) {
    const member_t *me = part->me;
    F(gather_inputs)(plan, part, 0, smaller(plan->block, plan->steps));
    team_wait(me);
    for (ptrdiff_t s0 = 0; s0 < plan->steps; s0 += plan->block) {
        const ptrdiff_t s1 = smaller(s0 + plan->block, plan->steps);
        ptrdiff_t rows = 0, offset = 0;
        for (ptrdiff_t s = s0; s < s1; s++) rows += F(own)(part, plan->active[s]);
        for (int set = 0; set < plan->cell->sets; set++) F(project)(plan, part, set, rows);
        for (ptrdiff_t s = s0; s < s1; s++) {
            for (int set = 0; set < plan->cell->sets; set++) {
                F(step_forward)(plan, part, set, s, offset, rows);
                if (s + 1 < plan->steps || set + 1 < plan->cell->sets) F(wait_for_units)(plan, me);
            }
            offset += F(own)(part, plan->active[s]);
        }
        if (s1 == plan->steps) return;
        F(ask_to_stop)(plan, me);
        F(gather_inputs)(plan, part, s1, smaller(s1 + plan->block, plan->steps));
        F(wait_for_units)(plan, me);
        if (plan->stop) return;
    }
}

/* The one step of a call that has no more: a panel serves once, so it is used as soon as it is made, and then made anew. */
static void F(single_step)(const F(plan) *plan, const F(part) *part) {
    const ptrdiff_t rows = F(own)(part, plan->active[0]);
    const ptrdiff_t pieces = (part->unit_end - part->unit + WIDTH - 1) / WIDTH;
    F(gather_inputs)(plan, part, 0, 1);
    team_wait(part->me);
    for (int set = 0; set < plan->cell->sets; set++) {
        for (ptrdiff_t t = 0; rows && t < pieces; t++) {
            F(part) piece = *part;
            piece.unit += WIDTH * (plan->p->calls & 1 ? pieces - 1 - t : t);
            piece.unit_end = smaller(piece.unit + WIDTH, part->unit_end);
            if (plan->as_it_goes) {
                piece.origin = piece.unit;
                piece.packed_end = piece.unit_end;
                F(pack_set)(plan->p, &piece.weights, piece.unit, set, piece.unit, piece.unit_end);
            }
            F(project)(plan, &piece, set, rows);
            F(step_units)(plan, &piece, set, 0, 0, rows);
        }
        if (set + 1 < plan->cell->sets) F(wait_for_units)(plan, part->me);
    }
}

static void F(forward_work)(const member_t *me, void *context) {
    F(plan) *plan = context;
    const pyrnn_recurrent *p = plan->p;
    const F(part) part = F(part_of)(plan, me);
    ptrdiff_t first, last, unit, end;
    team_share(me, p->B, 1, &first, &last);
    team_share(me, plan->Hp, WIDTH, &unit, &end);
    if (!p->packed && !plan->as_it_goes) /* by rows, too, the team shares the packing */
        for (int set = 0; set < plan->cell->sets; set++) F(pack_set)(p, &plan->packed, 0, set, unit, end);
    F(load_state)(plan, &p->h0, F(h_slot)(p, plan, 0), first, last);
    if (p->cell == PYRNN_LSTM) F(load_state)(plan, &p->c0, F(c_slot)(p, plan, 0), first, last);
    for (ptrdiff_t i = first; i < last; i++) {
        REAL *row = (REAL *)p->y + F(caller_row)(p, i) * p->T * p->y_step;
        for (ptrdiff_t t = F(length)(p, i); t < p->T; t++) memset(row + t * p->y_step, 0, (size_t)p->H * sizeof(REAL));
    }
    if (p->T == 1) F(single_step)(plan, &part);
    else F(walk_forward)(plan, &part);
    for (ptrdiff_t i = part.first; i < p->B; i += part.stride) {
        const ptrdiff_t last_slot = F(length)(p, i), row = i * plan->Hp;
        F(store_state)(plan, F(h_slot)(p, plan, last_slot) + row, p->h_n, i, part.unit, part.unit_end);
        if (p->cell == PYRNN_LSTM)
            F(store_state)(plan, F(c_slot)(p, plan, last_slot) + row, p->c_n, i, part.unit, part.unit_end);
    }
}

static int F(recurrent_forward)(const pyrnn_recurrent *p) {
    F(plan) plan;
    arena_t arena = {p->workspace, 0};
    F(plan_forward)(&plan, p, &arena);
    team_run(plan.threads, plan.brief, F(forward_work), &plan);
    return plan.stop;
}

/* Pack all panels to `packed`, which later calls read instead of the weights; with `packed` NULL only count its bytes. */
static size_t F(recurrent_pack)(const pyrnn_recurrent *p, void *packed) {
    const cell_t *cell = &CELLS[p->cell];
    const ptrdiff_t Hp = round_up(p->H, LANES);
    arena_t arena = {packed, 0};
    const F(weights) weights = F(take_weights)(cell, Hp, p->I, p->H, &arena);
    for (int set = 0; packed && set < cell->sets; set++) F(pack_set)(p, &weights, 0, set, 0, Hp);
    return arena.used + 64;
}
