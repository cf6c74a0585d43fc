/* The one building block: a tile of rows times a packed panel of columns.

   (a) A panel is K rows of NV vectors. Weights are packed into panels once a call, with the gates of the same units side
       by side, so that one tile holds all that the cell needs of its units.
   (b) A tile keeps MR x NV accumulators in registers while K runs: MR = ROWS(NV), 24 accumulators with 32 registers,
       12 with 16.
   (c) Each output is one chain of multiply-adds in ascending k, whatever tile, thread or batch it falls into; that is
       what makes results the same to the bit for any of these. A chain may be cut (stored and taken up again) anywhere.
   (d) Wide products over many rows run in blocks of K_BLOCK, so that the panel's block stays in L1 while rows stream.
   (e) Sums over rows (weight gradients) are chains over one block of rows, added up block after block. */

#ifndef PYRNN_PANEL_H
#define PYRNN_PANEL_H
#define ROWS(NV) (REGISTERS == 32 ? 24 / (NV) : 12 / (NV))
#define MAX_ROWS 12
#define MAX_VECTORS 4
#define K_BLOCK 128
#define UNROLL _Pragma("GCC unroll 16")
#define ALWAYS_INLINE static inline __attribute__((always_inline))

static inline ptrdiff_t round_up(ptrdiff_t n, ptrdiff_t to) { return (n + to - 1) / to * to; }
static inline ptrdiff_t smaller(ptrdiff_t a, ptrdiff_t b) { return a < b ? a : b; }
static inline ptrdiff_t larger(ptrdiff_t a, ptrdiff_t b) { return a > b ? a : b; }

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
#define WIDTH (2 * LANES) /* columns of the panels that hold no gates */

typedef struct {
    const REAL *a; /* a[m, k] lies at m·a_row + k·a_k */
    ptrdiff_t a_row, a_k;
    const REAL *b; /* the panel: NV vectors for each k */
    ptrdiff_t K;
    const REAL *c; /* what the chains begin with: row m at m·c_row */
    ptrdiff_t c_row;
    REAL *out;
    ptrdiff_t out_row;
} F(product);

ALWAYS_INLINE void F(tile)(const int mr, const int nv, const F(product) *p) {
    F(vec) sum[MAX_ROWS][MAX_VECTORS];
    UNROLL for (int m = 0; m < mr; m++) {
        UNROLL for (int n = 0; n < nv; n++) sum[m][n] = F(load)(p->c + m * p->c_row + n * LANES);
    }
    const REAL *a = p->a, *b = p->b;
    const ptrdiff_t a_row = p->a_row, a_k = p->a_k;
    for (ptrdiff_t k = p->K; k > 0; k--) {
        F(vec) column[MAX_VECTORS];
        UNROLL for (int n = 0; n < nv; n++) column[n] = F(load)(b + n * LANES);
        UNROLL for (int m = 0; m < mr; m++) {
            const F(vec) row = F(all)(a[m * a_row]);
            UNROLL for (int n = 0; n < nv; n++) sum[m][n] = F(fma)(row, column[n], sum[m][n]);
        }
        a += a_k;
        b += nv * LANES;
    }
    UNROLL for (int m = 0; m < mr; m++) {
        UNROLL for (int n = 0; n < nv; n++) F(store)(p->out + m * p->out_row + n * LANES, sum[m][n]);
    }
}

#define TILE(MR, NV) \
    static void F(tile_##MR##x##NV)(const F(product) *p) { F(tile)(MR, NV, p); }
TILE(1, 2) TILE(2, 2) TILE(3, 2) TILE(4, 2) TILE(5, 2) TILE(6, 2)
TILE(1, 3) TILE(2, 3) TILE(3, 3) TILE(4, 3)
TILE(1, 4) TILE(2, 4) TILE(3, 4)
#if REGISTERS == 32
TILE(7, 2) TILE(8, 2) TILE(9, 2) TILE(10, 2) TILE(11, 2) TILE(12, 2)
TILE(5, 3) TILE(6, 3) TILE(7, 3) TILE(8, 3)
TILE(4, 4) TILE(5, 4) TILE(6, 4)
#endif
#undef TILE

static void (*const F(tiles)[MAX_VECTORS + 1][MAX_ROWS + 1])(const F(product) *) = {
#if REGISTERS == 32
#define AND_MORE(...) , __VA_ARGS__
#else
#define AND_MORE(...)
#endif
    [2] = {NULL, F(tile_1x2), F(tile_2x2), F(tile_3x2), F(tile_4x2), F(tile_5x2), F(tile_6x2)
           AND_MORE(F(tile_7x2), F(tile_8x2), F(tile_9x2), F(tile_10x2), F(tile_11x2), F(tile_12x2))},
    [3] = {NULL, F(tile_1x3), F(tile_2x3), F(tile_3x3), F(tile_4x3)
           AND_MORE(F(tile_5x3), F(tile_6x3), F(tile_7x3), F(tile_8x3))},
    [4] = {NULL, F(tile_1x4), F(tile_2x4), F(tile_3x4) AND_MORE(F(tile_4x4), F(tile_5x4), F(tile_6x4))},
#undef AND_MORE
};

/* out[m, :] = c[m, :] + a[m, :] · panel for any number of rows. */
static void F(panel_rows)(int nv, ptrdiff_t rows, F(product) p) {
    const ptrdiff_t step = ROWS(nv);
    const ptrdiff_t k_block = rows > 2 * step ? K_BLOCK : p.K;
    ptrdiff_t left = p.K;
    do {
        p.K = smaller(left, k_block);
        F(product) q = p;
        for (ptrdiff_t r = 0; r < rows; r += step) {
            F(tiles)[nv][smaller(step, rows - r)](&q);
            q.a += step * q.a_row;
            q.c += step * q.c_row;
            q.out += step * q.out_row;
        }
        p.a += p.K * p.a_k;
        p.b += p.K * nv * LANES;
        p.c = p.out;
        p.c_row = p.out_row;
        left -= p.K;
    } while (left > 0);
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
    for (int g = 0; g < n_gates; g++) {
        for (ptrdiff_t j = 0; j < width; j++) {
            REAL *out = panel + g * width + j;
            if (unit + j >= H) {
                for (ptrdiff_t k = 0; k < K; k++) out[k * wide] = 0;
                continue;
            }
            const REAL *in = F(at)(w, gates[g] * H + unit + j, 0, 0);
            for (ptrdiff_t k = 0; k < K; k++) out[k * wide] = in[k * w->stride[1]];
        }
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

/* Columns [column, column + WIDTH) of a matrix [K, N] as a panel; zeros past N. */
static void F(pack_columns)(REAL *panel, const pyrnn_in *w, ptrdiff_t column, ptrdiff_t N, ptrdiff_t K) {
    const ptrdiff_t wide = smaller(WIDTH, N - column);
    for (ptrdiff_t k = 0; k < K; k++, panel += WIDTH) {
        const REAL *in = F(at)(w, k, column, 0);
        for (ptrdiff_t j = 0; j < WIDTH; j++) panel[j] = j < wide ? in[j * w->stride[1]] : 0;
    }
}

/* --- weight gradients ------------------------------------------------------------------------------------------ */

/* total[m, :] += Σ_r d[r, m] · panel[r, :] for m in [0, M): one block of rows r. */
static void F(add_outer)(
    const REAL *d, ptrdiff_t d_row, ptrdiff_t M, const REAL *panel, ptrdiff_t rows, REAL *total, ptrdiff_t total_row
) {
    static const REAL zeros[WIDTH];
    REAL block[MAX_ROWS * WIDTH];
    for (ptrdiff_t m = 0; m < M; m += ROWS(2)) {
        const ptrdiff_t count = smaller(ROWS(2), M - m);
        const F(product) p = {d + m, 1, d_row, panel, rows, zeros, 0, block, WIDTH};
        F(tiles)[2][count](&p);
        for (ptrdiff_t i = 0; i < count; i++)
            for (ptrdiff_t j = 0; j < WIDTH; j++) total[(m + i) * total_row + j] += block[i * WIDTH + j];
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
