/* The GRU cell, gates r, z, n:  h = (1 - z)·n + z·h.

   reset after:   n = tanh(b + W x + r·q), q = W h + b_hn.  Keeps r, z, n, q; dq is a gradient plane of its own.
   reset before:  n = tanh(b + W x + W (r·h)).  Keeps r, z, n. Two products a step, since r·h needs all of r. */

static inline F(vec) F(gru_mix)(F(vec) n, F(vec) z, F(vec) h) { return F(fma)(z, h - n, n); }

/* The third column of the tile began at b_hn, so it is q; the inputs' part of n is still in `inputs`. */
static inline void F(gru_after_forward)(const F(plan) *plan, const F(lanes) *at) {
    const F(vec) h = F(load)(F(h_slot)(plan->p, plan, at->step) + at->row * plan->Hp + at->unit);
    const F(vec) r = F(sigmoid)(F(load)(at->gates)), z = F(sigmoid)(F(load)(at->gates + at->gate));
    const F(vec) q = F(load)(at->gates + 2 * at->gate);
    const F(vec) n = F(tanh)(F(fma)(r, q, F(load)(at->inputs + 2 * at->gate)));
    F(put_h)(plan, at, F(gru_mix)(n, z, h));
    F(keep_gates)(plan, at, r, z, n, q);
}

/* First half of a reset-before step: r and z, and r·h for the second half. */
static inline void F(gru_before_gates)(const F(plan) *plan, const F(lanes) *at) {
    const pyrnn_recurrent *p = plan->p;
    const ptrdiff_t Hp = plan->Hp, here = at->row * Hp + at->unit;
    REAL *kept = F(gates_of)(p, plan, at->step, at->row) + at->unit;
    const F(vec) r = F(sigmoid)(F(load)(at->gates));
    F(store)(kept, r);
    F(store)(kept + Hp, F(sigmoid)(F(load)(at->gates + at->gate)));
    F(store)(plan->reset + here, r * F(load)(F(h_slot)(p, plan, at->step) + here));
}

/* Second half: the candidate, and the new state. */
static inline void F(gru_before_candidate)(const F(plan) *plan, const F(lanes) *at) {
    const pyrnn_recurrent *p = plan->p;
    const ptrdiff_t Hp = plan->Hp;
    REAL *kept = F(gates_of)(p, plan, at->step, at->row) + at->unit;
    const F(vec) h = F(load)(F(h_slot)(p, plan, at->step) + at->row * Hp + at->unit);
    const F(vec) n = F(tanh)(F(load)(at->gates));
    F(store)(kept + 2 * Hp, n);
    F(put_h)(plan, at, F(gru_mix)(n, F(load)(kept + Hp), h));
}

/* Takes dh, stores the gate gradients but for reset-before's r, which needs a product first; returns what goes on to the
   earlier h without one. */
static inline F(vec) F(gru_back)(const F(plan) *plan, ptrdiff_t s, ptrdiff_t row, ptrdiff_t unit, F(vec) dh, REAL *d) {
    const pyrnn_recurrent *p = plan->p;
    const ptrdiff_t Hp = plan->Hp;
    const REAL *kept = F(gates_of)(p, plan, s, row) + unit;
    const F(vec) z = F(load)(kept + Hp), n = F(load)(kept + 2 * Hp);
    const F(vec) h = F(load)(F(h_slot)(p, plan, s) + row * Hp + unit);
    const F(vec) dn = dh * ((REAL)1 - z) * ((REAL)1 - n * n);
    F(store)(d + Hp + unit, dh * (h - n) * z * ((REAL)1 - z));
    F(store)(d + 2 * Hp + unit, dn);
    if (p->cell == PYRNN_GRU_AFTER) {
        const F(vec) r = F(load)(kept), q = F(load)(kept + 3 * Hp);
        F(store)(d + unit, dn * q * r * ((REAL)1 - r));
        F(store)(d + 3 * Hp + unit, dn * r);
    }
    return dh * z;
}

/* Reset-before: d(r·h) = dn · W_hn for this part's rows and units gives dr, and adds to the earlier h. */
static void F(gru_before_reset_back)(const F(plan) *plan, const F(part) *part, ptrdiff_t s, REAL *d_step) {
    static const REAL zeros[WIDTH];
    const pyrnn_recurrent *p = plan->p;
    const ptrdiff_t Hp = plan->Hp, rows = F(own)(part, plan->active[s]), stride = part->stride, d_row = plan->d_row;
    const REAL *h = F(h_slot)(p, plan, s);
    REAL tile[MAX_ROWS * WIDTH];
    const ptrdiff_t tiles = (rows + ROWS(MAX_VECTORS) - 1) / ROWS(MAX_VECTORS);
    for (ptrdiff_t unit = part->unit, units; unit < part->unit_end; unit += units) {
        const ptrdiff_t first = unit / WIDTH * WIDTH, wide = smaller(WIDTH, Hp - first);
        const REAL *panel = plan->hh_back + (first * 3 + 2 * wide) * p->H + unit - first;
        units = smaller(first + wide, part->unit_end) - unit;
        for (ptrdiff_t t = 0; t < tiles; t++) {
            const ptrdiff_t r = first_row(rows, tiles, t), height = first_row(rows, tiles, t + 1) - r;
            const ptrdiff_t i0 = part->first + r * stride;
            const F(product) product = {
                .a = d_step + i0 * d_row + 2 * Hp, .a_row = stride * d_row, .a_k = 1, .b = panel, .b_k = wide, .K = p->H,
                .c = zeros, .out = tile, .out_row = units};
            F(tiles)[units / LANES][height](&product, panel);
            for (ptrdiff_t m = 0; m < height; m++) {
                const ptrdiff_t row = i0 + m * stride;
                const REAL *kept = F(gates_of)(p, plan, s, row) + unit;
                for (ptrdiff_t j = 0; j < units; j += LANES) {
                    const ptrdiff_t at = row * Hp + unit + j;
                    const F(vec) dq = F(load)(tile + m * units + j), reset = F(load)(kept + j);
                    F(store)(d_step + row * d_row + unit + j, dq * F(load)(h + at) * reset * ((REAL)1 - reset));
                    F(store)(plan->dh + at, F(fma)(dq, reset, F(load)(plan->dh + at)));
                }
            }
        }
    }
}
