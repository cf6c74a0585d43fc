/* One pass over parameters, their gradients and what an optimiser keeps: each element by itself. */

static void F(sgd_work)(const member_t *me, void *context) {
    const pyrnn_sgd *p = context;
    const REAL *grad = p->grad;
    REAL *array = p->array, *velocity = p->momentum_buffer;
    const F(vec) lr = F(all)((REAL)p->lr), momentum = F(all)((REAL)p->momentum), decay = F(all)((REAL)p->weight_decay);
    ptrdiff_t i, end;
    team_share(me, p->n, 64, &i, &end);
    for (; i < end; i += LANES) {
        const F(vec) w = F(load_part)(array + i, end - i);
        F(vec) g = F(load_part)(grad + i, end - i);
        if (p->weight_decay) g = F(fma)(decay, w, g);
        if (velocity) {
            const F(vec) v = F(fma)(momentum, F(load_part)(velocity + i, end - i), g);
            F(store_part)(velocity + i, v, end - i);
            g = p->nesterov ? F(fma)(momentum, v, g) : v;
        }
        F(store_part)(array + i, F(fma)(-lr, g, w), end - i);
    }
}

static void F(adam_work)(const member_t *me, void *context) {
    const pyrnn_adam *p = context;
    const REAL *grad = p->grad;
    REAL *array = p->array, *mean = p->exp_avg, *square = p->exp_avg_sq;
    const F(vec) beta1 = F(all)((REAL)p->beta1), rest1 = F(all)((REAL)(1 - p->beta1));
    const F(vec) beta2 = F(all)((REAL)p->beta2), rest2 = F(all)((REAL)(1 - p->beta2));
    const F(vec) rate = F(all)((REAL)(p->lr / p->correction1)), eps = F(all)((REAL)p->eps);
    const F(vec) unbias = F(all)((REAL)(1 / sqrt(p->correction2)));
    const F(vec) decay = F(all)((REAL)p->weight_decay), keep = F(all)((REAL)(1 - p->lr * p->weight_decay));
    const int decoupled = p->weight_decay && p->decoupled, coupled = p->weight_decay && !p->decoupled;
    ptrdiff_t i, end;
    team_share(me, p->n, 64, &i, &end);
    for (; i < end; i += LANES) {
        F(vec) w = F(load_part)(array + i, end - i), g = F(load_part)(grad + i, end - i);
        if (decoupled) w *= keep;
        if (coupled) g = F(fma)(decay, w, g);
        const F(vec) m = F(fma)(beta1, F(load_part)(mean + i, end - i), rest1 * g);
        const F(vec) v = F(fma)(beta2, F(load_part)(square + i, end - i), rest2 * g * g);
        F(store_part)(mean + i, m, end - i);
        F(store_part)(square + i, v, end - i);
        F(store_part)(array + i, w - rate * m / F(fma)(F(root)(v), unbias, eps), end - i);
    }
}

static void F(sgd)(const pyrnn_sgd *p) { team_run(row_threads(p->threads, p->n / 64, 64), 0, F(sgd_work), (void *)p); }
static void F(adam)(const pyrnn_adam *p) { team_run(row_threads(p->threads, p->n / 64, 64), 0, F(adam_work), (void *)p); }
