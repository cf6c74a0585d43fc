/* All kernels at one ISA level: this file is compiled once per level, with that level's compiler flags.

   Everything is static but the table, since an external function built for a new CPU could be picked by the linker
   and kill an old one. The families are written once against REAL and the names of simd.h, and included twice. */
#include <math.h>
#include <stdint.h>
#include <string.h>
#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

#include "pyrnn_kernels.h"
#include "team.h"

#define JOIN_(a, b) a##b
#define JOIN(a, b) JOIN_(a, b)
#define TEXT_(a) #a
#define TEXT(a) TEXT_(a)

#define REAL float
#define REAL_BYTES 4
#define F(name) name##_f32
#include "families.h"
#undef REAL
#undef REAL_BYTES
#undef F

#define REAL double
#define REAL_BYTES 8
#define F(name) name##_f64
#include "families.h"

#define BOTH(name) {name##_f32, name##_f64}

extern const pyrnn_kernels JOIN(pyrnn_kernels_, LEVEL);
const pyrnn_kernels JOIN(pyrnn_kernels_, LEVEL) = {
    .level = TEXT(LEVEL),
    .unit_block = {VECTOR_BYTES / 4, VECTOR_BYTES / 8},
    .recurrent_workspace = BOTH(recurrent_workspace),
    .recurrent_pack = BOTH(recurrent_pack),
    .recurrent_forward = BOTH(recurrent_forward),
    .recurrent_backward = BOTH(recurrent_backward),
    .linear_workspace = BOTH(linear_workspace),
    .linear_pack = BOTH(linear_pack),
    .linear_forward = BOTH(linear_forward),
    .linear_backward = BOTH(linear_backward),
    .attention_workspace = BOTH(attention_workspace),
    .attention_forward = BOTH(attention_forward),
    .attention_backward = BOTH(attention_backward),
    .alignment_workspace = BOTH(alignment_workspace),
    .alignment_forward = BOTH(alignment_forward),
    .alignment_backward = BOTH(alignment_backward),
    .conv_workspace = BOTH(conv_workspace),
    .conv_pack = BOTH(conv_pack),
    .conv_forward = BOTH(conv_forward),
    .conv_plan_step = BOTH(conv_plan_step),
    .conv_step = BOTH(conv_step),
    .conv_chain = BOTH(conv_chain),
    .conv_backward = BOTH(conv_backward),
    .tanh = BOTH(tanh_array),
    .sigmoid = BOTH(sigmoid_array),
    .cross_entropy_forward = BOTH(cross_entropy_forward),
    .cross_entropy_backward = BOTH(cross_entropy_backward),
    .softmax_forward = BOTH(softmax_forward),
    .softmax_backward = BOTH(softmax_backward),
    .layer_norm_workspace = BOTH(layer_norm_workspace),
    .layer_norm_forward = BOTH(layer_norm_forward),
    .layer_norm_backward = BOTH(layer_norm_backward),
    .embedding_forward = BOTH(embedding_forward),
    .embedding_backward = BOTH(embedding_backward),
    .sgd = BOTH(sgd),
    .adam = BOTH(adam),
    .exp = BOTH(exp_array),
};
