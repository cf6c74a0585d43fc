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

/* The same with four dimensions. */
typedef struct {
    const void *data;
    ptrdiff_t stride[4];
} pyrnn_in4;

enum pyrnn_cell { PYRNN_RNN_TANH, PYRNN_RNN_RELU, PYRNN_LSTM, PYRNN_GRU_AFTER, PYRNN_GRU_BEFORE };

/* Floating-point operations of a recurrent call from which threads share it. */
#define PYRNN_SHARED_FROM 5e5

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
    int calls; /* of one step on the same packed weights before this: walks over them turn back */
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
    void *packed;       /* IN: made by linear_pack, in place of w and b; or NULL */
    void *y;            /* forward: OUT */
    void *dx, *dw, *db; /* backward: OUT, NULL where not needed */
} pyrnn_linear;

/* Attention's keys come in splits of so many, counted from key 0: `KEY_SPLIT` of pyrnn/backend.py. */
#define PYRNN_KEY_SPLIT 256
#define PYRNN_FAR ((int64_t)1 << 40) /* of a window: no limit */

/* Attention by heads, forward or backward: q [B, Hq, N, D], k [B, Hkv, M, D], v [B, Hkv, M, Dv]. Query i of row b stands at
   position q_start[b] + i and sees keys from left before it to right after it. Output rows are contiguous, strides are theirs. */
typedef struct {
    ptrdiff_t B, Hq, Hkv, N, M, D, Dv;
    int threads;
    double scale, dropout;
    uint64_t seed;
    uint32_t drop_below; /* words of the generator below this drop a weight */
    int64_t left, right;
    const int64_t *q_start, *lengths, *q_lengths; /* lengths, q_lengths: NULL for M, N each */
    pyrnn_in4 q, k, v;
    pyrnn_in4 bias, mask; /* data NULL if not given; strides 0 where they are broadcast; the mask's elements are bytes */
    void *workspace;
    int (*interrupted)(void); /* asked now and then, by the calling thread; nonzero ends the call */
    void *y;             /* OUT of the forward, IN of the backward */
    ptrdiff_t y_stride[3];
    void *stats;         /* [B][Hq][N][2] maximum and inverse of the sum: OUT of the forward, NULL where not kept; then IN */
    pyrnn_in4 dy;        /* backward */
    void *dq, *dk, *dv, *dbias; /* backward: OUT, NULL where not needed; dbias contiguous */
    ptrdiff_t dq_stride[3], dk_stride[3], dv_stride[3], bias_shape[4];
} pyrnn_attention;

/* Additive (v given) or multiplicative attention with its weights, forward or backward: query [B, N, A], keys [B, M, A] mapped;
   values [B, M, Dv in whole vectors], zeros past Dv. All contiguous. */
typedef struct {
    ptrdiff_t B, N, M, A, Dv;
    int threads;
    double scale;
    const int64_t *lengths; /* NULL: M each */
    pyrnn_in4 mask;         /* of bytes, strides 1 to 3 for B, N, M; data NULL if not given */
    const void *query, *keys, *values, *v;
    void *workspace;
    void *ctx, *alpha;      /* [B, N, Dv], [B, N, M]: OUT of the forward, IN of the backward */
    const void *dctx, *dalpha; /* backward: NULL for zero */
    void *dquery, *dkeys, *dvalues, *dv; /* backward: OUT; dvalues [B, M, Dv], dv with v */
} pyrnn_alignment;
/* Causal convolution over time, forward, one step, or backward. The last axis of x, left, dy and dleft_n has stride 1. */
typedef struct {
    ptrdiff_t B, T, I, O, K, dilation, groups;
    int threads;
    const int64_t *lengths; /* NULL: T valid steps each */
    pyrnn_in x, w, b, left;
    void *workspace;

    /* forward: OUT */
    void *packed;                /* IN: made by conv_pack, in place of w and b; or NULL */
    void *y;
    ptrdiff_t y_row, y_step;     /* elements from one sequence to the next, from one step to the next */
    void *left_n;                /* may be left itself */
    ptrdiff_t left_row, left_step;

    /* one step: the last inputs [span + 1][B][I], span = (K - 1)·dilation; x, (B, I) here, takes the slot `now` in it, which
       then is the next one */
    void *ring;
    ptrdiff_t now;

    /* backward: IN, dleft_n with data NULL for zero; OUT, NULL where not needed, contiguous */
    pyrnn_in dy, dleft_n;
    void *dx, *dw, *db, *dleft;
} pyrnn_conv;

/* What a stage of a chain does with its sum; the gate: tanh of all of it, of which it gives u·(1 + v) for its halves u, v. */
enum pyrnn_then { PYRNN_NOTHING, PYRNN_RELU, PYRNN_TANH, PYRNN_GATE };

/* One stage of a chain on B rows of N outputs: to = then(value + plus). The last axis of all has stride 1. */
typedef struct {
    pyrnn_conv *conv; /* takes its step first, and writes the value; or NULL */
    ptrdiff_t B, N;
    int then; /* enum pyrnn_then */
    const void *value, *plus; /* plus: NULL where there is none */
    void *sum, *to;           /* sum, of value and plus: `to` itself, or 2·N columns elsewhere, perhaps the value's, for a gate */
    ptrdiff_t value_row, plus_row, sum_row, to_row; /* elements from one row to the next */
} pyrnn_stage;

/* An inner loop of numpy's: args are input and output, steps are bytes from one element to the next. */
typedef struct {
    void (*call)(char **args, const ptrdiff_t *n, const ptrdiff_t *steps, void *data);
    void *data;
} pyrnn_loop;

/* loss = log Σ e^logits - logits[target] on M rows of C classes, forward or backward; contiguous. */
typedef struct {
    ptrdiff_t M, C;
    int threads;
    const void *logits;
    const int64_t *targets;
    const uint8_t *mask; /* 0 where a row does not count; NULL: all do */
    void *stats;         /* [M][2] a row's maximum and its Σ e^(x - maximum): OUT of the forward, NULL where not kept; then IN */
    void *loss;          /* forward: OUT */
    const void *dloss;   /* backward */
    void *dlogits;       /* backward: OUT */
} pyrnn_cross_entropy;

/* Weights that sum to 1 in each of M rows, forward or backward; contiguous. */
typedef struct {
    ptrdiff_t M, F;
    int threads;
    const void *x, *dy; /* backward: dy */
    void *y;            /* OUT of the forward, IN of the backward */
    void *dx;           /* backward: OUT */
} pyrnn_softmax;

/* y = (x - mean) · scale · weight + bias on M rows, scale = 1 / √(variance + eps), forward or backward; contiguous. */
typedef struct {
    ptrdiff_t M, F;
    int threads;
    double eps;
    const void *x, *weight, *bias; /* weight, bias: NULL where not given */
    void *stats;                   /* [M][2] mean and scale: OUT of the forward, NULL where not kept; then IN */
    void *y;                       /* forward: OUT */
    void *workspace;               /* backward */
    const void *dy;
    void *dx, *dweight, *dbias;    /* backward: OUT, NULL where not needed */
} pyrnn_layer_norm;

/* y [N, D]: the rows of weight [V, D] that have the indices; dweight: the sums of the rows of dy by index; contiguous. */
typedef struct {
    ptrdiff_t N, V, D;
    int threads;
    const int64_t *indices;
    const void *weight, *dy; /* of the forward; of the backward */
    void *y, *dweight;       /* OUT, likewise */
} pyrnn_embedding;

/* One update of n parameters in place, as in `reference/update.py`; all arrays alike and contiguous. */
typedef struct {
    ptrdiff_t n;
    int threads, nesterov;
    double lr, momentum, weight_decay;
    void *array, *momentum_buffer; /* IN and OUT; momentum_buffer: NULL without momentum */
    const void *grad;
} pyrnn_sgd;

typedef struct {
    ptrdiff_t n;
    int threads, decoupled;
    double lr, beta1, beta2, eps, weight_decay;
    double correction1, correction2; /* 1 - beta1^step and 1 - beta2^step */
    void *array, *exp_avg, *exp_avg_sq; /* IN and OUT */
    const void *grad;
} pyrnn_adam;

typedef struct {
    const char *level;
    ptrdiff_t unit_block[2]; /* Hp is H rounded up to a multiple of this many units */
    size_t (*recurrent_workspace[2])(const pyrnn_recurrent *, int backward); /* bytes */
    size_t (*recurrent_pack[2])(const pyrnn_recurrent *, void *packed); /* bytes; NULL only counts */
    int (*recurrent_forward[2])(const pyrnn_recurrent *); /* nonzero: interrupted, outputs undefined */
    int (*recurrent_backward[2])(const pyrnn_recurrent *);
    size_t (*linear_workspace[2])(const pyrnn_linear *, int backward);
    size_t (*linear_pack[2])(const pyrnn_linear *, void *packed); /* bytes; NULL only counts */
    void (*linear_forward[2])(const pyrnn_linear *);
    void (*linear_backward[2])(const pyrnn_linear *);
    size_t (*attention_workspace[2])(const pyrnn_attention *, int backward);
    int (*attention_forward[2])(const pyrnn_attention *); /* nonzero: interrupted, outputs undefined */
    int (*attention_backward[2])(const pyrnn_attention *);
    size_t (*alignment_workspace[2])(const pyrnn_alignment *, int backward);
    void (*alignment_forward[2])(const pyrnn_alignment *);
    void (*alignment_backward[2])(const pyrnn_alignment *);
    size_t (*conv_workspace[2])(const pyrnn_conv *, int backward);
    size_t (*conv_pack[2])(const pyrnn_conv *, void *packed); /* bytes; NULL only counts */
    void (*conv_forward[2])(const pyrnn_conv *);
    size_t (*conv_plan_step[2])(const pyrnn_conv *, void *workspace); /* bytes; NULL only counts */
    void (*conv_step[2])(pyrnn_conv *); /* on packed weights, in a workspace that has the plan of its steps */
    void (*conv_chain[2])(const pyrnn_stage *, ptrdiff_t n, const pyrnn_loop *tanh);
    void (*conv_backward[2])(const pyrnn_conv *);
    void (*tanh[2])(const void *x, void *y, ptrdiff_t n);
    void (*sigmoid[2])(const void *x, void *y, ptrdiff_t n);
    void (*cross_entropy_forward[2])(const pyrnn_cross_entropy *);
    void (*cross_entropy_backward[2])(const pyrnn_cross_entropy *);
    void (*softmax_forward[2])(const pyrnn_softmax *);
    void (*softmax_backward[2])(const pyrnn_softmax *);
    size_t (*layer_norm_workspace[2])(const pyrnn_layer_norm *);
    void (*layer_norm_forward[2])(const pyrnn_layer_norm *);
    void (*layer_norm_backward[2])(const pyrnn_layer_norm *);
    void (*embedding_forward[2])(const pyrnn_embedding *);
    void (*embedding_backward[2])(const pyrnn_embedding *);
    void (*sgd[2])(const pyrnn_sgd *);
    void (*adam[2])(const pyrnn_adam *);
    void (*exp[2])(const void *x, void *y, ptrdiff_t n); /* x <= 0 */
} pyrnn_kernels;

/* The table of the best level that this CPU has, or of the level named, NULL if it is not to be had. */
const pyrnn_kernels *pyrnn_kernels_at(const char *level);

/* 1 when the kernels are built with OpenMP; and how many threads it would start now. */
int pyrnn_openmp(void);
int pyrnn_openmp_threads(void);

#endif
