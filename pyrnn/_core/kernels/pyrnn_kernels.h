/* The kernels as the extension modules see them: argument records and one table of functions per ISA level.

   (a) Kernels allocate nothing. The caller gives every output and a workspace of the size that the kernel asks for.
   (b) Strides count elements, not bytes. They may be negative or zero.
   (c) Each function has a float and a double form, picked by an index: 0 float32, 1 float64. */
#ifndef PYRNN_KERNELS_H
#define PYRNN_KERNELS_H

#include <stddef.h>
#include <stdint.h>

/* An array to be read: where element [0, 0, 0] lies, and the strides. data is NULL for an array not given. */
typedef struct {
    const void *data;
    ptrdiff_t stride[3];
} pyrnn_in;

enum pyrnn_cell { PYRNN_RNN_TANH, PYRNN_RNN_RELU, PYRNN_LSTM, PYRNN_GRU_AFTER, PYRNN_GRU_BEFORE };

/* One recurrent layer over a batch of sequences, forward or backward.

   Rows are processed longest first: row i of every buffer of the kernel's own belongs to row order[i] of the
   caller's arrays and has lengths[i] valid steps. States and gates are kept step-major and padded to Hp units:
   hs [T + 1][B][Hp], slot 0 the initial state, slot s + 1 the state after step s. They serve the backward; without them
   (inference) the running state is kept in the workspace. */
typedef struct {
    ptrdiff_t B, T, I, H;
    int cell;    /* enum pyrnn_cell */
    int reverse; /* from the last valid step to the first */
    int threads; /* at most so many */
    const int64_t *order, *lengths; /* NULL: as they come, T valid steps each */
    pyrnn_in x, w_ih, w_hh, b, b_hn, h0, c0;
    void *hs, *cs;    /* OUT of the forward, IN of the backward, or NULL; cs for the LSTM only */
    void *gates;      /* [T][B][planes][Hp] gates after their activations, likewise; none for the RNN */
    void *workspace;
    int (*interrupted)(void); /* asked now and then, by the calling thread; nonzero ends the call */

    /* forward: OUT */
    void *packed;             /* IN: made by recurrent_pack, in place of w_ih, w_hh, b and b_hn; or NULL */
    void *y, *h_n, *c_n;      /* (B, T, H), (B, H), (B, H) */
    ptrdiff_t y_step, state_row; /* elements from one step of y to the next, from one row of a state to the next */

    /* backward: IN, data NULL for zero; OUT, NULL where not needed, contiguous */
    pyrnn_in dy, dh_n, dc_n;
    void *dx, *dw_ih, *dw_hh, *db, *db_hn, *dh0, *dc0;
} pyrnn_recurrent;

/* y = x Wᵀ + b on M rows, forward or backward; x, dy, y, dx are contiguous matrices. */
typedef struct {
    ptrdiff_t M, I, O;
    int threads;
    const void *x, *dy;
    pyrnn_in w, b;
    void *workspace;
    void *y;            /* forward: OUT */
    void *dx, *dw, *db; /* backward: OUT, NULL where not needed */
} pyrnn_linear;

typedef struct {
    const char *level;
    ptrdiff_t unit_block[2]; /* Hp is H rounded up to a multiple of this many units */
    size_t (*recurrent_workspace[2])(const pyrnn_recurrent *, int backward); /* bytes */
    size_t (*recurrent_pack[2])(const pyrnn_recurrent *, void *packed); /* bytes; NULL only counts */
    int (*recurrent_forward[2])(const pyrnn_recurrent *); /* nonzero: interrupted, outputs undefined */
    int (*recurrent_backward[2])(const pyrnn_recurrent *);
    size_t (*linear_workspace[2])(const pyrnn_linear *, int backward);
    void (*linear_forward[2])(const pyrnn_linear *);
    void (*linear_backward[2])(const pyrnn_linear *);
    void (*tanh[2])(const void *x, void *y, ptrdiff_t n);
    void (*sigmoid[2])(const void *x, void *y, ptrdiff_t n);
} pyrnn_kernels;

/* The table of the best level that this CPU has, or of the level named, NULL if it is not to be had. */
const pyrnn_kernels *pyrnn_kernels_at(const char *level);

/* 1 when the kernels are built with OpenMP; and how many threads it would start now. */
int pyrnn_openmp(void);
int pyrnn_openmp_threads(void);

#endif
