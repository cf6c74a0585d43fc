/* What the recurrent cells share: the plan of a call and the moving of rows.

   (a) Time runs in blocks of steps. For a block, the rows' inputs are gathered into one compact matrix (whatever strides,
       order or raggedness the caller's array has), projected by one product, and then the steps are taken. In the backward
       the gate gradients of a block stay in a scratch, and become weight and input gradients by one product each.
   (b) Rows are sorted longest first, so step s concerns the first active[s] rows, and work follows the valid steps.
   (c) Threads share a layer by rows (the forward then has no barrier in its walk, the backward two a block) or by units
       (one or two barriers a step). */

#ifndef PYRNN_RECURRENT_H
#define PYRNN_RECURRENT_H

/* How a cell uses its gates. Weights and biases have `gates` gates. The forward multiplies them in one or two sets of
   gates side by side, `vectors` vectors of units each. `planes` are kept per unit for the backward, which makes `grads`
   gate gradients per unit: plane g is that of gate g, seen from the inputs. */
typedef struct {
    int gates, sets, planes, grads;
    struct { int first, count, vectors; } set[2];
    int hh_plane[4]; /* the gradient plane of gate g, seen from the state */
} cell_t;

static const cell_t CELLS[] = {
    [PYRNN_RNN_TANH] = {1, 1, 0, 1, {{0, 1, 4}}, {0}},
    [PYRNN_RNN_RELU] = {1, 1, 0, 1, {{0, 1, 4}}, {0}},
    [PYRNN_LSTM] = {4, 1, 4, 4, {{0, 4, 1}}, {0, 1, 2, 3}},
    [PYRNN_GRU_AFTER] = {3, 1, 4, 4, {{0, 3, 1}}, {0, 1, 3}},
    [PYRNN_GRU_BEFORE] = {3, 2, 3, 3, {{0, 2, 2}, {2, 1, 4}}, {0, 1, 2}},
};
static const int GATE_NUMBERS[] = {0, 1, 2, 3};

#define HALF_L2 (1 << 20) /* bytes; where it is another size, walks turn back for nothing or too late */

typedef enum { BY_ROWS, BY_UNITS } split_t;

/* What a step costs, in cycles of a CPU whose vector units multiply two cache lines a cycle: a line of weights takes so many
   for its rows, and at least as many as it takes to come from L2 or from beyond it. Rough figures do. */
#define FROM_L2 1.4
#define FROM_BEYOND 6.0
#define BARRIER 1500.0
static double line_cost(ptrdiff_t rows, double bytes) {
    const double arithmetic = 0.5 * (double)rows, arrival = bytes < 1.75 * HALF_L2 ? FROM_L2 : FROM_BEYOND;
    return (arithmetic > arrival ? arithmetic : arrival) / 64;
}

/* How many threads, and what they share. A brief call is one of less than about 0.2 ms.

   | work                                              | threads | split                |
   | too little to be worth waking a second one        | 1       | by rows              |
   | one step: each panel serves once                  | all     | by units             |
   | a step's rows cost less than its units + barrier  | all     | by rows              |
   | else                                              | all     | by units             | */
static split_t choose_split(
    const pyrnn_recurrent *p, ptrdiff_t total_steps, ptrdiff_t unit_blocks, ptrdiff_t real_bytes, int *threads, int *brief
) {
    const double columns = CELLS[p->cell].gates * (double)p->H, work = 2 * (double)p->B * columns * (double)(p->I + p->H);
    *threads = p->threads;
    *brief = work * (double)total_steps < 2e7;
    if (work * (double)total_steps < PYRNN_SHARED_FROM) *threads = 1;
    if (*threads == 1) return BY_ROWS;
    const ptrdiff_t rows = (p->B + *threads - 1) / *threads, blocks = (unit_blocks + *threads - 1) / *threads;
    if (p->T == 1 && unit_blocks > 1) return BY_UNITS;
    const double share = (double)blocks / (double)unit_blocks, bytes = columns * (double)(p->H * real_bytes);
    const double by_rows = bytes * line_cost(rows, bytes), by_units = bytes * share * line_cost(p->B, bytes * share);
    if (by_rows <= by_units + BARRIER) {
        if (p->B < *threads) *threads = p->B ? (int)p->B : 1;
        return BY_ROWS;
    }
    return BY_UNITS;
}
#endif

#undef SHARE
#define SHARE (2 * LANES) /* threads share units in multiples of this; a panel of one gate may be cut there */

/* A layer's weights as panels, per set of gates. */
typedef struct {
    REAL *ih[2], *hh[2], *bias[2];
    REAL *b_hn;
} F(weights);

static void F(shift_weights)(F(weights) *weights, const cell_t *cell, ptrdiff_t by) {
    for (int set = 0; set < cell->sets; set++) {
        weights->ih[set] += by;
        weights->hh[set] += by;
        weights->bias[set] += by;
    }
    weights->b_hn += by;
}

typedef struct {
    const pyrnn_recurrent *p;
    const cell_t *cell;
    ptrdiff_t Hp;    /* H padded to whole vectors */
    ptrdiff_t Ip;    /* I likewise */
    ptrdiff_t steps; /* the longest row */
    ptrdiff_t block; /* steps in a block */
    ptrdiff_t *active; /* rows that have a step s */
    REAL *hs, *cs, *gates; /* as in pyrnn_recurrent; in inference, of the workspace */
    ptrdiff_t slots, gate_slots;
    split_t split;
    int threads, brief;
    atomic_int stop;
    double asked; /* when `interrupted` was called last */

    /* forward */
    F(weights) packed; /* all of them, or a thread's panels in turn (`as_it_goes`) */
    int as_it_goes;
    size_t apart; /* as it goes: bytes from one thread's to the next's */
    REAL *inputs;    /* [rows][I] of a block, part after part */
    REAL *before[2]; /* per set and part [panel][rows][NR]: the gates before the recurrent product */
    REAL *reset;     /* GRU_BEFORE: r·h [B][Hp] */

    /* backward */
    REAL *hh_back, *ih_back;     /* [panel][gates·H][WIDTH], the last panel perhaps narrower */
    REAL *dh, *dc;               /* [B][Hp], what comes from the later step */
    REAL *d;                     /* [rows][d_row] gate gradients of a block */
    ptrdiff_t d_row;             /* not a power of two: rows would fall into one cache set */
    REAL *x_panels, *h_panels;   /* [panel][rows][WIDTH] */
    REAL *r_panels;              /* GRU_BEFORE: r·h likewise */
    REAL *dw_ih, *dw_hh, *db;    /* sums so far, padded */
    REAL *scratch, *made;        /* of add_outer, per thread; a panel of dx, [rows][WIDTH] */
} F(plan);

/* A thread's part of the work between barriers. By rows it has scratch of its own for them, by units the team's. */
typedef struct {
    const member_t *me;
    ptrdiff_t first, stride;  /* rows first, first + stride, … */
    ptrdiff_t unit, unit_end; /* of Hp */
    REAL *inputs, *before[2]; /* forward: the plan's, where this part's rows begin */
    F(weights) weights;       /* forward: the panels from unit `origin` on */
    ptrdiff_t origin, packed_end; /* the units that they are of */
} F(part);

static F(part) F(part_of)(const F(plan) *plan, const member_t *me) {
    F(part) part = {.me = me, .stride = 1, .unit_end = plan->Hp};
    ptrdiff_t rows_before = 0; /* of the threads before this one, in a block */
    if (plan->split == BY_ROWS) {
        part.first = me->id;
        part.stride = me->size;
        rows_before = plan->block * (plan->p->B / me->size * me->id + smaller(plan->p->B % me->size, me->id));
    } else {
        team_share(me, plan->Hp, SHARE, &part.unit, &part.unit_end);
    }
    if (!plan->inputs) return part; /* a backward */
    part.inputs = plan->inputs + rows_before * plan->p->I;
    for (int set = 0; set < plan->cell->sets; set++)
        part.before[set] = plan->before[set] + rows_before * plan->cell->set[set].count * plan->Hp;
    part.weights = plan->packed;
    part.packed_end = plan->Hp;
    if (plan->as_it_goes) F(shift_weights)(&part.weights, plan->cell, me->id * (ptrdiff_t)plan->apart / REAL_BYTES);
    return part;
}

/* The panel of a set of gates at `unit`, or what the part has of it: `units` units, and where their weights lie with K rows. */
typedef struct {
    ptrdiff_t units, b, b_k;
} F(slice);

static inline F(slice) F(slice_at)(const F(plan) *plan, const F(part) *part, int set, ptrdiff_t unit, ptrdiff_t K) {
    const ptrdiff_t count = plan->cell->set[set].count, full = plan->cell->set[set].vectors * LANES;
    const ptrdiff_t before = (unit - part->origin) / full * full, wide = smaller(full, part->packed_end - part->origin - before);
    const ptrdiff_t inside = unit - part->origin - before;
    return (F(slice)){smaller(wide - inside, part->unit_end - unit), before * count * K + inside, wide * count};
}

/* Where weights exceed L2, walks over them turn back at their end: what was read last is read first the next time, and is
   still there. A turn takes some panels; F(turn) gives turn number `turn` as a part of its own. */
#undef TURN
#define TURN(vectors) (2 * (vectors) * LANES)

static inline ptrdiff_t F(turns)(const F(part) *part, ptrdiff_t units, ptrdiff_t bytes) {
    return bytes > HALF_L2 ? (part->unit_end - part->unit + units - 1) / units : 1;
}
static inline F(part) F(turn)(const F(part) *part, ptrdiff_t units, ptrdiff_t turns, ptrdiff_t turn, ptrdiff_t back) {
    F(part) piece = *part;
    if (turns == 1) return piece;
    piece.unit += units * (back & 1 ? turns - 1 - turn : turn);
    piece.unit_end = smaller(piece.unit + units, part->unit_end);
    return piece;
}

/* How many of the first `rows` rows are this part's. */
static inline ptrdiff_t F(own)(const F(part) *part, ptrdiff_t rows) {
    return rows > part->first ? (rows - part->first + part->stride - 1) / part->stride : 0;
}

static inline void F(wait_for_units)(const F(plan) *plan, const member_t *me) {
    if (plan->split == BY_UNITS) team_wait(me);
}

/* The caller's row that is our row i, its valid steps, and the element of its sequence that step s processes. */
static inline ptrdiff_t F(caller_row)(const pyrnn_recurrent *p, ptrdiff_t i) { return p->order ? p->order[i] : i; }
static inline ptrdiff_t F(length)(const pyrnn_recurrent *p, ptrdiff_t i) { return p->lengths ? p->lengths[i] : p->T; }
static inline ptrdiff_t F(element)(const pyrnn_recurrent *p, ptrdiff_t i, ptrdiff_t s) {
    return p->reverse ? F(length)(p, i) - 1 - s : s;
}

static inline REAL *F(h_slot)(const pyrnn_recurrent *p, const F(plan) *plan, ptrdiff_t slot) {
    return plan->hs + slot % plan->slots * p->B * plan->Hp;
}
static inline REAL *F(c_slot)(const pyrnn_recurrent *p, const F(plan) *plan, ptrdiff_t slot) {
    return plan->cs + slot % plan->slots * p->B * plan->Hp;
}
/* The gates of row i at step s, one plane of Hp after the other. */
static inline REAL *F(gates_of)(const pyrnn_recurrent *p, const F(plan) *plan, ptrdiff_t s, ptrdiff_t i) {
    return plan->gates + (s % plan->gate_slots * p->B + i) * plan->cell->planes * plan->Hp;
}
static inline REAL *F(y_at)(const pyrnn_recurrent *p, ptrdiff_t i, ptrdiff_t s) {
    return (REAL *)p->y + (F(caller_row)(p, i) * p->T + F(element)(p, i, s)) * p->y_step;
}

/* Where a cell's forward works: LANES units of a row at a step, with the gates before their activations. */
typedef struct {
    ptrdiff_t step, row, unit;
    const REAL *gates, *inputs; /* with the recurrent product, and the inputs' part alone */
    ptrdiff_t gate;             /* from one gate to the next */
} F(lanes);

/* Keep four gates for the backward. */
static inline void F(keep_gates)(const F(plan) *plan, const F(lanes) *at, F(vec) a, F(vec) b, F(vec) c, F(vec) d) {
    REAL *kept = F(gates_of)(plan->p, plan, at->step, at->row) + at->unit;
    F(store)(kept, a);
    F(store)(kept + plan->Hp, b);
    F(store)(kept + 2 * plan->Hp, c);
    F(store)(kept + 3 * plan->Hp, d);
}

static inline void F(put_h)(const F(plan) *plan, const F(lanes) *at, F(vec) h) {
    F(store)(F(h_slot)(plan->p, plan, at->step + 1) + at->row * plan->Hp + at->unit, h);
    F(store_part)(F(y_at)(plan->p, at->row, at->step) + at->unit, h, plan->p->H - at->unit);
}

/* Fill the parts of the plan that forward and backward share. */
static void F(begin_plan)(F(plan) *plan, const pyrnn_recurrent *p, arena_t *arena) {
    memset(plan, 0, sizeof *plan);
    plan->p = p;
    plan->cell = &CELLS[p->cell];
    plan->Hp = round_up(p->H, LANES);
    plan->Ip = round_up(p->I, LANES);
    /* Small layers take longer blocks, so that there is enough to do between two barriers. */
    const ptrdiff_t row = (plan->cell->grads * plan->Hp + plan->Ip + plan->Hp) * (ptrdiff_t)sizeof(REAL);
    plan->block = p->B && row ? larger(BLOCK_ROWS, smaller(BLOCK_BYTES / row, 4 * BLOCK_ROWS)) / p->B : 1;
    if (plan->block > p->T) plan->block = p->T;
    if (plan->block < 1) plan->block = 1;
    plan->hs = p->hs;
    plan->cs = p->cs;
    plan->gates = p->gates;
    plan->slots = plan->gate_slots = p->T + 1;
    plan->active = take(arena, (size_t)(p->T + 1) * sizeof(ptrdiff_t));
    if (!arena->base) return;
    plan->steps = p->B ? F(length)(p, 0) : 0;
    ptrdiff_t rows = p->B, total = 0;
    for (ptrdiff_t s = 0; s <= p->T; s++) {
        while (rows && F(length)(p, rows - 1) <= s) rows--;
        plan->active[s] = rows;
        total += rows > 0;
    }
    plan->split = choose_split(p, total, (plan->Hp + SHARE - 1) / SHARE, REAL_BYTES, &plan->threads, &plan->brief);
    plan->asked = seconds();
}

/* At the end of a block: the calling thread asks, at most twenty times a second, whether to stop. */
static void F(ask_to_stop)(F(plan) *plan, const member_t *me) {
    if (me->id == 0 && plan->p->interrupted && seconds() - plan->asked > 0.05) {
        denormals_restore(me->floats); /* signal handlers run in there */
        plan->stop = plan->p->interrupted();
        denormals_off();
        plan->asked = seconds();
    }
}
