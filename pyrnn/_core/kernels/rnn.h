/* The simple recurrent cell: h = φ(b + W_ih x + W_hh h), φ = tanh or relu. It keeps nothing but h. */

static void F(rnn_step)(const F(plan) *plan, const F(part) *part, ptrdiff_t s, ptrdiff_t offset, ptrdiff_t block_rows) {
    const pyrnn_recurrent *p = plan->p;
    const ptrdiff_t Hp = plan->Hp, rows = F(own)(part, plan->active[s]), stride = part->stride;
    const REAL *h = F(h_slot)(p, plan, s);
    REAL *h_new = F(h_slot)(p, plan, s + 1);
    REAL tile[MAX_ROWS * WIDTH];
    for (ptrdiff_t unit = part->unit; unit < part->unit_end; unit += WIDTH) {
        const REAL *before = part->before[0] + (unit / WIDTH * block_rows + offset) * WIDTH;
        for (ptrdiff_t r = 0; r < rows; r += ROWS(2)) {
            const ptrdiff_t count = smaller(ROWS(2), rows - r), i0 = part->first + r * stride;
            const F(product) product = {
                h + i0 * Hp, stride * Hp, 1, plan->hh[0] + unit * p->H, p->H,
                before + r * WIDTH, WIDTH, tile, WIDTH};
            F(tiles)[2][count](&product);
            for (ptrdiff_t m = 0; m < count; m++) {
                const ptrdiff_t i = i0 + m * stride;
                REAL *y = F(y_at)(p, i, s) + unit;
                for (ptrdiff_t j = 0; j < WIDTH; j += LANES) {
                    const F(vec) v = F(load)(tile + m * WIDTH + j);
                    const F(vec) new = p->cell == PYRNN_RNN_TANH ? F(tanh)(v) : F(at_least)((F(vec)){0}, v);
                    F(store)(h_new + i * Hp + unit + j, new);
                    F(store_part)(y + j, new, p->H - unit - j);
                }
            }
        }
    }
}

/* The gate gradient of row i, units [unit, unit + LANES): dh comes in, what goes on to the earlier h directly out. */
static inline F(vec) F(rnn_back)(const F(plan) *plan, ptrdiff_t s, ptrdiff_t i, ptrdiff_t unit, F(vec) dh, REAL *d) {
    const F(vec) h = F(load)(F(h_slot)(plan->p, plan, s + 1) + i * plan->Hp + unit);
    const F(vec) slope =
        plan->p->cell == PYRNN_RNN_TANH ? (REAL)1 - h * h : F(select)((F(ivec))(h > (F(vec)){0}), F(all)(1), (F(vec)){0});
    F(store)(d + unit, dh * slope);
    return (F(vec)){0};
}
