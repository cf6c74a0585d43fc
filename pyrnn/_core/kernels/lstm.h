/* The LSTM cell, gates i, f, g, o:  c = f·c + i·g,  h = o·tanh(c). Keeps i, f, g, o, and c in cs. */

static inline void F(lstm_forward)(const F(plan) *plan, const F(lanes) *at) {
    const pyrnn_recurrent *p = plan->p;
    const ptrdiff_t here = at->row * plan->Hp + at->unit;
    const F(ratio) i = F(sigmoid_ratio)(F(load)(at->gates)), f = F(sigmoid_ratio)(F(load)(at->gates + at->gate));
    const F(ratio) g = F(tanh_ratio)(F(load)(at->gates + 2 * at->gate)), o = F(sigmoid_ratio)(F(load)(at->gates + 3 * at->gate));
    const F(vec) forget = F(value)(f);
    const F(vec) c = F(fma)(forget, F(load)(F(c_slot)(p, plan, at->step) + here), F(times)(i, g));
    F(store)(F(c_slot)(p, plan, at->step + 1) + here, c);
    F(put_h)(plan, at, F(times)(o, F(tanh_ratio)(c)));
    if (p->gates) F(keep_gates)(plan, at, F(value)(i), forget, F(value)(g), F(value)(o));
}

/* Takes dh and dc, stores the gate gradients, brings dc to the earlier step; the earlier dh comes from products alone. */
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
