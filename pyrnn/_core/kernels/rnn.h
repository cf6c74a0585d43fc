/* The simple recurrent cell: h = φ(b + W_ih x + W_hh h), φ = tanh or relu. It keeps nothing but h. */

static inline void F(rnn_forward)(const F(plan) *plan, const F(lanes) *at) {
    const F(vec) before = F(load)(at->gates);
    const F(vec) h = plan->p->cell == PYRNN_RNN_TANH ? F(tanh)(before) : F(at_least)((F(vec)){0}, before);
    F(put_h)(plan, at, h);
}

/* Takes dh, stores the gate gradient; returns what goes on to the earlier h without a product. */
static inline F(vec) F(rnn_back)(const F(plan) *plan, ptrdiff_t s, ptrdiff_t row, ptrdiff_t unit, F(vec) dh, REAL *d) {
    const F(vec) h = F(load)(F(h_slot)(plan->p, plan, s + 1) + row * plan->Hp + unit);
    const F(vec) none = {0};
    F(store)(d + unit, plan->p->cell == PYRNN_RNN_TANH ? dh * ((REAL)1 - h * h) : F(select)((F(ivec))(h > none), dh, none));
    return (F(vec)){0};
}
