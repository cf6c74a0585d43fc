/* The one building block: a tile of rows times a packed panel of columns.

   (a) A panel is K rows of NV vectors. Weights are packed into panels, with the gates of the same units side by side, so
       that one tile holds all that the cell needs of its units. Panels lie one after the other; only the last of a
       matrix may be narrower.
   (b) A tile keeps MR x NV accumulators in registers while K runs: MR <= ROWS(NV), 24 accumulators with 32 registers,
       12 with 16. Rows are dealt out to tiles evenly: a tile of one or two rows would leave the FMA units waiting.
   (c) Each output is one chain of multiply-adds in ascending k, whatever tile, thread or batch it falls into; that is
       what makes results the same to the bit for any of these. A chain may be cut (stored and taken up again) anywhere.
   (d) The tiles of a panel share the work of prefetching the panel after it to L2, a line a step of k: weights that
       exceed L2 then arrive while there is arithmetic to do.
   (e) Where there are few rows, a tile spans several panels, for the same reason as in (b).
   (f) K runs in blocks of K_BLOCK, so that a panel's block stays in L2 while many rows stream past it.
   (g) Sums over rows (weight gradients) are chains over one block of rows, added up block after block. */

#ifndef PYRNN_PANEL_H
#define PYRNN_PANEL_H
#define ROWS(NV) smaller(REGISTERS == 32 ? 24 / (NV) : 12 / (NV), MAX_ROWS)
#define MAX_ROWS 12
#define MAX_VECTORS 4
#define PANELS(NV) (8 / (NV)) /* for a single row: eight sums hide the latency of a multiply-add */
#define K_BLOCK 512
#define BLOCK_ROWS 256 /* of a sum over rows, at least */
#define BLOCK_BYTES (800 << 10)

static inline ptrdiff_t round_up(ptrdiff_t n, ptrdiff_t to) { return (n + to - 1) / to * to; }
static inline ptrdiff_t smaller(ptrdiff_t a, ptrdiff_t b) { return a < b ? a : b; }
static inline ptrdiff_t larger(ptrdiff_t a, ptrdiff_t b) { return a > b ? a : b; }

/* Tile `tile` of the `tiles` that share `rows` rows begins at the row returned. */
static inline ptrdiff_t first_row(ptrdiff_t rows, ptrdiff_t tiles, ptrdiff_t tile) { return rows * tile / tiles; }

/* Hands out pieces of the workspace, each on a cache line; with base NULL it only counts. */
typedef struct {
    char *base;
    size_t used;
} arena_t;

static void *take(arena_t *arena, size_t bytes) {
    if (arena->base && !arena->used) arena->used = -(uintptr_t)arena->base & 63;
    void *piece = arena->base ? arena->base + arena->used : NULL;
    arena->used += (bytes + 63) & ~(size_t)63;
    return piece;
}
#endif

#undef WIDTH
#define WIDTH (MAX_VECTORS * LANES) /* columns of the panels that hold no gates */

typedef struct {
    const REAL *a; /* a[m, k] lies at m·a_row + k·a_k */
    ptrdiff_t a_row, a_k;
    const REAL *b; /* the panel, or some vectors of it: those for k at k·b_k */
    ptrdiff_t b_k, K;
    const REAL *c; /* what the chains begin with: row m at m·c_row */
    ptrdiff_t c_row;
    REAL *out;
    ptrdiff_t out_row;
    ptrdiff_t b_next, c_next, out_next; /* from one panel to the next, where there are several */
} F(product);

/* Rows [0, mr) times `panels` panels of nv vectors; prefetches K lines from `ahead` on. */
ALWAYS_INLINE void F(tile)(const int mr, const int nv, const int panels, const F(product) *p, const REAL *ahead) {
    F(vec) sum[MAX_ROWS][2 * MAX_VECTORS];
    UNROLL for (int m = 0; m < mr; m++)
        UNROLL for (int n = 0; n < nv * panels; n++)
            sum[m][n] = F(load)(p->c + m * p->c_row + n / nv * p->c_next + n % nv * LANES);
    const REAL *a = p->a, *b = p->b;
    const ptrdiff_t a_row = p->a_row, a_k = p->a_k, b_k = p->b_k, b_next = p->b_next;
    for (ptrdiff_t k = p->K; k > 0; k--) {
        if (mr > 3) __builtin_prefetch(ahead, 0, 2); /* fewer rows read as fast as L2 gives: they have no time for more */
        if (REGISTERS < 32 && mr < nv) { /* fewer registers are taken when the rows stay in them */
            F(vec) row[MAX_ROWS];
            UNROLL for (int m = 0; m < mr; m++) row[m] = F(all)(a[m * a_row]);
            UNROLL for (int n = 0; n < nv * panels; n++) {
                F(vec) column = F(load)(b + n / nv * b_next + n % nv * LANES);
                if (mr > 1) HOLD(column);
                UNROLL for (int m = 0; m < mr; m++) sum[m][n] = F(fma)(row[m], column, sum[m][n]);
            }
        } else {
            F(vec) column[2 * MAX_VECTORS];
            UNROLL for (int n = 0; n < nv * panels; n++) {
                column[n] = F(load)(b + n / nv * b_next + n % nv * LANES);
                if (mr > 1 && mr < 4) HOLD(column[n]);
            }
            UNROLL for (int m = 0; m < mr; m++) {
                const F(vec) row = F(all)(a[m * a_row]);
                UNROLL for (int n = 0; n < nv * panels; n++) sum[m][n] = F(fma)(row, column[n], sum[m][n]);
            }
        }
        a += a_k;
        b += b_k;
        ahead += LANES;
    }
    UNROLL for (int m = 0; m < mr; m++)
        UNROLL for (int n = 0; n < nv * panels; n++)
            F(store)(p->out + m * p->out_row + n / nv * p->out_next + n % nv * LANES, sum[m][n]);
}

typedef void F(tile_t)(const F(product) *p, const REAL *ahead);
#define TILE(MR, NV) \
    static void F(tile_##MR##x##NV)(const F(product) *p, const REAL *ahead) { F(tile)(MR, NV, 1, p, ahead); }
#define ROW_TILE(NV) \
    static void F(row_tile_##NV)(const F(product) *p, const REAL *ahead) { F(tile)(1, NV, PANELS(NV), p, ahead); }
TILE(1, 1) TILE(2, 1) TILE(3, 1) TILE(4, 1) TILE(5, 1) TILE(6, 1)
TILE(7, 1) TILE(8, 1) TILE(9, 1) TILE(10, 1) TILE(11, 1) TILE(12, 1)
TILE(1, 2) TILE(2, 2) TILE(3, 2) TILE(4, 2) TILE(5, 2) TILE(6, 2)
TILE(1, 3) TILE(2, 3) TILE(3, 3) TILE(4, 3)
TILE(1, 4) TILE(2, 4) TILE(3, 4)
#if REGISTERS == 32
TILE(7, 2) TILE(8, 2) TILE(9, 2) TILE(10, 2) TILE(11, 2) TILE(12, 2)
TILE(5, 3) TILE(6, 3) TILE(7, 3) TILE(8, 3)
TILE(4, 4) TILE(5, 4) TILE(6, 4)
#endif
ROW_TILE(1) ROW_TILE(2) ROW_TILE(3) ROW_TILE(4)
#undef TILE
#undef ROW_TILE

static F(tile_t) *const F(tiles)[MAX_VECTORS + 1][MAX_ROWS + 1] = {
#if REGISTERS == 32
#define AND_MORE(...) , __VA_ARGS__
#else
#define AND_MORE(...)
#endif
    [1] = {NULL, F(tile_1x1), F(tile_2x1), F(tile_3x1), F(tile_4x1), F(tile_5x1), F(tile_6x1),
           F(tile_7x1), F(tile_8x1), F(tile_9x1), F(tile_10x1), F(tile_11x1), F(tile_12x1)},
    [2] = {NULL, F(tile_1x2), F(tile_2x2), F(tile_3x2), F(tile_4x2), F(tile_5x2), F(tile_6x2)
           AND_MORE(F(tile_7x2), F(tile_8x2), F(tile_9x2), F(tile_10x2), F(tile_11x2), F(tile_12x2))},
    [3] = {NULL, F(tile_1x3), F(tile_2x3), F(tile_3x3), F(tile_4x3)
           AND_MORE(F(tile_5x3), F(tile_6x3), F(tile_7x3), F(tile_8x3))},
    [4] = {NULL, F(tile_1x4), F(tile_2x4), F(tile_3x4) AND_MORE(F(tile_4x4), F(tile_5x4), F(tile_6x4))},
#undef AND_MORE
};
static F(tile_t) *const F(row_tiles)[MAX_VECTORS + 1] = {
    NULL, F(row_tile_1), F(row_tile_2), F(row_tile_3), F(row_tile_4)};

/* out[m, :] = c[m, :] + a[m, :] · panel for any number of rows. */
static void F(panel_rows)(int nv, ptrdiff_t rows, F(product) p) {
    const ptrdiff_t tiles = (rows + ROWS(nv) - 1) / ROWS(nv);
    for (ptrdiff_t left = p.K; left >= 0; left -= K_BLOCK) {
        p.K = smaller(left, K_BLOCK);
        for (ptrdiff_t t = 0; t < tiles; t++) {
            const ptrdiff_t r = first_row(rows, tiles, t), height = first_row(rows, tiles, t + 1) - r;
            F(product) q = p;
            q.a += r * q.a_row;
            q.c += r * q.c_row;
            q.out += r * q.out_row;
            F(tiles)[nv][height](&q, q.b + q.K * (q.b_k + t % nv * LANES));
        }
        if (left <= K_BLOCK) return;
        p.a += p.K * p.a_k;
        p.b += p.K * p.b_k;
        p.c = p.out;
        p.c_row = p.out_row;
    }
}

/* The same for a matrix of `vectors` vectors of columns, in panels of nv of them. */
static void F(multiply)(int nv, ptrdiff_t vectors, ptrdiff_t rows, F(product) p) {
    while (rows && vectors > 0) {
        ptrdiff_t panels = 1;
        if (rows == 1 && vectors >= PANELS(nv) * nv) {
            panels = PANELS(nv);
            F(row_tiles)[nv](&p, p.b);
        } else {
            F(panel_rows)((int)smaller(nv, vectors), rows, p);
        }
        vectors -= panels * nv;
        p.b += panels * p.b_next;
        p.c += panels * p.c_next;
        p.out += panels * p.out_next;
    }
}

/* --- packing ------------------------------------------------------------------------------------------------- */

static inline const REAL *F(at)(const pyrnn_in *in, ptrdiff_t i, ptrdiff_t j, ptrdiff_t k) {
    return (const REAL *)in->data + i * in->stride[0] + j * in->stride[1] + k * in->stride[2];
}

/* One panel of a weight w [gates·H, K], transposed: for each k the gates listed, `width` units of each from `unit`
   on; zeros past H. */
static void F(pack_units)(
    REAL *panel, const pyrnn_in *w, const int *gates, int n_gates, ptrdiff_t unit, ptrdiff_t width, ptrdiff_t H, ptrdiff_t K
) {
    const ptrdiff_t wide = n_gates * width;
    for (ptrdiff_t column = 0; column < wide; column += LANES) {
        const ptrdiff_t first = unit + column % width, units = smaller(LANES, H - first);
        const REAL *in = F(at)(w, gates[column / width] * H + first, 0, 0);
        ptrdiff_t k = 0;
        if (units == LANES && w->stride[1] == 1)
            for (; k + LANES <= K; k += LANES) F(transpose)(in + k, w->stride[0], panel + k * wide + column, wide);
        for (; k < K; k++)
            for (ptrdiff_t j = 0; j < LANES; j++)
                panel[k * wide + column + j] = j < units ? in[j * w->stride[0] + k * w->stride[1]] : 0;
    }
}

/* The same columns of a bias [gates·H], which may not be given. */
static void F(pack_bias)(
    REAL *panel, const pyrnn_in *b, const int *gates, int n_gates, ptrdiff_t unit, ptrdiff_t width, ptrdiff_t H
) {
    for (int g = 0; g < n_gates; g++)
        for (ptrdiff_t j = 0; j < width; j++)
            panel[g * width + j] = b->data && unit + j < H ? *F(at)(b, gates[g] * H + unit + j, 0, 0) : 0;
}

/* Columns [column, column + width) of a matrix [K, N] as a panel; zeros past N. */
static void F(pack_columns)(REAL *panel, const pyrnn_in *w, ptrdiff_t column, ptrdiff_t width, ptrdiff_t N, ptrdiff_t K) {
    const ptrdiff_t wide = smaller(width, N - column);
    for (ptrdiff_t k = 0; k < K; k++, panel += width) {
        const REAL *in = F(at)(w, k, column, 0);
        if (w->stride[1] == 1)
            for (ptrdiff_t j = 0; j < width; j += LANES) F(store)(panel + j, F(load_part)(in + j, wide - j));
        else
            for (ptrdiff_t j = 0; j < width; j++) panel[j] = j < wide ? in[j * w->stride[1]] : 0;
    }
}

/* --- weight gradients ------------------------------------------------------------------------------------------ */

#define OUTER_COLUMNS 512 /* so many columns of a block stay in L2 while rows of the gradient pass */
#define OUTER_TILES 16    /* copied in one go: rows of d may lie pages apart */
#undef SCRATCH_ROW
#define SCRATCH_ROW (OUTER_TILES * ROWS(MAX_VECTORS)) /* elements of scratch for a row of d */

/* What a gradient is multiplied with: `columns` columns, a multiple of LANES, in panels of WIDTH; and the sums. */
typedef struct {
    const REAL *panels;
    ptrdiff_t columns;
    REAL *total;
    ptrdiff_t total_row;
} F(outer);

/* Where the sums of a gradient (rows, columns) are taken: in its own array, if its rows are whole vectors. */
static REAL *F(sums)(void *gradient, ptrdiff_t rows, ptrdiff_t columns, ptrdiff_t padded, arena_t *arena) {
    return columns == padded ? gradient : take(arena, (size_t)(rows * padded) * sizeof(REAL));
}

/* Copy d[rows, M] to scratch[tile][row][step]. A vector stored may reach into the rows after it, which are written later,
   and not beyond. */
static void F(copy_tiles)(const REAL *d, ptrdiff_t d_row, ptrdiff_t M, ptrdiff_t rows, ptrdiff_t step, REAL *scratch) {
    for (ptrdiff_t r = 0; r < rows; r++, d += d_row, scratch += step) {
        ptrdiff_t m = 0;
        if (step <= LANES && (rows - r) * step >= LANES)
            for (; m + LANES <= M; m += step) F(store)(scratch + m * rows, F(load)(d + m));
        for (; m < M; m += step)
            for (ptrdiff_t lane = 0; lane < step; lane += LANES)
                F(store_part)(scratch + m * rows + lane, F(load_part)(d + m + lane, M - m - lane), (rows - r) * step - lane);
    }
}

/* total[m, :] += Σ_r d[r, m] · panels[r, :] for m in [0, M) and each of `outers`: one block of rows r. */
static void F(add_outer)(
    const REAL *d, ptrdiff_t d_row, ptrdiff_t M, ptrdiff_t rows, int n_outers, const F(outer) *outers, REAL *scratch
) {
    static const REAL zeros[WIDTH];
    REAL block[MAX_ROWS * WIDTH];
    const ptrdiff_t step = ROWS(MAX_VECTORS);
    for (ptrdiff_t m0 = 0; n_outers && m0 < M; m0 += SCRATCH_ROW) {
        const ptrdiff_t here = smaller(SCRATCH_ROW, M - m0);
        F(copy_tiles)(d + m0, d_row, here, rows, step, scratch);
        for (const F(outer) *o = outers; o < outers + n_outers; o++) {
            for (ptrdiff_t j0 = 0; j0 < o->columns; j0 += OUTER_COLUMNS) {
                for (ptrdiff_t m = 0; m < here; m += step) {
                    const ptrdiff_t height = smaller(step, here - m);
                    for (ptrdiff_t j = j0; j < smaller(j0 + OUTER_COLUMNS, o->columns); j += WIDTH) {
                        const ptrdiff_t wide = smaller(WIDTH, o->columns - j);
                        const F(product) p = {
                            .a = scratch + m * rows, .a_row = 1, .a_k = step, .b = o->panels + j * rows, .b_k = wide, .K = rows,
                            .c = zeros, .out = block, .out_row = wide};
                        F(tiles)[wide / LANES][height](&p, p.b + rows * wide);
                        for (ptrdiff_t i = 0; i < height; i++) {
                            REAL *to = o->total + (m0 + m + i) * o->total_row + j;
                            for (ptrdiff_t n = 0; n < wide; n += LANES)
                                F(store)(to + n, F(load)(to + n) + F(load)(block + i * wide + n));
                        }
                    }
                }
            }
        }
    }
}

/* total[m] += Σ_r d[r, m] for m in [first, last): one block of rows. */
static void F(add_columns)(const REAL *d, ptrdiff_t d_row, ptrdiff_t rows, ptrdiff_t first, ptrdiff_t last, REAL *total) {
    for (ptrdiff_t m = first; m < last; m += LANES) {
        F(vec) sum = {0};
        for (ptrdiff_t r = 0; r < rows; r++) sum += F(load_part)(d + r * d_row + m, last - m);
        F(store_part)(total + m, F(load_part)(total + m, last - m) + sum, last - m);
    }
}
