/* What kernels take from the device beside C++: memory that other blocks write, and the matrix units.

   Where PYRNN_ON_CPU is defined (the tests run every kernel on the CPU), the same names come from there. */
#pragma once

#ifdef PYRNN_ON_CPU
#define load_acquire pyrnn_cpu_ld_acquire_gpu
#define store_release pyrnn_cpu_st_release_gpu
#define spin_pause pyrnn_spin_pause
#define copy_async(to, from) pyrnn_cpu_cp_async_16(to, from)
#define copies_begun pyrnn_cpu_cp_async_commit
#define await_copies pyrnn_cpu_cp_async_wait
#define mma_bf16(c, a, b) pyrnn_cpu_mma_m16n8k16_bf16(c, a, b, c)
#define mma_tf32(c, a, b) pyrnn_cpu_mma_m16n8k8_tf32(c, a, b, c)
#define load_matrices(r, row) pyrnn_cpu_ldmatrix_x4(r, row, false)
#define load_turned_matrices(r, row) pyrnn_cpu_ldmatrix_x4(r, row, true)
#else

__device__ __forceinline__ unsigned load_acquire(const unsigned *at) {
    unsigned value;
    asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(at) : "memory");
    return value;
}

__device__ __forceinline__ void store_release(unsigned *at, unsigned value) {
    asm volatile("st.release.gpu.global.u32 [%0], %1;" ::"l"(at), "r"(value) : "memory");
}

/* Nothing: whoever spins waits for a microsecond at most, and a sleep takes longer. */
__device__ __forceinline__ void spin_pause() {}

/* Sixteen bytes of global memory to shared memory, while the thread goes on; they come from L2, since L1 may hold what others
   have overwritten. `copies_begun` ends a group of copies; `await_copies(n)` waits for all groups but the last n. */
__device__ __forceinline__ void copy_async(void *to, const void *from) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"((unsigned)__cvta_generic_to_shared(to)), "l"(from) : "memory");
}
__device__ __forceinline__ void copies_begun() { asm volatile("cp.async.commit_group;" ::: "memory"); }
__device__ __forceinline__ void await_copies(int left) {
    if (left == 0) asm volatile("cp.async.wait_group 0;" ::: "memory");
    else asm volatile("cp.async.wait_group 1;" ::: "memory");
}

/* c += a · b for 16 rows, 8 columns and a depth of 16, of bfloat16 in pairs; fragments as the PTX ISA lays them out. */
__device__ __forceinline__ void mma_bf16(float (&c)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

/* The same for a depth of 8, of TF32. */
__device__ __forceinline__ void mma_tf32(float (&c)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

/* Four matrices of 8 rows of 16 bytes from shared memory: lane l gives where row l % 8 of matrix l / 8 lies, and gets of each what
   it has in a fragment, two numbers of 16 bits or one of 32. Of those turned, of 16 bits, it gets the transpose's. */
__device__ __forceinline__ void load_matrices(unsigned (&r)[4], const void *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"((unsigned)__cvta_generic_to_shared(row)) : "memory");
}
__device__ __forceinline__ void load_turned_matrices(unsigned (&r)[4], const void *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"((unsigned)__cvta_generic_to_shared(row)) : "memory");
}
#endif

/* The nearest bfloat16 of two numbers, ties to even, the first in the low half; NaN stays NaN. The nearest TF32: ten bits of
   fraction. */
#ifdef PYRNN_ON_CPU
#define two_bf16 pyrnn_cpu_two_bf16
#define to_tf32 pyrnn_cpu_tf32
#else
__device__ __forceinline__ unsigned two_bf16(float low, float high) {
    unsigned both;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
    return both;
}
__device__ __forceinline__ unsigned to_tf32(float x) {
    unsigned rounded;
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(rounded) : "f"(x));
    return rounded;
}
#endif

/* Sixteen bytes of shared or global memory at once. */
template <typename T> struct alignas(16) Pack {
    T at[16 / sizeof(T)];
};
