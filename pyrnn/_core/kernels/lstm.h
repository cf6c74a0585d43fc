/* The LSTM cell, gates i, f, g, o:  c = f·c + i·g,  h = o·tanh(c). Keeps i, f, g, o, and c in cs. */

static void F(lstm_step)(const F(plan) *plan, const F(part) *part, ptrdiff_t s, ptrdiff_t offset, ptrdiff_t block_rows) {
    enum { NR = 4 * LANES };
    const pyrnn_recurrent *p = plan->p;
    const ptrdiff_t Hp = plan->Hp, rows = F(own)(part, plan->active[s]), stride = part->stride;
    const REAL *h = F(h_slot)(p, plan, s), *c = F(c_slot)(p, plan, s);
    REAL *h_new = F(h_slot)(p, plan, s + 1), *c_new = F(c_slot)(p, plan, s + 1);
    REAL tile[MAX_ROWS * NR];
    for (ptrdiff_t unit = part->unit; unit < part->unit_end; unit += LANES) {
        const REAL *before = part->before[0] + (unit / LANES * block_rows + offset) * NR;
        for (ptrdiff_t r = 0; r < rows; r += ROWS(4)) {
            const ptrdiff_t count = smaller(ROWS(4), rows - r), i0 = part->first + r * stride;
            const F(product) product = {
                h + i0 * Hp, stride * Hp, 1, plan->hh[0] + unit * 4 * p->H, p->H,
                before + r * NR, NR, tile, NR};
            F(tiles)[4][count](&product);
            for (ptrdiff_t m = 0; m < count; m++) {
                const ptrdiff_t row = i0 + m * stride;
                const REAL *t = tile + m * NR;
                const F(vec) i = F(sigmoid)(F(load)(t)), f = F(sigmoid)(F(load)(t + LANES));
                const F(vec) g = F(tanh)(F(load)(t + 2 * LANES)), o = F(sigmoid)(F(load)(t + 3 * LANES));
                const F(vec) cell = F(fma)(f, F(load)(c + row * Hp + unit), i * g);
                const F(vec) new = o * F(tanh)(cell);
                F(store)(c_new + row * Hp + unit, cell);
                F(store)(h_new + row * Hp + unit, new);
                F(store_part)(F(y_at)(p, row, s) + unit, new, p->H - unit);
                if (p->gates) {
                    REAL *kept = F(gates_of)(p, plan, s, row) + unit;
                    F(store)(kept, i);
                    F(store)(kept + Hp, f);
                    F(store)(kept + 2 * Hp, g);
                    F(store)(kept + 3 * Hp, o);
                }
            }
        }
    }
}

/* The gate gradients of row i, units [unit, unit + LANES): dh comes in; dc is brought to the earlier step. */
static inline F(vec) F(lstm_back)(const F(plan) *plan, ptrdiff_t s, ptrdiff_t row, ptrdiff_t unit, F(vec) dh, REAL *d) {
    const pyrnn_recurrent *p = plan->p;
    const ptrdiff_t Hp = plan->Hp, at = row * Hp + unit;
    const REAL *kept = F(gates_of)(p, plan, s, row) + unit;
    const F(vec) i = F(load)(kept), f = F(load)(kept + Hp), g = F(load)(kept + 2 * Hp), o = F(load)(kept + 3 * Hp);
    const F(vec) t = F(tanh)(F(load)(F(c_slot)(p, plan, s + 1) + at));
    const F(vec) c_old = F(load)(F(c_slot)(p, plan, s) + at);
    const F(vec) dc = F(load)(plan->dc + at) + dh * o * ((REAL)1 - t * t);
    F(store)(d + unit, dc * g * i * ((REAL)1 - i));
    F(store)(d + Hp + unit, dc * c_old * f * ((REAL)1 - f));
    F(store)(d + 2 * Hp + unit, dc * i * ((REAL)1 - g * g));
    F(store)(d + 3 * Hp + unit, dh * t * o * ((REAL)1 - o));
    F(store)(plan->dc + at, dc * f);
    return (F(vec)){0};
}
