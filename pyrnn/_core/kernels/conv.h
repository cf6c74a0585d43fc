/* Causal convolution over time. The taps are one more dimension of a product of panels (Chaudhary et al. 2021, "Efficient and
   Generic 1D Dilated Convolution Layer for Deep Learning").

   (a) A tile of rows times a panel, as in panel.h, keeps its sums in registers over all taps; its rows come by pointer, one a
       tap, into x, into `left`, or to zeros. So the left edge, ragged rows, any strides and one step of many sequences are
       all the same tile, and x is copied nowhere.
   (b) Each output is one chain: bias, then the taps, oldest first, within a tap the inputs in ascending order. Taps on what
       would be zeros before a sequence come first in it and leave a sum as it is, so they are left out. (That holds for
       finite weights, and for a bias that is not -0: panels have +0 for it.)
   (c) The input's gradient is the same product: rows of dy, a tap's shift forwards in time.
   (d) A weight gradient is a product for each tap with the rows as its depth. Vectors lie along the inputs or the outputs,
       whichever fill them better. Rows are taken in blocks of a fixed size; pairs of a row and its shifted one that
       does not exist are left out.
   (e) Depthwise, lanes lie along the channels. */
#ifndef PYRNN_CONV_H
#define PYRNN_CONV_H
#define CONV_ROWS 240   /* of a block: they stay in L2 while panels pass */
#define CONV_SUM (REGISTERS == 32 && REAL_BYTES == 4 ? 160 : 80) /* of a block of a weight gradient: they stay in L1 */
#define CONV_TABLE 4096 /* pointers of a block, unless its rows were too few then */
#define CONV_DEPTH 512  /* inputs and taps of a panel in one go */
#define CONV_HEIGHT 8   /* rows of a tile at most: as many pointers stay in registers */
#define CONV_SHARED 500000 /* multiply-adds from which threads share a call */
#define CONV_BRIEF 8000000 /* and up to which it is brief */
#define CONV_TILE(NV) smaller(ROWS(NV), CONV_HEIGHT)

static inline ptrdiff_t conv_length(const pyrnn_conv *p, ptrdiff_t b) { return p->lengths ? (ptrdiff_t)p->lengths[b] : p->T; }

/* Steps [t, t + n) of sequence b. */
typedef struct { ptrdiff_t b, t, n; } conv_piece;

/* Goes through steps of all sequences: from -before to the last valid one, or to -1. */
typedef struct {
    const pyrnn_conv *p;
    ptrdiff_t before;
    int valid;
    ptrdiff_t b, t, left;
} conv_walk;

static inline ptrdiff_t conv_end(const conv_walk *w) { return w->valid ? conv_length(w->p, w->b) : 0; }

/* A walk over steps [first, last) of all of them. */
static conv_walk conv_walk_over(const pyrnn_conv *p, ptrdiff_t before, int valid, ptrdiff_t first, ptrdiff_t last) {
    conv_walk w = {p, before, valid, 0, -before, last - first};
    if (!w.left) return w;
    for (; first >= before + conv_end(&w); w.b++) first -= before + conv_end(&w);
    w.t += first;
    return w;
}

static conv_piece conv_next(conv_walk *w, ptrdiff_t most) {
    while (w->t == conv_end(w)) w->b++, w->t = -w->before;
    const conv_piece piece = {w->b, w->t, smaller(smaller(most, w->left), conv_end(w) - w->t)};
    w->t += piece.n;
    w->left -= piece.n;
    return piece;
}
#endif

/* Weights in panels of a group's outputs, dealt out evenly; depthwise [tap][channel]. */
typedef struct {
    ptrdiff_t inputs, outputs, groups; /* inputs and outputs of a group */
    ptrdiff_t vectors, panels;         /* of a group */
    REAL *w, *bias;
} F(conv_weights);

typedef struct {
    ptrdiff_t group, vector, number; /* the group's vectors [vector, vector + number) */
} F(conv_panel);

static F(conv_panel) F(conv_panel_at)(const F(conv_weights) *w, ptrdiff_t unit) {
    const ptrdiff_t panel = unit % w->panels, vector = first_row(w->vectors, w->panels, panel);
    return (F(conv_panel)){unit / w->panels, vector, first_row(w->vectors, w->panels, panel + 1) - vector};
}

/* Rows to come: for each tap where it finds its input, where the output goes, and the taps that have an input at all. */
typedef struct {
    ptrdiff_t rows, most;
    const REAL **in; /* [tap][most] */
    REAL **out;
    int *first, *last;
    const REAL **dy; /* of a weight gradient: rows of dy beside those of in, so many a tap */
    ptrdiff_t *count;
    REAL *panel; /* rows of either, gathered */
} F(conv_block);

typedef struct {
    const pyrnn_conv *p;
    int depthwise, threads, brief, by_panels;
    ptrdiff_t span, steps;  /* of context; valid ones of all sequences */
    ptrdiff_t grads;        /* rows of dx and dleft, those wanted */
    ptrdiff_t most, sum;    /* rows of a block, and of one of a weight gradient */
    F(conv_weights) forward, back;
    REAL *zeros;
    char *tables;           /* a thread's own: a block */
    size_t table_bytes;
    int across;             /* whether a weight gradient's vectors lie along the outputs */
    ptrdiff_t dw_rows, dw_columns, dw_padded; /* of a tap and group */
    REAL *total, *db;
} F(conv_plan);

static void F(take_conv)(F(conv_weights) *w, const pyrnn_conv *p, int depthwise, int back, arena_t *arena) {
    const ptrdiff_t ci = p->I / p->groups, co = p->O / p->groups;
    w->inputs = depthwise ? 1 : back ? co : ci;
    w->outputs = depthwise ? p->I : back ? ci : co;
    w->groups = depthwise ? 1 : p->groups;
    w->vectors = (w->outputs + LANES - 1) / LANES;
    w->panels = (w->vectors + MAX_VECTORS - 1) / MAX_VECTORS;
    const ptrdiff_t columns = w->groups * w->vectors * LANES;
    w->w = take(arena, (size_t)(columns * w->inputs * p->K) * sizeof(REAL));
    w->bias = take(arena, (size_t)columns * sizeof(REAL));
}

static void F(take_block)(F(conv_block) *block, const F(conv_plan) *plan, arena_t *arena) {
    const size_t K = (size_t)plan->p->K, most = (size_t)larger(plan->most, plan->sum);
    block->most = (ptrdiff_t)most;
    block->in = take(arena, most * K * sizeof(REAL *));
    block->out = take(arena, most * sizeof(REAL *));
    block->first = take(arena, most * sizeof(int));
    block->last = take(arena, most * sizeof(int));
    block->dy = plan->sum ? take(arena, most * K * sizeof(REAL *)) : NULL;
    block->count = plan->sum ? take(arena, K * sizeof(ptrdiff_t)) : NULL;
    block->panel = plan->p->dw ? take(arena, most * WIDTH * sizeof(REAL)) : NULL;
}

static void F(conv_block_of)(const F(conv_plan) *plan, int thread, F(conv_block) *block) {
    arena_t arena = {plan->tables + (size_t)thread * plan->table_bytes, 0};
    F(take_block)(block, plan, &arena);
}

static int F(conv_is_depthwise)(const pyrnn_conv *p) { return p->I == p->groups && p->O == p->groups; }

static void F(plan_conv)(F(conv_plan) *plan, const pyrnn_conv *p, arena_t *arena, int backward) {
    memset(plan, 0, sizeof *plan);
    plan->p = p;
    plan->span = (p->K - 1) * p->dilation;
    plan->depthwise = F(conv_is_depthwise)(p);
    if (!p->lengths) plan->steps = p->B * p->T;
    else for (ptrdiff_t b = 0; b < p->B; b++) plan->steps += p->lengths[b];
    plan->most = larger(smaller(CONV_TABLE / p->K, CONV_ROWS), 24);
    const ptrdiff_t ci = p->I / p->groups, co = p->O / p->groups;
    arena_t given = {p->packed, 0};
    if (!backward) F(take_conv)(&plan->forward, p, plan->depthwise, 0, p->packed ? &given : arena);
    if (backward) {
        plan->sum = larger(smaller(CONV_TABLE / p->K, CONV_SUM), 64);
        plan->grads = (p->dx ? plan->steps : 0) + (p->dleft ? p->B * plan->span : 0);
        if (plan->grads) F(take_conv)(&plan->back, p, plan->depthwise, 1, arena);
        if (p->dw) {
            plan->across = !plan->depthwise && round_up(co, LANES) * ci < round_up(ci, LANES) * co;
            plan->dw_rows = plan->depthwise ? 1 : plan->across ? ci : co;
            plan->dw_columns = plan->depthwise ? p->I : plan->across ? co : ci;
            plan->dw_padded = round_up(plan->dw_columns, LANES);
            const ptrdiff_t groups = plan->depthwise ? 1 : p->groups;
            plan->total = take(arena, (size_t)(groups * p->K * plan->dw_rows * plan->dw_padded) * sizeof(REAL));
        }
        if (p->db) plan->db = take(arena, (size_t)round_up(p->O, LANES) * sizeof(REAL));
    }
    const F(conv_weights) *w = backward ? &plan->back : &plan->forward;
    const ptrdiff_t units = w->groups * w->panels;
    const ptrdiff_t shares = larger(larger(plan->steps, plan->grads) / CONV_HEIGHT, larger(units, p->dw ? p->K * plan->dw_rows : 1));
    const ptrdiff_t work = larger(plan->steps, plan->grads) * ci * p->O * p->K;
    plan->threads = work < CONV_SHARED ? 1 : (int)smaller(p->threads, shares);
    plan->brief = work < CONV_BRIEF;
    plan->by_panels = larger(plan->steps, plan->grads) < plan->threads * 4 * CONV_HEIGHT && units >= plan->threads;
    const ptrdiff_t zeros = larger(p->I, p->O);
    plan->zeros = take(arena, (size_t)zeros * sizeof(REAL));
    if (arena->base) memset(plan->zeros, 0, (size_t)zeros * sizeof(REAL));
    F(conv_block) block;
    arena_t counted = {NULL, 0};
    F(take_block)(&block, plan, &counted);
    plan->table_bytes = counted.used;
    plan->tables = take(arena, (size_t)plan->threads * plan->table_bytes);
}

/* --- packing ------------------------------------------------------------------------------------------------- */

/* Row (tap, input) of a panel at panel + (tap·inputs + input)·wide, its columns outputs: w[output][input][tap]. */
static void F(pack_conv_panel)(const F(conv_weights) *w, const pyrnn_conv *p, F(conv_panel) at, int back, REAL *panel) {
    const ptrdiff_t wide = at.number * LANES, K = p->K, inputs = w->inputs, group = at.group * (p->O / p->groups);
    REAL square[LANES * LANES];
    for (ptrdiff_t n = 0; n < at.number; n++) {
        const ptrdiff_t first = (at.vector + n) * LANES, real = smaller(LANES, w->outputs - first);
        REAL *to = panel + n * LANES;
        if (!back && real == LANES && p->w.stride[2] == 1 && p->w.stride[1] == K) {
            const REAL *in = F(at)(&p->w, group + first, 0, 0);
            ptrdiff_t j = 0, tap = 0, input = 0; /* j counts a row of w: input·K + tap */
            for (; j < inputs * K; j += LANES) {
                const ptrdiff_t here = smaller(LANES, inputs * K - j);
                if (here == LANES) F(transpose)(in + j, p->w.stride[0], square, LANES);
                else
                    for (ptrdiff_t i = 0; i < here; i++)
                        for (ptrdiff_t lane = 0; lane < LANES; lane++)
                            square[i * LANES + lane] = in[lane * p->w.stride[0] + j + i];
                for (ptrdiff_t i = 0; i < here; i++) {
                    F(store)(to + (tap * inputs + input) * wide, F(load)(square + i * LANES));
                    if (++tap == K) tap = 0, input++;
                }
            }
            continue;
        }
        const ptrdiff_t lane_step = p->w.stride[back ? 1 : 0], input_step = p->w.stride[back ? 0 : 1];
        for (ptrdiff_t input = 0; input < inputs; input++) {
            for (ptrdiff_t tap = 0; tap < K; tap++) {
                const REAL *in = F(at)(&p->w, group, 0, tap) + first * lane_step + input * input_step;
                REAL *row = to + (tap * inputs + input) * wide;
                for (ptrdiff_t lane = 0; lane < LANES; lane++) row[lane] = lane < real ? in[lane * lane_step] : 0;
            }
        }
    }
}

/* Panels [first, last) with their bias; the bias of a gradient is 0. */
static void F(pack_conv)(const F(conv_weights) *w, const pyrnn_conv *p, int depthwise, int back, ptrdiff_t first, ptrdiff_t last) {
    for (ptrdiff_t unit = first; unit < last; unit++) {
        const F(conv_panel) at = F(conv_panel_at)(w, unit);
        const ptrdiff_t column = (at.group * w->vectors + at.vector) * LANES;
        if (depthwise) {
            for (ptrdiff_t tap = 0; tap < p->K; tap++)
                for (ptrdiff_t i = column; i < column + at.number * LANES; i++)
                    w->w[tap * w->vectors * LANES + i] = i < w->outputs ? *F(at)(&p->w, i, 0, tap) : 0;
        } else {
            F(pack_conv_panel)(w, p, at, back, w->w + column * w->inputs * p->K);
        }
        for (ptrdiff_t i = 0; i < at.number * LANES; i++) {
            const ptrdiff_t output = at.vector * LANES + i;
            const int given = !back && p->b.data && output < w->outputs;
            w->bias[column + i] = given ? *F(at)(&p->b, at.group * w->outputs + output, 0, 0) + 0 : 0;
        }
    }
}

/* --- rows ---------------------------------------------------------------------------------------------------- */

/* Where steps [first, first + n) of sequence b lie: before 0 in `left`, from `length` on nowhere. */
static void F(conv_pointers)(
    const F(conv_plan) *plan, const pyrnn_in *x, const pyrnn_in *left, ptrdiff_t b, ptrdiff_t length, ptrdiff_t first,
    ptrdiff_t n, const REAL **to
) {
    const ptrdiff_t before = smaller(larger(-first, 0), n), within = larger(smaller(length - first, n), before);
    const REAL *row = left && left->data ? F(at)(left, b, plan->span + first, 0) : plan->zeros;
    ptrdiff_t step = left && left->data ? left->stride[1] : 0, i = 0;
    for (; i < before; i++, row += step) to[i] = row;
    row = F(at)(x, b, first + i, 0);
    step = x->stride[1];
    for (; i < within; i++, row += step) to[i] = row;
    for (; i < n; i++) to[i] = plan->zeros;
}

/* A block of the forward: rows of y; or, back, of dx and dleft. */
static void F(conv_fill)(const F(conv_plan) *plan, conv_walk *walk, int back, F(conv_block) *block) {
    const pyrnn_conv *p = plan->p;
    const ptrdiff_t K = p->K, d = p->dilation;
    block->rows = 0;
    while (walk->left && block->rows < plan->most) {
        const conv_piece at = conv_next(walk, plan->most - block->rows);
        const ptrdiff_t length = conv_length(p, at.b);
        for (ptrdiff_t tap = 0; tap < K && (!back || p->dy.data); tap++) {
            const ptrdiff_t shift = (K - 1 - tap) * d;
            F(conv_pointers)(plan, back ? &p->dy : &p->x, back ? NULL : &p->left, at.b, length,
                             back ? at.t + shift : at.t - shift, at.n, block->in + tap * block->most + block->rows);
        }
        const int all = back ? at.t >= 0 && at.t + at.n + plan->span <= length : p->left.data || at.t >= plan->span;
        for (ptrdiff_t i = 0, r = block->rows; i < at.n; i++, r++) {
            const ptrdiff_t t = at.t + i;
            block->first[r] = 0;
            block->last[r] = (int)K;
            if (!all && !back) block->first[r] = (int)larger(K - 1 - t / d, 0);
            if (!all && back) {
                block->first[r] = (int)larger(K - (length - t + d - 1) / d, 0);
                block->last[r] = (int)(t < 0 ? K - (-t + d - 1) / d : K);
            }
            if (back && !p->dy.data) block->first[r] = block->last[r] = 0;
            if (!back) block->out[r] = (REAL *)p->y + at.b * p->y_row + t * p->y_step;
            else if (t < 0) block->out[r] = (REAL *)p->dleft + (at.b * plan->span + plan->span + t) * p->I;
            else block->out[r] = (REAL *)p->dx + (at.b * p->T + t) * p->I;
        }
        block->rows += at.n;
    }
}

/* --- tiles --------------------------------------------------------------------------------------------------- */

typedef struct {
    const REAL *const *in; /* of the first tap; each further one `most` on */
    ptrdiff_t most, taps;
    ptrdiff_t input, inputs; /* inputs [input, input + inputs) of each tap's rows */
    const REAL *w;
    ptrdiff_t w_tap, w_next; /* from one tap, from one panel to the next */
    const REAL *bias;        /* NULL: the chains go on from out */
    REAL *const *out;
    ptrdiff_t column, columns; /* of out: columns may be fewer than the panel's */
} F(conv_product);

/* mr rows times `panels` panels of nv vectors. */
ALWAYS_INLINE void F(conv_tile)(const int mr, const int nv, const int panels, const F(conv_product) *p) {
    F(vec) sum[CONV_HEIGHT][2 * MAX_VECTORS];
    const int vectors = nv * panels;
    const ptrdiff_t rest = p->columns - (vectors - 1) * LANES;
    UNROLL for (int m = 0; m < mr; m++) {
        UNROLL for (int n = 0; n < vectors; n++) {
            const REAL *from = p->bias ? p->bias + n * LANES : p->out[m] + p->column + n * LANES;
            sum[m][n] = n < vectors - 1 || p->bias ? F(load)(from) : F(load_part)(from, rest);
        }
    }
    const ptrdiff_t inputs = p->inputs;
    for (ptrdiff_t tap = 0; tap < p->taps; tap++) {
        const REAL *row[CONV_HEIGHT], *w = p->w + tap * p->w_tap;
        UNROLL for (int m = 0; m < mr; m++) row[m] = p->in[tap * p->most + m] + p->input;
        for (ptrdiff_t i = 0; i < inputs; i++, w += nv * LANES) {
            if (REGISTERS < 32 && mr < nv) { /* fewer registers are taken when the rows stay in them */
                F(vec) value[CONV_HEIGHT];
                UNROLL for (int m = 0; m < mr; m++) value[m] = F(all)(row[m][i]);
                UNROLL for (int n = 0; n < vectors; n++) {
                    F(vec) column = F(load)(w + n / nv * p->w_next + n % nv * LANES);
                    if (mr > 1) HOLD(column);
                    UNROLL for (int m = 0; m < mr; m++) sum[m][n] = F(fma)(value[m], column, sum[m][n]);
                }
            } else {
                F(vec) column[2 * MAX_VECTORS];
                UNROLL for (int n = 0; n < vectors; n++) {
                    column[n] = F(load)(w + n / nv * p->w_next + n % nv * LANES);
                    if (mr > 1) HOLD(column[n]);
                }
                UNROLL for (int m = 0; m < mr; m++) {
                    const F(vec) value = F(all)(row[m][i]);
                    UNROLL for (int n = 0; n < vectors; n++) sum[m][n] = F(fma)(value, column[n], sum[m][n]);
                }
            }
        }
    }
    UNROLL for (int m = 0; m < mr; m++) {
        REAL *to = p->out[m] + p->column;
        UNROLL for (int n = 0; n < vectors - 1; n++) F(store)(to + n * LANES, sum[m][n]);
        F(store_part)(to + (vectors - 1) * LANES, sum[m][vectors - 1], rest);
    }
}

/* total[m, :] += Σ_r a[r][m] · panel[r, :] for mr rows m. */
typedef struct {
    const REAL *const *a;
    ptrdiff_t rows, a_first;
    const REAL *panel;
    REAL *total;
    ptrdiff_t total_row;
} F(conv_outer);

ALWAYS_INLINE void F(conv_outer_tile)(const int mr, const int nv, const F(conv_outer) *p) {
    F(vec) sum[CONV_HEIGHT][MAX_VECTORS];
    UNROLL for (int m = 0; m < mr; m++)
        UNROLL for (int n = 0; n < nv; n++) sum[m][n] = (F(vec)){0};
    const REAL *panel = p->panel;
    for (ptrdiff_t r = 0; r < p->rows; r++, panel += nv * LANES) {
        const REAL *a = p->a[r] + p->a_first;
        F(vec) column[MAX_VECTORS];
        UNROLL for (int n = 0; n < nv; n++) {
            column[n] = F(load)(panel + n * LANES);
            if (mr > 1 && mr < 4) HOLD(column[n]);
        }
        UNROLL for (int m = 0; m < mr; m++) {
            const F(vec) value = F(all)(a[m]);
            UNROLL for (int n = 0; n < nv; n++) sum[m][n] = F(fma)(value, column[n], sum[m][n]);
        }
    }
    UNROLL for (int m = 0; m < mr; m++)
        UNROLL for (int n = 0; n < nv; n++) {
            REAL *to = p->total + m * p->total_row + n * LANES;
            F(store)(to, F(load)(to) + sum[m][n]);
        }
}

/* The panel of a product: nv vectors of each of some rows, zeros past the columns that exist. */
ALWAYS_INLINE void F(conv_gather_vectors)(
    const int nv, const REAL *const *rows, ptrdiff_t n, ptrdiff_t first, ptrdiff_t columns, REAL *panel
) {
    const ptrdiff_t rest = columns - (nv - 1) * LANES;
    for (ptrdiff_t r = 0; r < n; r++, panel += nv * LANES) {
        const REAL *row = rows[r] + first, *ahead = rows[smaller(r + 12, n - 1)] + first;
        UNROLL for (int v = 0; v < nv; v++) __builtin_prefetch(ahead + v * LANES);
        UNROLL for (int v = 0; v < nv - 1; v++) F(store)(panel + v * LANES, F(load)(row + v * LANES));
        F(store)(panel + (nv - 1) * LANES, F(load_part)(row + (nv - 1) * LANES, rest));
    }
}
static void F(conv_gather)(ptrdiff_t nv, const REAL *const *rows, ptrdiff_t n, ptrdiff_t first, ptrdiff_t columns, REAL *panel) {
    switch (nv) {
    case 1: F(conv_gather_vectors)(1, rows, n, first, columns, panel); break;
    case 2: F(conv_gather_vectors)(2, rows, n, first, columns, panel); break;
    case 3: F(conv_gather_vectors)(3, rows, n, first, columns, panel); break;
    default: F(conv_gather_vectors)(4, rows, n, first, columns, panel);
    }
}

/* Both for each size of tile. */
typedef void F(conv_tile_t)(const F(conv_product) *p);
typedef void F(conv_outer_t)(const F(conv_outer) *p);
#define TILE(MR, NV) \
    static void F(conv_tile_##MR##x##NV)(const F(conv_product) *p) { F(conv_tile)(MR, NV, 1, p); } \
    static void F(conv_outer_##MR##x##NV)(const F(conv_outer) *p) { F(conv_outer_tile)(MR, NV, p); }
TILE(1, 1) TILE(2, 1) TILE(3, 1) TILE(4, 1) TILE(5, 1) TILE(6, 1) TILE(7, 1) TILE(8, 1)
TILE(1, 2) TILE(2, 2) TILE(3, 2) TILE(4, 2) TILE(5, 2) TILE(6, 2)
TILE(1, 3) TILE(2, 3) TILE(3, 3) TILE(4, 3)
TILE(1, 4) TILE(2, 4) TILE(3, 4)
#if REGISTERS == 32
TILE(7, 2) TILE(8, 2)
TILE(5, 3) TILE(6, 3) TILE(7, 3) TILE(8, 3)
TILE(4, 4) TILE(5, 4) TILE(6, 4)
#define AND_MORE(...) , __VA_ARGS__
#else
#define AND_MORE(...)
#endif
#define SIZES(N) { \
    [1] = {NULL, F(N##_1x1), F(N##_2x1), F(N##_3x1), F(N##_4x1), F(N##_5x1), F(N##_6x1), F(N##_7x1), F(N##_8x1)}, \
    [2] = {NULL, F(N##_1x2), F(N##_2x2), F(N##_3x2), F(N##_4x2), F(N##_5x2), F(N##_6x2) AND_MORE(F(N##_7x2), F(N##_8x2))}, \
    [3] = {NULL, F(N##_1x3), F(N##_2x3), F(N##_3x3), F(N##_4x3) \
           AND_MORE(F(N##_5x3), F(N##_6x3), F(N##_7x3), F(N##_8x3))}, \
    [4] = {NULL, F(N##_1x4), F(N##_2x4), F(N##_3x4) AND_MORE(F(N##_4x4), F(N##_5x4), F(N##_6x4))}}
static F(conv_tile_t) *const F(conv_tiles)[MAX_VECTORS + 1][CONV_HEIGHT + 1] = SIZES(conv_tile);
static F(conv_outer_t) *const F(conv_outers)[MAX_VECTORS + 1][CONV_HEIGHT + 1] = SIZES(conv_outer);
#undef TILE
#undef SIZES
#undef AND_MORE

/* A single row has too few sums to hide the latency of a multiply-add: it takes two panels. */
static void F(conv_row_tile)(int nv, const F(conv_product) *p) {
    if (nv == 4) F(conv_tile)(1, 4, 2, p);
    else F(conv_tile)(1, 3, 2, p);
}

/* Depthwise: mr rows of nv vectors of channels. */
ALWAYS_INLINE void F(depthwise_tile)(const int mr, const int nv, const F(conv_product) *p) {
    F(vec) sum[4][4];
    const ptrdiff_t rest = p->columns - (nv - 1) * LANES;
    UNROLL for (int n = 0; n < nv; n++)
        UNROLL for (int m = 0; m < mr; m++) sum[m][n] = F(load)(p->bias + n * LANES);
    for (ptrdiff_t tap = 0; tap < p->taps; tap++) {
        F(vec) w[4];
        UNROLL for (int n = 0; n < nv; n++) w[n] = F(load)(p->w + tap * p->w_tap + n * LANES);
        UNROLL for (int m = 0; m < mr; m++) {
            const REAL *row = p->in[tap * p->most + m] + p->column;
            UNROLL for (int n = 0; n < nv - 1; n++) sum[m][n] = F(fma)(F(load)(row + n * LANES), w[n], sum[m][n]);
            sum[m][nv - 1] = F(fma)(F(load_part)(row + (nv - 1) * LANES, rest), w[nv - 1], sum[m][nv - 1]);
        }
    }
    UNROLL for (int m = 0; m < mr; m++) {
        REAL *to = p->out[m] + p->column;
        UNROLL for (int n = 0; n < nv - 1; n++) F(store)(to + n * LANES, sum[m][n]);
        F(store_part)(to + (nv - 1) * LANES, sum[m][nv - 1], rest);
    }
}
static void F(depthwise_rows)(ptrdiff_t mr, ptrdiff_t nv, const F(conv_product) *p) {
#define ROWS_OF(MR) case MR: \
    if (nv == 4) F(depthwise_tile)(MR, 4, p); \
    else if (nv == 2) F(depthwise_tile)(MR, 2, p); \
    else F(depthwise_tile)(MR, 1, p); \
    break;
    switch (mr) { ROWS_OF(1) ROWS_OF(2) ROWS_OF(3) ROWS_OF(4) }
#undef ROWS_OF
}

/* total += Σ_r a[r] · b[r] of nv vectors of channels from `first` on. */
ALWAYS_INLINE void F(depthwise_outer)(
    const int nv, const REAL *const *a, const REAL *const *b, ptrdiff_t rows, ptrdiff_t first, ptrdiff_t columns, REAL *total
) {
    F(vec) sum[4];
    const ptrdiff_t rest = columns - (nv - 1) * LANES;
    UNROLL for (int n = 0; n < nv; n++) sum[n] = (F(vec)){0};
    for (ptrdiff_t r = 0; r < rows; r++) {
        const REAL *of_a = a[r] + first, *of_b = b[r] + first;
        UNROLL for (int n = 0; n < nv - 1; n++) sum[n] = F(fma)(F(load)(of_a + n * LANES), F(load)(of_b + n * LANES), sum[n]);
        const int n = nv - 1;
        sum[n] = F(fma)(F(load_part)(of_a + n * LANES, rest), F(load_part)(of_b + n * LANES, rest), sum[n]);
    }
    UNROLL for (int n = 0; n < nv; n++) F(store)(total + n * LANES, F(load)(total + n * LANES) + sum[n]);
}

/* How many vectors of channels, of so many left, are taken together. */
static inline ptrdiff_t F(depthwise_vectors)(ptrdiff_t left) {
    return REGISTERS == 32 && left >= 4 ? 4 : left >= 2 ? 2 : 1;
}

/* --- outputs, and gradients of inputs ------------------------------------------------------------------------- */

/* The taps that one of the rows [r, r + height) has an input at: [first, last). */
static inline void F(conv_taps)(const F(conv_block) *block, ptrdiff_t r, ptrdiff_t height, int *first, int *last) {
    *first = block->first[r];
    *last = block->last[r];
    for (ptrdiff_t i = r + 1; i < r + height; i++) {
        if (block->first[i] < *first) *first = block->first[i];
        if (block->last[i] > *last) *last = block->last[i];
    }
    if (*first > *last) *first = *last;
}

static void F(depthwise_block)(
    const F(conv_plan) *plan, const F(conv_weights) *w, const F(conv_block) *block, ptrdiff_t first_vector, ptrdiff_t last_vector
) {
    const ptrdiff_t tiles = (block->rows + 3) / 4;
    for (ptrdiff_t v = first_vector, nv; v < last_vector; v += nv) {
        nv = F(depthwise_vectors)(last_vector - v);
        for (ptrdiff_t t = 0; t < tiles; t++) {
            const ptrdiff_t r = first_row(block->rows, tiles, t), height = first_row(block->rows, tiles, t + 1) - r;
            int first, last;
            F(conv_taps)(block, r, height, &first, &last);
            const F(conv_product) product = {
                .in = block->in + first * block->most + r, .most = block->most, .taps = last - first,
                .w = w->w + (first * w->vectors + v) * LANES, .w_tap = w->vectors * LANES, .bias = w->bias + v * LANES,
                .out = block->out + r, .column = v * LANES, .columns = plan->p->I - v * LANES};
            F(depthwise_rows)(height, nv, &product);
        }
    }
}

/* The block's rows times panels [first_unit, last_unit). */
static void F(conv_block_products)(
    const F(conv_plan) *plan, const F(conv_weights) *w, const F(conv_block) *block, ptrdiff_t first_unit, ptrdiff_t last_unit
) {
    const ptrdiff_t K = plan->p->K, taps = larger(CONV_DEPTH / larger(w->inputs, 1), 1);
    const ptrdiff_t parts = larger((w->inputs + CONV_DEPTH - 1) / CONV_DEPTH, 1);
    for (ptrdiff_t depth = 0; depth < (K + taps - 1) / taps * parts; depth++) {
        const ptrdiff_t first_tap = depth / parts * taps, last_tap = smaller(first_tap + taps, K);
        const ptrdiff_t input = first_row(w->inputs, parts, depth % parts);
        const ptrdiff_t inputs = first_row(w->inputs, parts, depth % parts + 1) - input;
        for (ptrdiff_t unit = first_unit, units; unit < last_unit; unit += units) {
            const F(conv_panel) at = F(conv_panel_at)(w, unit);
            const ptrdiff_t column = at.vector * LANES, wide = at.number * LANES;
            units = 1;
            if (block->rows == 1 && at.number > 2 && unit + 1 < last_unit) {
                const F(conv_panel) next = F(conv_panel_at)(w, unit + 1);
                units += next.group == at.group && next.number == at.number;
            }
            const ptrdiff_t tiles = (block->rows + CONV_TILE(at.number) - 1) / CONV_TILE(at.number);
            for (ptrdiff_t t = 0; t < tiles; t++) {
                const ptrdiff_t r = first_row(block->rows, tiles, t), height = first_row(block->rows, tiles, t + 1) - r;
                int first, last;
                F(conv_taps)(block, r, height, &first, &last);
                const int nothing = first == last && !depth; /* but the bias */
                const ptrdiff_t from = larger(first_tap, first), to = smaller(last_tap, last);
                if (from >= to && !nothing) continue;
                const F(conv_product) product = {
                    .in = block->in + from * block->most + r, .most = block->most, .taps = nothing ? 0 : to - from,
                    .input = at.group * w->inputs + input, .inputs = inputs,
                    .w = w->w + (at.group * w->vectors + at.vector) * LANES * w->inputs * K + (from * w->inputs + input) * wide,
                    .w_tap = w->inputs * wide, .w_next = w->inputs * K * wide,
                    .bias = nothing || (from == first && !input) ? w->bias + (at.group * w->vectors + at.vector) * LANES : NULL,
                    .out = block->out + r, .column = at.group * w->outputs + column, .columns = w->outputs - column};
                if (units == 2) F(conv_row_tile)((int)at.number, &product);
                else F(conv_tiles)[at.number][height](&product);
            }
        }
    }
}

/* What the members of a team share: rows, or panels where there are few rows. */
typedef struct { ptrdiff_t first_row, last_row, first_unit, last_unit; } F(conv_part);

static F(conv_part) F(conv_part_of)(const F(conv_plan) *plan, const F(conv_weights) *w, const member_t *me, ptrdiff_t rows) {
    F(conv_part) part = {0, rows, 0, w->groups * w->panels};
    if (plan->by_panels) team_share(me, part.last_unit, 1, &part.first_unit, &part.last_unit);
    else team_share(me, rows, CONV_HEIGHT, &part.first_row, &part.last_row);
    return part;
}

static void F(conv_block_part)(
    const F(conv_plan) *plan, const F(conv_weights) *w, const F(conv_block) *block, const F(conv_part) *part
) {
    if (!plan->depthwise) F(conv_block_products)(plan, w, block, part->first_unit, part->last_unit);
    else if (part->first_unit < part->last_unit)
        F(depthwise_block)(plan, w, block, first_row(w->vectors, w->panels, part->first_unit),
                           first_row(w->vectors, w->panels, part->last_unit));
}

/* Zero the steps that are padding, [length, T), of n columns. */
static void F(conv_pads)(const pyrnn_conv *p, void *y, ptrdiff_t row, ptrdiff_t step, ptrdiff_t n, const member_t *me) {
    ptrdiff_t first, last;
    team_share(me, p->B, 1, &first, &last);
    for (ptrdiff_t b = first; b < last; b++)
        for (ptrdiff_t t = conv_length(p, b); t < p->T; t++)
            memset((REAL *)y + b * row + t * step, 0, (size_t)n * sizeof(REAL));
}

/* The context after the last valid step. It may take the place of that before, so the earliest is written first. */
static void F(conv_context)(const F(conv_plan) *plan, const member_t *me) {
    const pyrnn_conv *p = plan->p;
    ptrdiff_t first, last;
    team_share(me, p->B, 1, &first, &last);
    for (ptrdiff_t b = first; b < last; b++) {
        for (ptrdiff_t i = 0; i < plan->span; i++) {
            const ptrdiff_t t = conv_length(p, b) - plan->span + i;
            const REAL *from = t >= 0 ? F(at)(&p->x, b, t, 0)
                             : p->left.data ? F(at)(&p->left, b, plan->span + t, 0) : plan->zeros;
            memmove((REAL *)p->left_n + b * p->left_row + i * p->left_step, from, (size_t)p->I * sizeof(REAL));
        }
    }
}

static void F(conv_forward_work)(const member_t *me, void *context) {
    const F(conv_plan) *plan = context;
    const pyrnn_conv *p = plan->p;
    const F(conv_weights) *w = &plan->forward;
    F(conv_block) block;
    F(conv_block_of)(plan, me->id, &block);
    if (!p->packed) {
        ptrdiff_t first, last;
        team_share(me, w->groups * w->panels, 1, &first, &last);
        F(pack_conv)(w, p, plan->depthwise, 0, first, last);
        team_wait(me);
    }
    const F(conv_part) part = F(conv_part_of)(plan, w, me, plan->steps);
    conv_walk walk = conv_walk_over(p, 0, 1, part.first_row, part.last_row);
    while (walk.left) {
        F(conv_fill)(plan, &walk, 0, &block);
        F(conv_block_part)(plan, w, &block, &part);
    }
    F(conv_pads)(p, p->y, p->y_row, p->y_step, p->O, me);
    if (p->left_n) {
        team_wait(me); /* others may still read the context before */
        F(conv_context)(plan, me);
    }
}

/* One step of each sequence, whose earlier inputs stand in a ring [span + 1][B][I]. */
static void F(conv_step_work)(const member_t *me, void *context) {
    const F(conv_plan) *plan = context;
    const pyrnn_conv *p = plan->p;
    F(conv_block) block;
    F(conv_block_of)(plan, me->id, &block);
    const F(conv_part) part = F(conv_part_of)(plan, &plan->forward, me, p->B);
    for (ptrdiff_t row = part.first_row; row < part.last_row; row += block.rows) {
        block.rows = smaller(plan->most, part.last_row - row);
        ptrdiff_t slot = p->now - plan->span;
        for (ptrdiff_t tap = 0; tap < p->K; tap++, slot += p->dilation) {
            const REAL *in = (const REAL *)p->ring + ((slot < 0 ? slot + plan->span + 1 : slot) * p->B + row) * p->I;
            for (ptrdiff_t r = 0; r < block.rows; r++) block.in[tap * block.most + r] = in + r * p->I;
        }
        for (ptrdiff_t r = 0; r < block.rows; r++) {
            block.out[r] = (REAL *)p->y + (row + r) * p->y_row;
            block.first[r] = 0;
            block.last[r] = (int)p->K;
        }
        F(conv_block_part)(plan, &plan->forward, &block, &part);
    }
}

/* --- gradients of weights ------------------------------------------------------------------------------------- */

/* Lists, for each tap, of rows of x and of dy that belong together: of the next steps of a walk. */
static void F(conv_pairs)(const F(conv_plan) *plan, conv_walk *walk, F(conv_block) *block) {
    const pyrnn_conv *p = plan->p;
    memset(block->count, 0, (size_t)p->K * sizeof *block->count);
    for (ptrdiff_t left = plan->sum; left && walk->left;) {
        const conv_piece at = conv_next(walk, left);
        const ptrdiff_t length = conv_length(p, at.b);
        left -= at.n;
        for (ptrdiff_t tap = 0; tap < p->K; tap++) {
            const ptrdiff_t shift = (p->K - 1 - tap) * p->dilation, late = p->left.data ? 0 : larger(shift - at.t, 0);
            if (late >= at.n) continue;
            const ptrdiff_t to = tap * block->most + block->count[tap], n = at.n - late;
            F(conv_pointers)(plan, &p->x, &p->left, at.b, length, at.t + late - shift, n, block->in + to);
            F(conv_pointers)(plan, &p->dy, NULL, at.b, length, at.t + late, n, block->dy + to);
            block->count[tap] += n;
        }
    }
}

static void F(depthwise_gradient)(const F(conv_plan) *plan, const F(conv_block) *block, const member_t *me) {
    ptrdiff_t first, last;
    team_share(me, plan->dw_padded / LANES, MAX_VECTORS, &first, &last);
    for (ptrdiff_t tap = 0; tap < plan->p->K; tap++) {
        const REAL **x = block->in + tap * block->most, **dy = block->dy + tap * block->most;
        for (ptrdiff_t v = first, nv; v < last; v += nv) {
            const ptrdiff_t column = v * LANES, rows = block->count[tap], columns = plan->p->I - column;
            REAL *total = plan->total + tap * plan->dw_padded + column;
            nv = F(depthwise_vectors)(last - v);
            if (nv == 4) F(depthwise_outer)(4, x, dy, rows, column, columns, total);
            else if (nv == 2) F(depthwise_outer)(2, x, dy, rows, column, columns, total);
            else F(depthwise_outer)(1, x, dy, rows, column, columns, total);
        }
    }
}

/* Add a block's part, for this member's tiles. */
static void F(conv_weight_gradient)(const F(conv_plan) *plan, const F(conv_block) *block, const member_t *me) {
    const ptrdiff_t groups = plan->p->groups, K = plan->p->K, M = plan->dw_rows;
    const ptrdiff_t padded = plan->dw_padded, vectors = padded / LANES;
    const ptrdiff_t most = REGISTERS == 32 ? MAX_VECTORS : 2; /* a tile of few rows would take a line of each for little */
    const ptrdiff_t panels = (vectors + most - 1) / most, height = CONV_TILE((vectors + panels - 1) / panels);
    const ptrdiff_t tiles = (M + height - 1) / height;
    ptrdiff_t first, last;
    team_share(me, groups * panels * K * tiles, 1, &first, &last);
    for (ptrdiff_t unit = first; unit < last;) { /* unit: a tile of a tap of a panel of a group */
        const ptrdiff_t tap = unit / tiles % K, panel = unit / (tiles * K) % panels, group = unit / (tiles * K * panels);
        const ptrdiff_t v = first_row(vectors, panels, panel), nv = first_row(vectors, panels, panel + 1) - v;
        const ptrdiff_t begin = unit - unit % tiles, end = smaller(begin + tiles, last);
        if (!block->count[tap]) {
            unit = end;
            continue;
        }
        const REAL **x = block->in + tap * block->most, **dy = block->dy + tap * block->most;
        F(conv_gather)(nv, plan->across ? dy : x, block->count[tap], group * plan->dw_columns + v * LANES,
                       plan->dw_columns - v * LANES, block->panel);
        F(conv_outer) outer = {
            .a = plan->across ? x : dy, .rows = block->count[tap], .panel = block->panel, .total_row = padded};
        for (ptrdiff_t m = first_row(M, tiles, unit - begin), next; unit < end; unit++, m = next) {
            next = first_row(M, tiles, unit + 1 - begin);
            outer.a_first = group * M + m;
            outer.total = plan->total + ((group * K + tap) * M + m) * padded + v * LANES;
            F(conv_outers)[nv][next - m](&outer);
        }
    }
}

/* db += Σ dy over a block's rows, all of which the last tap has, for columns [first, last). */
static void F(conv_bias_gradient)(const F(conv_plan) *plan, const F(conv_block) *block, ptrdiff_t first, ptrdiff_t last) {
    const ptrdiff_t tap = plan->p->K - 1;
    const REAL **dy = block->dy + tap * block->most;
    ptrdiff_t column = first;
    for (; column + WIDTH <= last; column += WIDTH) {
        F(vec) sum[MAX_VECTORS] = {{0}};
        for (ptrdiff_t r = 0; r < block->count[tap]; r++)
            UNROLL for (int n = 0; n < MAX_VECTORS; n++) sum[n] += F(load)(dy[r] + column + n * LANES);
        UNROLL for (int n = 0; n < MAX_VECTORS; n++) {
            REAL *to = plan->db + column + n * LANES;
            F(store)(to, F(load)(to) + sum[n]);
        }
    }
    for (; column < last; column += LANES) {
        F(vec) sum = {0};
        for (ptrdiff_t r = 0; r < block->count[tap]; r++) sum += F(load_part)(dy[r] + column, plan->p->O - column);
        F(store)(plan->db + column, F(load)(plan->db + column) + sum);
    }
}

/* dw[o, i, tap] for outputs [first, last). */
static void F(conv_weights_out)(const F(conv_plan) *plan, ptrdiff_t first, ptrdiff_t last) {
    const pyrnn_conv *p = plan->p;
    const ptrdiff_t K = p->K, ci = p->I / p->groups, co = p->O / p->groups, padded = plan->dw_padded;
    REAL *to = (REAL *)p->dw + first * ci * K;
    for (ptrdiff_t o = first; o < last; o++) {
        const REAL *from = plan->depthwise ? plan->total + o : plan->total + o / co * K * plan->dw_rows * padded
                         + (plan->across ? o % co : o % co * padded);
        for (ptrdiff_t i = 0; i < ci; i++, from += plan->across ? padded : 1)
            for (ptrdiff_t tap = 0; tap < K; tap++) *to++ = from[tap * plan->dw_rows * padded];
    }
}

/* dx and dleft += the gradient of the context after the last step, which is a copy of their ends. */
static void F(conv_context_gradient)(const F(conv_plan) *plan, const member_t *me) {
    const pyrnn_conv *p = plan->p;
    ptrdiff_t first, last;
    team_share(me, p->B, 1, &first, &last);
    for (ptrdiff_t b = first; b < last; b++) {
        for (ptrdiff_t i = 0; i < plan->span; i++) {
            const ptrdiff_t t = conv_length(p, b) - plan->span + i;
            REAL *to = t < 0 ? p->dleft : p->dx;
            if (!to) continue;
            to += (t < 0 ? b * plan->span + plan->span + t : b * p->T + t) * p->I;
            const REAL *from = F(at)(&p->dleft_n, b, i, 0);
            for (ptrdiff_t c = 0; c < p->I; c++) to[c] += from[c];
        }
    }
}

static void F(conv_backward_work)(const member_t *me, void *context) {
    const F(conv_plan) *plan = context;
    const pyrnn_conv *p = plan->p;
    const F(conv_weights) *w = &plan->back;
    const ptrdiff_t sums = (plan->depthwise ? 1 : p->groups) * p->K * plan->dw_rows;
    F(conv_block) block;
    ptrdiff_t first, last, column, column_end;
    F(conv_block_of)(plan, me->id, &block);
    team_share(me, sums, 1, &first, &last);
    team_share(me, p->O, WIDTH, &column, &column_end);
    if (p->dw) memset(plan->total + first * plan->dw_padded, 0, (size_t)((last - first) * plan->dw_padded) * sizeof(REAL));
    if (p->db) memset(plan->db + column, 0, (size_t)(round_up(column_end, LANES) - column) * sizeof(REAL));
    if (plan->grads) {
        team_share(me, w->groups * w->panels, 1, &first, &last);
        F(pack_conv)(w, p, plan->depthwise, 1, first, last);
    }
    team_wait(me);
    if (plan->grads) {
        const F(conv_part) part = F(conv_part_of)(plan, w, me, plan->grads);
        conv_walk walk = conv_walk_over(p, p->dleft ? plan->span : 0, p->dx != NULL, part.first_row, part.last_row);
        while (walk.left) {
            F(conv_fill)(plan, &walk, 1, &block);
            F(conv_block_part)(plan, w, &block, &part);
        }
    }
    if (p->dx) F(conv_pads)(p, p->dx, p->T * p->I, p->I, p->I, me);
    if (p->dy.data && p->O && (p->dw || p->db)) {
        conv_walk walk = conv_walk_over(p, 0, 1, 0, plan->steps);
        while (walk.left) {
            F(conv_pairs)(plan, &walk, &block);
            if (p->dw && plan->depthwise) F(depthwise_gradient)(plan, &block, me);
            else if (p->dw && p->I) F(conv_weight_gradient)(plan, &block, me);
            if (p->db) F(conv_bias_gradient)(plan, &block, column, column_end);
        }
    }
    team_wait(me);
    if (p->db) memcpy((REAL *)p->db + column, plan->db + column, (size_t)(column_end - column) * sizeof(REAL));
    if (p->dw) {
        team_share(me, p->O, 1, &first, &last);
        F(conv_weights_out)(plan, first, last);
    }
    if (p->dleft_n.data) F(conv_context_gradient)(plan, me);
}

static void F(conv_forward)(const pyrnn_conv *p) {
    F(conv_plan) plan;
    arena_t arena = {p->workspace, 0};
    F(plan_conv)(&plan, p, &arena, 0);
    team_run(plan.threads, plan.brief, F(conv_forward_work), &plan);
}

/* The plan of all steps stands first in their workspace: it takes about as long to make as a small step. */
static size_t F(conv_plan_step)(const pyrnn_conv *p, void *workspace) {
    F(conv_plan) counted;
    arena_t arena = {workspace, workspace ? 0 : 64};
    F(conv_plan) *plan = take(&arena, sizeof *plan);
    F(plan_conv)(workspace ? plan : &counted, p, &arena, 0);
    return arena.used;
}

static void F(conv_step)(pyrnn_conv *p) {
    arena_t arena = {p->workspace, 0};
    F(conv_plan) *plan = take(&arena, sizeof *plan);
    for (ptrdiff_t b = 0; b < p->B; b++)
        memcpy((REAL *)p->ring + (p->now * p->B + b) * p->I, F(at)(&p->x, b, 0, 0), (size_t)p->I * sizeof(REAL));
    team_run(plan->threads, plan->brief, F(conv_step_work), plan);
    p->now = p->now == plan->span ? 0 : p->now + 1;
}

static void F(conv_backward)(const pyrnn_conv *p) {
    F(conv_plan) plan;
    arena_t arena = {p->workspace, 0};
    F(plan_conv)(&plan, p, &arena, 1);
    team_run(plan.threads, plan.brief, F(conv_backward_work), &plan);
}

static size_t F(conv_pack)(const pyrnn_conv *p, void *packed) {
    F(conv_weights) w;
    arena_t arena = {packed, 0};
    F(take_conv)(&w, p, F(conv_is_depthwise)(p), 0, &arena);
    if (packed) {
        const uint64_t floats = denormals_off(); /* as in a team */
        F(pack_conv)(&w, p, F(conv_is_depthwise)(p), 0, 0, w.groups * w.panels);
        denormals_restore(floats);
    }
    return arena.used + 64;
}

static size_t F(conv_workspace)(const pyrnn_conv *p, int backward) {
    F(conv_plan) plan;
    arena_t arena = {NULL, 64};
    F(plan_conv)(&plan, p, &arena, backward);
    return arena.used;
}
