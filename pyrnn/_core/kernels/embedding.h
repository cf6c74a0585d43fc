/* Rows of a table. In the gradient, each thread owns some columns of it, so that each row of the table is one chain
   of additions in ascending position, whatever the number of threads and however often an index comes. */

static void F(embedding_forward_work)(const member_t *me, void *context) {
    const pyrnn_embedding *p = context;
    ptrdiff_t i, end;
    team_share(me, p->N, 1, &i, &end);
    for (; i < end; i++)
        memcpy((REAL *)p->y + i * p->D, (const REAL *)p->weight + p->indices[i] * p->D, (size_t)p->D * sizeof(REAL));
}

static void F(embedding_backward_work)(const member_t *me, void *context) {
    const pyrnn_embedding *p = context;
    REAL *table = p->dweight;
    const REAL *dy = p->dy;
    ptrdiff_t row, row_end, column, end;
    team_share(me, p->V, 1, &row, &row_end);
    memset(table + row * p->D, 0, (size_t)((row_end - row) * p->D) * sizeof(REAL));
    team_wait(me);
    team_share(me, p->D, 64 / REAL_BYTES, &column, &end);
    for (ptrdiff_t i = 0; i < p->N && column < end; i++) {
        REAL *to = table + p->indices[i] * p->D;
        const REAL *from = dy + i * p->D;
        for (ptrdiff_t j = column; j < end; j++) to[j] += from[j];
    }
}

static void F(embedding_forward)(const pyrnn_embedding *p) {
    team_run(row_threads(p->threads, p->N, p->D), 0, F(embedding_forward_work), (void *)p);
}
static void F(embedding_backward)(const pyrnn_embedding *p) {
    team_run(row_threads(p->threads, p->V + p->N, p->D), 0, F(embedding_backward_work), (void *)p);
}
