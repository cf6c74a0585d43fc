/* The GRU cell, gates r, z, n:  h = (1 - z)·n + z·h.

   reset after:   n = tanh(b + W x + r·q), q = W h + b_hn.  Keeps r, z, n, q; dq is a gradient plane of its own.
   reset before:  n = tanh(b + W x + W (r·h)).  Keeps r, z, n. Two products a step, since r·h needs all of r. */

static inline F(vec) F(gru_mix)(F(vec) n, F(vec) z, F(vec) h) { return F(fma)(z, h - n, n); }

static void F(gru_after_step)(const F(plan) *plan, const F(part) *part, ptrdiff_t s, ptrdiff_t offset, ptrdiff_t block_rows) {
    enum { NR = 3 * LANES };
    const pyrnn_recurrent *p = plan->p;
    const ptrdiff_t Hp = plan->Hp, rows = F(own)(part, plan->active[s]), stride = part->stride;
    const REAL *h = F(h_slot)(p, plan, s);
    REAL *h_new = F(h_slot)(p, plan, s + 1);
    REAL tile[MAX_ROWS * NR];
    for (ptrdiff_t unit = part->unit; unit < part->unit_end; unit += LANES) {
        const REAL *before = part->before[0] + (unit / LANES * block_rows + offset) * NR;
        const F(vec) b_hn = F(load)(plan->b_hn + unit);
        for (ptrdiff_t r = 0; r < rows; r += ROWS(3)) {
            const ptrdiff_t count = smaller(ROWS(3), rows - r), i0 = part->first + r * stride;
            for (ptrdiff_t m = 0; m < count; m++) { /* r and z go on from the inputs' part, q begins anew */
                const REAL *from = before + (r + m) * NR;
                F(store)(tile + m * NR, F(load)(from));
                F(store)(tile + m * NR + LANES, F(load)(from + LANES));
                F(store)(tile + m * NR + 2 * LANES, b_hn);
            }
            const F(product) product = {
                h + i0 * Hp, stride * Hp, 1, plan->hh[0] + unit * 3 * p->H, p->H, tile, NR, tile, NR};
            F(tiles)[3][count](&product);
            for (ptrdiff_t m = 0; m < count; m++) {
                const ptrdiff_t row = i0 + m * stride, at = row * Hp + unit;
                const REAL *t = tile + m * NR;
                const F(vec) reset = F(sigmoid)(F(load)(t)), z = F(sigmoid)(F(load)(t + LANES));
                const F(vec) q = F(load)(t + 2 * LANES);
                const F(vec) n = F(tanh)(F(fma)(reset, q, F(load)(before + (r + m) * NR + 2 * LANES)));
                const F(vec) new = F(gru_mix)(n, z, F(load)(h + at));
                F(store)(h_new + at, new);
                F(store_part)(F(y_at)(p, row, s) + unit, new, p->H - unit);
                if (p->gates) {
                    REAL *kept = F(gates_of)(p, plan, s, row) + unit;
                    F(store)(kept, reset);
                    F(store)(kept + Hp, z);
                    F(store)(kept + 2 * Hp, n);
                    F(store)(kept + 3 * Hp, q);
                }
            }
        }
    }
}

/* First half of a reset-before step: r and z, and r·h for the second half. */
static void F(gru_before_gates)(const F(plan) *plan, const F(part) *part, ptrdiff_t s, ptrdiff_t offset, ptrdiff_t block_rows) {
    enum { NR = 2 * WIDTH };
    const pyrnn_recurrent *p = plan->p;
    const ptrdiff_t Hp = plan->Hp, rows = F(own)(part, plan->active[s]), stride = part->stride;
    const REAL *h = F(h_slot)(p, plan, s);
    REAL tile[MAX_ROWS * NR];
    for (ptrdiff_t unit = part->unit; unit < part->unit_end; unit += WIDTH) {
        const REAL *before = part->before[0] + (unit / WIDTH * block_rows + offset) * NR;
        for (ptrdiff_t r = 0; r < rows; r += ROWS(4)) {
            const ptrdiff_t count = smaller(ROWS(4), rows - r), i0 = part->first + r * stride;
            const F(product) product = {
                h + i0 * Hp, stride * Hp, 1, plan->hh[0] + unit * 2 * p->H, p->H,
                before + r * NR, NR, tile, NR};
            F(tiles)[4][count](&product);
            for (ptrdiff_t m = 0; m < count; m++) {
                const ptrdiff_t row = i0 + m * stride;
                REAL *kept = F(gates_of)(p, plan, s, row) + unit;
                for (ptrdiff_t j = 0; j < WIDTH; j += LANES) {
                    const F(vec) reset = F(sigmoid)(F(load)(tile + m * NR + j));
                    F(store)(kept + j, reset);
                    F(store)(kept + Hp + j, F(sigmoid)(F(load)(tile + m * NR + WIDTH + j)));
                    F(store)(plan->reset + row * Hp + unit + j, reset * F(load)(h + row * Hp + unit + j));
                }
            }
        }
    }
}

/* Second half: the candidate, and the new state. */
static void F(gru_before_candidate)(const F(plan) *plan, const F(part) *part, ptrdiff_t s, ptrdiff_t offset, ptrdiff_t block_rows) {
    const pyrnn_recurrent *p = plan->p;
    const ptrdiff_t Hp = plan->Hp, rows = F(own)(part, plan->active[s]), stride = part->stride;
    const REAL *h = F(h_slot)(p, plan, s);
    REAL *h_new = F(h_slot)(p, plan, s + 1);
    REAL tile[MAX_ROWS * WIDTH];
    for (ptrdiff_t unit = part->unit; unit < part->unit_end; unit += WIDTH) {
        const REAL *before = part->before[1] + (unit / WIDTH * block_rows + offset) * WIDTH;
        for (ptrdiff_t r = 0; r < rows; r += ROWS(2)) {
            const ptrdiff_t count = smaller(ROWS(2), rows - r), i0 = part->first + r * stride;
            const F(product) product = {
                plan->reset + i0 * Hp, stride * Hp, 1, plan->hh[1] + unit * p->H, p->H,
                before + r * WIDTH, WIDTH, tile, WIDTH};
            F(tiles)[2][count](&product);
            for (ptrdiff_t m = 0; m < count; m++) {
                const ptrdiff_t row = i0 + m * stride;
                REAL *kept = F(gates_of)(p, plan, s, row) + unit;
                REAL *y = F(y_at)(p, row, s) + unit;
                for (ptrdiff_t j = 0; j < WIDTH; j += LANES) {
                    const F(vec) n = F(tanh)(F(load)(tile + m * WIDTH + j));
                    const ptrdiff_t at = row * Hp + unit + j;
                    const F(vec) new = F(gru_mix)(n, F(load)(kept + Hp + j), F(load)(h + at));
                    F(store)(kept + 2 * Hp + j, n);
                    F(store)(h_new + at, new);
                    F(store_part)(y + j, new, p->H - unit - j);
                }
            }
        }
    }
}

/* The gate gradients of row i, units [unit, unit + LANES), but for reset-before's r: it needs a product first. */
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
    for (ptrdiff_t unit = part->unit; unit < part->unit_end; unit += WIDTH) {
        const REAL *panel = plan->hh_back + (unit * 3 + 2 * WIDTH) * p->H;
        for (ptrdiff_t r = 0; r < rows; r += ROWS(2)) {
            const ptrdiff_t count = smaller(ROWS(2), rows - r), i0 = part->first + r * stride;
            const F(product) product = {
                d_step + i0 * d_row + 2 * Hp, stride * d_row, 1, panel, p->H, zeros, 0, tile, WIDTH};
            F(tiles)[2][count](&product);
            for (ptrdiff_t m = 0; m < count; m++) {
                const ptrdiff_t row = i0 + m * stride;
                const REAL *kept = F(gates_of)(p, plan, s, row) + unit;
                for (ptrdiff_t j = 0; j < WIDTH; j += LANES) {
                    const ptrdiff_t at = row * Hp + unit + j;
                    const F(vec) dq = F(load)(tile + m * WIDTH + j), reset = F(load)(kept + j);
                    F(store)(d_step + row * d_row + unit + j, dq * F(load)(h + at) * reset * ((REAL)1 - reset));
                    F(store)(plan->dh + at, F(fma)(dq, reset, F(load)(plan->dh + at)));
                }
            }
        }
    }
}
