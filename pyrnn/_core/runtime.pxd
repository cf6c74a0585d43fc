# What every module of the core needs of the kernels: their declarations, the chosen table, arrays as they take them.
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

cdef extern from "pyrnn_kernels.h" nogil:
    ctypedef struct pyrnn_in:
        const void *data
        ptrdiff_t stride[3]

    ctypedef struct pyrnn_in4:
        const void *data
        ptrdiff_t stride[4]

    enum pyrnn_cell:
        PYRNN_RNN_TANH
        PYRNN_RNN_RELU
        PYRNN_LSTM
        PYRNN_GRU_AFTER
        PYRNN_GRU_BEFORE

    double PYRNN_SHARED_FROM

    ctypedef struct pyrnn_recurrent:
        ptrdiff_t B, T, I, H
        int cell, reverse, threads
        const int64_t *order
        const int64_t *lengths
        pyrnn_in x, w_ih, w_hh, b, b_hn, h0, c0
        void *hs
        void *cs
        void *gates
        void *workspace
        int (*interrupted)() noexcept
        void *packed
        void *y
        void *h_n
        void *c_n
        int calls
        ptrdiff_t y_step, state_row
        pyrnn_in dy, dh_n, dc_n
        void *dx
        void *dw_ih
        void *dw_hh
        void *db
        void *db_hn
        void *dh0
        void *dc0

    ctypedef struct pyrnn_linear:
        ptrdiff_t M, I, O
        int threads
        const void *x
        const void *dy
        pyrnn_in w, b
        void *workspace
        void *packed
        void *y
        void *dx
        void *dw
        void *db

    int PYRNN_KEY_SPLIT
    int64_t PYRNN_FAR

    ctypedef struct pyrnn_attention:
        ptrdiff_t B, Hq, Hkv, N, M, D, Dv
        int threads
        double scale, dropout
        uint64_t seed
        uint32_t drop_below
        int64_t left, right
        const int64_t *q_start
        const int64_t *lengths
        const int64_t *q_lengths
        pyrnn_in4 q, k, v, bias, mask
        void *workspace
        int (*interrupted)() noexcept
        void *y
        ptrdiff_t y_stride[3]
        void *stats
        pyrnn_in4 dy
        void *dq
        void *dk
        void *dv
        void *dbias
        ptrdiff_t dq_stride[3]
        ptrdiff_t dk_stride[3]
        ptrdiff_t dv_stride[3]
        ptrdiff_t bias_shape[4]

    ctypedef struct pyrnn_alignment:
        ptrdiff_t B, N, M, A, Dv
        int threads
        double scale
        const int64_t *lengths
        pyrnn_in4 mask
        const void *query
        const void *keys
        const void *values
        const void *v
        void *workspace
        void *ctx
        void *alpha
        const void *dctx
        const void *dalpha
        void *dquery
        void *dkeys
        void *dvalues
        void *dv
    ctypedef struct pyrnn_conv:
        ptrdiff_t B, T, I, O, K, dilation, groups
        int threads
        const int64_t *lengths
        pyrnn_in x, w, b, left
        void *workspace
        void *packed
        void *y
        ptrdiff_t y_row, y_step
        void *left_n
        ptrdiff_t left_row, left_step
        void *ring
        ptrdiff_t now
        pyrnn_in dy, dleft_n
        void *dx
        void *dw
        void *db
        void *dleft

    enum pyrnn_then:
        PYRNN_NOTHING
        PYRNN_RELU
        PYRNN_TANH
        PYRNN_GATE

    ctypedef struct pyrnn_stage:
        pyrnn_conv *conv
        ptrdiff_t B, N
        int then
        const void *value
        const void *plus
        void *sum
        void *to
        ptrdiff_t value_row, plus_row, sum_row, to_row

    ctypedef struct pyrnn_loop:
        void (*call)(char **, const ptrdiff_t *, const ptrdiff_t *, void *) noexcept nogil
        void *data

    ctypedef struct pyrnn_cross_entropy:
        ptrdiff_t M, C
        int threads
        const void *logits
        const int64_t *targets
        const uint8_t *mask
        void *stats
        void *loss
        const void *dloss
        void *dlogits

    ctypedef struct pyrnn_softmax:
        ptrdiff_t M, F
        int threads
        const void *x
        const void *dy
        void *y
        void *dx

    ctypedef struct pyrnn_layer_norm:
        ptrdiff_t M, F
        int threads
        double eps
        const void *x
        const void *weight
        const void *bias
        void *stats
        void *y
        void *workspace
        const void *dy
        void *dx
        void *dweight
        void *dbias

    ctypedef struct pyrnn_embedding:
        ptrdiff_t N, V, D
        int threads
        const int64_t *indices
        const void *weight
        const void *dy
        void *y
        void *dweight

    ctypedef struct pyrnn_sgd:
        ptrdiff_t n
        int threads, nesterov
        double lr, momentum, weight_decay
        void *array
        void *momentum_buffer
        const void *grad

    ctypedef struct pyrnn_adam:
        ptrdiff_t n
        int threads, decoupled
        double lr, beta1, beta2, eps, weight_decay, correction1, correction2
        void *array
        void *exp_avg
        void *exp_avg_sq
        const void *grad

    ctypedef struct pyrnn_kernels:
        const char *level
        ptrdiff_t unit_block[2]
        size_t (*recurrent_workspace[2])(const pyrnn_recurrent *, int) noexcept nogil
        size_t (*recurrent_pack[2])(const pyrnn_recurrent *, void *) noexcept nogil
        int (*recurrent_forward[2])(const pyrnn_recurrent *) noexcept nogil
        int (*recurrent_backward[2])(const pyrnn_recurrent *) noexcept nogil
        size_t (*linear_workspace[2])(const pyrnn_linear *, int) noexcept nogil
        size_t (*linear_pack[2])(const pyrnn_linear *, void *) noexcept nogil
        void (*linear_forward[2])(const pyrnn_linear *) noexcept nogil
        void (*linear_backward[2])(const pyrnn_linear *) noexcept nogil
        size_t (*attention_workspace[2])(const pyrnn_attention *, int) noexcept nogil
        int (*attention_forward[2])(const pyrnn_attention *) noexcept nogil
        int (*attention_backward[2])(const pyrnn_attention *) noexcept nogil
        size_t (*alignment_workspace[2])(const pyrnn_alignment *, int) noexcept nogil
        void (*alignment_forward[2])(const pyrnn_alignment *) noexcept nogil
        void (*alignment_backward[2])(const pyrnn_alignment *) noexcept nogil
        size_t (*conv_workspace[2])(const pyrnn_conv *, int) noexcept nogil
        size_t (*conv_pack[2])(const pyrnn_conv *, void *) noexcept nogil
        void (*conv_forward[2])(const pyrnn_conv *) noexcept nogil
        size_t (*conv_plan_step[2])(const pyrnn_conv *, void *) noexcept nogil
        void (*conv_step[2])(pyrnn_conv *) noexcept nogil
        void (*conv_chain[2])(const pyrnn_stage *, ptrdiff_t, const pyrnn_loop *) noexcept nogil
        void (*conv_backward[2])(const pyrnn_conv *) noexcept nogil
        void (*tanh[2])(const void *, void *, ptrdiff_t) noexcept nogil
        void (*sigmoid[2])(const void *, void *, ptrdiff_t) noexcept nogil
        void (*cross_entropy_forward[2])(const pyrnn_cross_entropy *) noexcept nogil
        void (*cross_entropy_backward[2])(const pyrnn_cross_entropy *) noexcept nogil
        void (*softmax_forward[2])(const pyrnn_softmax *) noexcept nogil
        void (*softmax_backward[2])(const pyrnn_softmax *) noexcept nogil
        size_t (*layer_norm_workspace[2])(const pyrnn_layer_norm *) noexcept nogil
        void (*layer_norm_forward[2])(const pyrnn_layer_norm *) noexcept nogil
        void (*layer_norm_backward[2])(const pyrnn_layer_norm *) noexcept nogil
        void (*embedding_forward[2])(const pyrnn_embedding *) noexcept nogil
        void (*embedding_backward[2])(const pyrnn_embedding *) noexcept nogil
        void (*sgd[2])(const pyrnn_sgd *) noexcept nogil
        void (*adam[2])(const pyrnn_adam *) noexcept nogil
        void (*exp[2])(const void *, void *, ptrdiff_t) noexcept nogil

    const pyrnn_kernels *pyrnn_kernels_at(const char *)
    int pyrnn_openmp()
    int pyrnn_openmp_threads()

cdef const pyrnn_kernels *table() noexcept nogil
cdef int interrupted() noexcept with gil
cdef int raise_pending() except -1
cdef int threads() except -1
cdef int is_double(object array) except -1
cdef object contiguous(object array)
cdef void *data_of(object array) except? NULL
cdef bint is_matrix(object array, int kind, ptrdiff_t rows, ptrdiff_t columns) except -1
cdef bint has_rows(object array, int kind, ptrdiff_t rows, ptrdiff_t columns) except -1
cdef int copy_matrix(object to, object array) except -1
cdef pyrnn_loop loop_of(object function, int kind) except *
cdef object new_matrix(int kind, ptrdiff_t rows, ptrdiff_t columns)
cdef object step_output(object x, object out, int kind, ptrdiff_t batch, ptrdiff_t inputs, ptrdiff_t outputs)
cdef ptrdiff_t stride_of(object array, int axis) except? -1
cdef pyrnn_in input_of(object array, list keep) except *
