/* Attention: y = softmax(scale·q kᵀ + bias) v over the keys that a query sees, in memory of the size of its arrays.

   (a) A task is some rows of queries that share a head of keys: all heads of a group, one after the other. Keys come in
       splits of KEY_SPLIT, counted from key 0. Within a split a row's scores are chains over the features, then its maximum,
       the exponentials, their sum, and their products with the values, chains over the keys. The splits of a row are
       merged in ascending order. So a row's bits depend on no thread, no tile and no other row, and a whole split that it
       does not see can be left out.
   (b) Scores are tiles of `panel.h`: the queries' rows times panels of keys, transposed. The weights' product with the
       values is one too. A group of ROWS_AT_ONCE rows passes each panel while it is in L1.
   (c) Exponentials are powers of 2: a score q·k counts as log2(e)·scale·q·k, from which the maximum is taken in one multiply-add.
   (d) What is seen of a row is a range of keys, from the window and the lengths, less what the mask forbids. A bias of -inf
       forbids as well. Splits and panels that none of the rows sees are skipped.
   (e) A key that is not seen has weight 0, but 0 · NaN is NaN: results that are not finite are computed anew, key by key.
   (f) The backward keeps a row's maximum and the inverse of its sum, and computes the weights again. */
#ifndef PYRNN_ATTENTION_H
#define PYRNN_ATTENTION_H
#define KEY_SPLIT PYRNN_KEY_SPLIT
#define ROWS_AT_ONCE 24 /* of queries */
#define FEW_ROWS 4      /* for which packing the keys does not pay */
#define AHEAD 16        /* keys, of a few rows, to be fetched from memory */
#define BUSY_FLOPS 4e5  /* worth a second thread */

/* The keys from first to last that a query sees, as far as its position and the lengths say. */
typedef struct {
    ptrdiff_t first, last;
} range_t;

/* --- dropout: Philox4x32-10, as in reference/attention.py -------------------------------------------------------- */

/* Four words for each of `count` counters (block + i, at, head, row). */
static void philox(uint32_t block, uint32_t at, uint32_t head, uint32_t row, uint64_t seed, int count, uint32_t (*words)[4]) {
    for (int i = 0; i < count; i++) {
        uint32_t a = block + (uint32_t)i, b = at, c = head, d = row, low = (uint32_t)seed, high = (uint32_t)(seed >> 32);
        for (int round = 0; round < 10; round++) {
            const uint64_t first = (uint64_t)0xD2511F53u * a, second = (uint64_t)0xCD9E8D57u * c;
            a = (uint32_t)(second >> 32) ^ b ^ low;
            b = (uint32_t)second;
            c = (uint32_t)(first >> 32) ^ d ^ high;
            d = (uint32_t)first;
            low += 0x9E3779B9u;
            high += 0xBB67AE85u;
        }
        words[i][0] = a, words[i][1] = b, words[i][2] = c, words[i][3] = d;
    }
}
#endif

#undef UNSEEN
#define UNSEEN ((REAL)-1e30) /* the exponent of a key that is not seen: it gives 0. A row's maximum where none is. */

/* Element [i, j, k, 0] of an array of four dimensions. */
static inline const REAL *F(at4)(const pyrnn_in4 *in, ptrdiff_t i, ptrdiff_t j, ptrdiff_t k) {
    return (const REAL *)in->data + i * in->stride[0] + j * in->stride[1] + k * in->stride[2];
}

/* Row `row` of a head of keys: that of a head of queries, and of a position in the sequence. */
typedef struct {
    ptrdiff_t head, i, at;
} F(place);

static inline F(place) F(place_of)(const pyrnn_attention *p, ptrdiff_t b, ptrdiff_t shared, ptrdiff_t row) {
    const ptrdiff_t head = shared * (p->Hq / p->Hkv) + row / larger(p->N, 1), i = row % larger(p->N, 1);
    return (F(place)){head, i, p->q_start[b] + i};
}

/* That of the row after it. */
static inline F(place) F(place_after)(const pyrnn_attention *p, F(place) row) {
    const int turns = row.i + 1 == p->N;
    return (F(place)){row.head + turns, turns ? 0 : row.i + 1, turns ? row.at + 1 - p->N : row.at + 1};
}

static inline range_t F(range_of)(const pyrnn_attention *p, ptrdiff_t b, F(place) row) {
    range_t r = {larger(0, row.at - p->left), smaller(p->lengths ? p->lengths[b] : p->M, row.at + p->right + 1)};
    if (p->q_lengths && row.i >= p->q_lengths[b]) r.last = 0;
    return r.first < r.last ? r : (range_t){0, 0};
}

static inline int F(allowed)(const pyrnn_attention *p, ptrdiff_t b, F(place) row, ptrdiff_t key) {
    const pyrnn_in4 *m = &p->mask;
    if (m->data && !((const uint8_t *)m->data)[b * m->stride[0] + row.head * m->stride[1] + row.i * m->stride[2] + key * m->stride[3]])
        return 0;
    return !p->bias.data || F(at4)(&p->bias, b, row.head, row.i)[key * p->bias.stride[3]] != LOWEST;
}

/* Keys [0, keys) as panels of WIDTH, one after the other; the last may be narrower. */
static void F(pack_keys)(REAL *panels, const REAL *in, ptrdiff_t in_row, ptrdiff_t in_step, ptrdiff_t keys, ptrdiff_t features) {
    const pyrnn_in matrix = {in, {in_row, in_step, 0}};
    for (ptrdiff_t j = 0; j < keys; j += WIDTH)
        F(pack_units)(panels + j * features, &matrix, GATE_NUMBERS, 1, j, smaller(WIDTH, round_up(keys - j, LANES)), keys, features);
}

/* Rows of a matrix, each padded with zeros to whole vectors. */
static void F(pack_rows)(REAL *out, const REAL *in, ptrdiff_t in_row, ptrdiff_t in_step, ptrdiff_t rows, ptrdiff_t columns) {
    const pyrnn_in matrix = {in, {in_row, in_step, 0}};
    F(pack_columns)(out, &matrix, 0, round_up(columns, LANES), columns, rows);
}

/* A panel past which rows go in tiles of about the same height. All is in cache, so nothing is fetched ahead: what lies behind
   a panel is another thread's. */
static inline void F(rows_by_panel)(int nv, ptrdiff_t rows, F(product) p) {
    const ptrdiff_t tiles = (rows + ROWS(nv) - 1) / ROWS(nv);
    for (ptrdiff_t left = tiles, height; left > 0; left--, rows -= height) {
        height = (rows + left - 1) / left;
        F(tiles)[nv][height](&p, p.b);
        p.a += height * p.a_row;
        p.c += height * p.c_row;
        p.out += height * p.out_row;
    }
}

/* rows x columns (whole vectors): c + a · b, or a · b without c; rows of b lie b_k apart. */
static inline void F(rows_by_columns)(F(product) p, ptrdiff_t rows, ptrdiff_t columns) {
    static const REAL zeros[WIDTH];
    const int fresh = !p.c;
    for (ptrdiff_t j = 0; j < columns; j += WIDTH) {
        F(product) q = p;
        q.b += j;
        q.out += j;
        q.c = fresh ? zeros : p.c + j;
        F(rows_by_panel)((int)(smaller(WIDTH, columns - j) / LANES), rows, q);
    }
}

/* scores[rows][keys] = rows · keysᵀ, the keys in panels as of pack_keys, from key `first` (the start of a panel) to `last`. */
static inline void F(rows_by_keys)(
    const REAL *rows_in, ptrdiff_t row, ptrdiff_t rows, ptrdiff_t features, const REAL *panels, ptrdiff_t keys,
    ptrdiff_t first, ptrdiff_t last, REAL *scores, ptrdiff_t scores_row
) {
    static const REAL zeros[WIDTH];
    for (ptrdiff_t j = first; j < last; j += WIDTH) {
        const ptrdiff_t wide = smaller(WIDTH, round_up(keys - j, LANES));
        const F(product) p = {
            .a = rows_in, .a_row = row, .a_k = 1, .b = panels + j * features, .b_k = wide, .K = features,
            .c = zeros, .out = scores + j, .out_row = scores_row};
        F(rows_by_panel)((int)(wide / LANES), rows, p);
    }
}

#if defined(__AVX512F__)
/* The same for a few rows, from keys as they lie: each square of them is transposed in registers, and used once. */
ALWAYS_INLINE void F(few_rows_by_keys)(
    const int rows, const REAL *rows_in, ptrdiff_t row, ptrdiff_t features, const REAL *keys, ptrdiff_t key_row, ptrdiff_t first,
    ptrdiff_t last, REAL *scores, ptrdiff_t scores_row
) {
    for (ptrdiff_t j = first; j < last; j += LANES) {
        F(vec) sum[FEW_ROWS] = {0};
        for (ptrdiff_t d = 0; d < features; d += LANES) {
            F(vec) square[LANES];
            UNROLL for (int i = 0; i < LANES; i++) {
                const REAL *key = keys + (j + i) * key_row + d;
                __builtin_prefetch(key + AHEAD * key_row, 0, 3);
                square[i] = j + i < last ? F(load_part)(key, features - d) : F(all)(0);
            }
            F(transpose_vectors)(square);
            UNROLL for (int i = 0; i < LANES; i++)
                UNROLL for (int r = 0; r < rows; r++) sum[r] = F(fma)(F(all)(rows_in[r * row + d + i]), square[i], sum[r]);
        }
        UNROLL for (int r = 0; r < rows; r++) F(store)(scores + r * scores_row + j, sum[r]);
    }
}
static void F(few_scores)(
    ptrdiff_t rows, const REAL *rows_in, ptrdiff_t row, ptrdiff_t features, const REAL *keys, ptrdiff_t key_row, ptrdiff_t first,
    ptrdiff_t last, REAL *scores, ptrdiff_t scores_row
) {
    if (rows == 1) F(few_rows_by_keys)(1, rows_in, row, features, keys, key_row, first, last, scores, scores_row);
    else if (rows == 2) F(few_rows_by_keys)(2, rows_in, row, features, keys, key_row, first, last, scores, scores_row);
    else if (rows == 3) F(few_rows_by_keys)(3, rows_in, row, features, keys, key_row, first, last, scores, scores_row);
    else F(few_rows_by_keys)(4, rows_in, row, features, keys, key_row, first, last, scores, scores_row);
}
#endif

/* What a row's scores are made with: its exponents are scores · scale + added. */
typedef struct {
    F(vec) scale;
    const REAL *added; /* NULL: nothing */
} F(scoring);

/* Lanes j + i of a row with first <= j + i < last. */
static inline F(ivec) F(lanes_within)(ptrdiff_t j, ptrdiff_t first, ptrdiff_t last) {
    const F(ivec) lane = F(lane_numbers)();
    return (lane >= (VEC_INT)larger(0, smaller(LANES, first - j))) & (lane < (VEC_INT)larger(0, smaller(LANES, last - j)));
}

static inline int F(all_finite)(const REAL *x, ptrdiff_t n) {
    F(vec) zero = {0};
    for (ptrdiff_t j = 0; j < n; j += LANES) zero = F(fma)(F(load)(x + j), F(all)(0), zero);
    return F(sum_of)(zero) == 0;
}

/* The largest of a vector, but NaN where that is UNSEEN and a NaN is in what it was taken from: a comparison may lose it. */
static inline REAL F(largest_or_nan)(F(vec) most, const REAL *scores, const REAL *added, ptrdiff_t from, ptrdiff_t to) {
    const REAL largest = F(largest_of)(most);
    if (largest != UNSEEN || (F(all_finite)(scores + from, to - from) && (!added || F(all_finite)(added + from, to - from)))) return largest;
    return (REAL)NAN;
}

/* The largest exponent of a row's keys [from, to), where it is the range [first, last) that is seen. */
static inline REAL F(mask_range)(REAL *scores, ptrdiff_t from, ptrdiff_t to, ptrdiff_t first, ptrdiff_t last, REAL factor) {
    const F(vec) hidden = F(all)(2 * UNSEEN / factor);
    const ptrdiff_t inside = round_up(larger(first, from), LANES), outside = larger(inside, smaller(last, to) / LANES * LANES);
    F(vec) most = F(all)(LOWEST);
    for (ptrdiff_t j = inside; j < outside; j += LANES) {
        const F(vec) s = F(load)(scores + j);
        most = F(at_least)(most, factor > 0 ? s : -s);
    }
    most *= factor > 0 ? factor : -factor;
    for (ptrdiff_t j = from; j < to; j += LANES) {
        if (j == inside) j = outside;
        if (j >= to) break;
        const F(vec) s = F(select)(F(lanes_within)(j, first, last), F(load)(scores + j), hidden);
        F(store)(scores + j, s);
        most = F(at_least)(most, s * factor);
    }
    return F(largest_or_nan)(F(at_least)(F(all)(UNSEEN), most), scores, NULL, from, to);
}

/* Of keys [from, to) of a split, whole vectors, a row's scores: the largest exponent, UNSEEN where no key is seen, and how to
   get them. Keys that are not seen get exponents of UNSEEN, by `added` or by scores that give it. */
static inline REAL F(mask_row)(
    const pyrnn_attention *p, ptrdiff_t b, F(place) row, range_t seen, ptrdiff_t split, REAL *scores, ptrdiff_t from, ptrdiff_t to,
    REAL *added, F(scoring) *how
) {
    const REAL factor = (REAL)(p->scale * M_LOG2E);
    const ptrdiff_t first = seen.first - split, last = seen.last - split;
    how->scale = F(all)(factor);
    how->added = NULL;
    if (!p->bias.data && !p->mask.data && (factor > (REAL)1e-6 || factor < (REAL)-1e-6))
        return F(mask_range)(scores, from, to, first, last, factor);
    const ptrdiff_t bias_step = p->bias.stride[3], mask_step = p->mask.stride[3];
    const REAL *bias = p->bias.data ? F(at4)(&p->bias, b, row.head, row.i) + split * bias_step : NULL;
    const uint8_t *mask = p->mask.data;
    if (mask) mask += b * p->mask.stride[0] + row.head * p->mask.stride[1] + row.i * p->mask.stride[2] + split * mask_step;
    F(vec) most = F(all)(UNSEEN);
    for (ptrdiff_t j = from; j < to; j += LANES) {
        const ptrdiff_t there = smaller(LANES, p->M - split - j);
        F(ivec) open = F(lanes_within)(j, first, last);
        F(vec) plus = {0};
        if (bias) {
            if (bias_step == 1) plus = F(load_part)(bias + j, there);
            else
                for (ptrdiff_t i = 0; i < there; i++) plus[i] = bias[(j + i) * bias_step];
            open &= plus != LOWEST;
            plus *= LOG2E;
        }
        if (mask) {
            F(ivec) allowed = {0};
            for (ptrdiff_t i = 0; i < there; i++) allowed[i] = -(VEC_INT)(mask[(j + i) * mask_step] != 0);
            open &= allowed;
        }
        const F(vec) s = F(select)(open, F(load)(scores + j), F(all)(0));
        plus = F(select)(open, plus, F(all)(UNSEEN));
        F(store)(scores + j, s);
        F(store)(added + j, plus);
        most = F(at_least)(most, F(fma)(s, how->scale, plus));
    }
    how->added = added;
    return F(largest_or_nan)(most, scores, added, from, to);
}

/* The power of 2 for a score, as `how` says, over the row's maximum. */
static inline F(vec) F(power_of)(const REAL *scores, ptrdiff_t j, F(scoring) how, F(vec) maximum) {
    const F(vec) plus = how.added ? F(load)(how.added + j) - maximum : -maximum;
    return F(exp2_negative)(F(fma)(F(load)(scores + j), how.scale, plus));
}

/* Multiply weights of keys [from, to) of a split with 0 where they are dropped, and with the rest's factor elsewhere. */
static void F(drop)(const pyrnn_attention *p, ptrdiff_t b, F(place) row, ptrdiff_t split, REAL *weights, ptrdiff_t from, ptrdiff_t to) {
    uint32_t words[KEY_SPLIT / 4][4];
    const int count = (int)((to - from + 3) / 4);
    const REAL factor = (REAL)(1 / (1 - p->dropout));
    philox((uint32_t)((split + from) / 4), (uint32_t)row.at, (uint32_t)row.head, (uint32_t)b, p->seed, count, words);
    for (ptrdiff_t j = from; j < to; j++) weights[j] *= words[(j - from) / 4][(j - from) % 4] >= p->drop_below ? factor : 0;
}
