"""Kernels run on the CPU give what a GPU would, and what a GPU would do wrong in silence is found."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pyrnn

CUDA = Path(__file__).with_name("cuda")
sys.path.insert(0, str(CUDA))  # no package: NVIDIA's own are called cuda, and this folder would hide them

import emulator  # noqa: E402
import fake_cupy  # noqa: E402
import nvrtc  # noqa: E402
from emulator import CompileError, EmulatorError, Module  # noqa: E402

pytestmark = pytest.mark.skipif(bool(emulator.unavailable()), reason=emulator.unavailable())
SEEDS = (0, 1, 2, 3)
F, D, I, U = np.float32, np.float64, np.int32, np.uint32
RNG = np.random.default_rng


def kernel(source: str, name: str = "k", **options: Any) -> Callable[..., emulator.Statistics]:
    return Module(source, **options).kernel(name).launch


# --- a launch -----------------------------------------------------------------------------------------------------


def test_threads_know_their_place() -> None:
    launch = kernel("""
        extern "C" __global__ void k(int* out) {
            dim3 g = gridDim;
            int block = blockIdx.x + g.x * (blockIdx.y + g.y * blockIdx.z);
            int thread = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
            int threads = blockDim.x * blockDim.y * blockDim.z;
            out[block * threads + thread] = 1000 * block + thread + (warpSize - 32);
        }""")
    for seed in SEEDS:
        out = np.zeros((2 * 3 * 2, 5 * 2 * 3), I)
        launch((2, 3, 2), (5, 2, 3), (out,), seed=seed)
        np.testing.assert_array_equal(out, 1000 * np.arange(12)[:, None] + np.arange(30))


REDUCTION = """
    template <typename T> __device__ __forceinline__ T add_lanes(T s) {
        #pragma unroll
        for (int d = warpSize / 2; d; d /= 2) s += __shfl_down_sync(0xffffffffu, s, d);
        return s;
    }
    template <typename T, int THREADS>
    __global__ void __launch_bounds__(THREADS) total(const T* __restrict__ x, T* y, int n) {
        __shared__ T part[THREADS / 32], unused;
        T s = 0;
        for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) s += __ldg(x + i);
        s = add_lanes(s);
        if (threadIdx.x % 32 == 0) part[threadIdx.x / 32] = s;
        __syncthreads();
        if (threadIdx.x >= 32) return;
        s = add_lanes(threadIdx.x < THREADS / 32 ? part[threadIdx.x] : T(0));
        if (threadIdx.x == 0) { unused = s; atomicAdd(y, unused); }
    }"""


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("dtype", "name"), [(F, "float"), (D, "double"), (I, "int")])
def test_a_reduction_in_blocks_by_templates(dtype: type, name: str, seed: int) -> None:
    launch = kernel(REDUCTION, f"total<{name}, 128>")
    x, y = np.arange(1000).astype(dtype), np.zeros(1, dtype)
    statistics = launch((3,), (128,), (x, y, I(1000)), seed=seed)
    assert y[0] == 499500
    assert statistics.static_shared == 5 * x.itemsize


MATMUL = """
    #define TILE 8
    extern "C" __global__ void matmul(const float* a, const float* b, float* c, int m, int n, int k) {
        __shared__ float as[TILE][TILE + 1];
        extern __shared__ __align__(16) float bs[];
        int row = blockIdx.y * TILE + threadIdx.y, column = blockIdx.x * TILE + threadIdx.x;
        float sum = 0;
        for (int t = 0; t < k; t += TILE) {
            int x = t + threadIdx.x, y = t + threadIdx.y;
            as[threadIdx.y][threadIdx.x] = row < m && x < k ? a[row * k + x] : 0;
            bs[threadIdx.y * TILE + threadIdx.x] = y < k && column < n ? b[y * n + column] : 0;
            __syncthreads();
            for (int i = 0; i < TILE; i++) sum = fmaf(as[threadIdx.y][i], bs[i * TILE + threadIdx.x], sum);
            SYNC
        }
        if (row < m && column < n) c[row * n + column] = sum;
    }"""


def matmul(seed: int, *options: str) -> float:
    """Return how far the tiled product is off."""
    a, b = (RNG(0).standard_normal(shape).astype(F) for shape in ((19, 37), (37, 11)))
    c = np.full((19, 11), np.nan, F)
    sizes = map(I, (19, 11, 37))
    kernel(MATMUL, "matmul", options=options)((2, 3), (8, 8), (a, b, c, *sizes), shared=8 * 8 * 4, seed=seed)
    return float(np.abs(c - a.astype(D) @ b).max())


@pytest.mark.parametrize("seed", SEEDS)
def test_a_tiled_product_with_static_and_dynamic_shared_memory(seed: int) -> None:
    assert matmul(seed, "-DSYNC=__syncthreads();") < 1e-4


def test_a_missing_barrier_is_seen() -> None:
    assert not matmul(0, "-D", "SYNC=") < 1e-4


def test_a_race_that_a_fixed_order_hides_is_seen_in_another() -> None:
    launch = kernel("""extern "C" __global__ void k(float* y) {
        __shared__ float s[64]; int i = threadIdx.x; s[i] = i; y[i] = s[i ? i - 1 : 0]; }""")
    seen = []
    for seed in range(4):
        y = np.zeros(64, F)
        launch((1,), (64,), (y,), seed=seed)
        seen.append(bool(np.isnan(y).any()))
    assert seen == [False, True, True, True]


def test_shared_memory_is_not_zero_at_first() -> None:
    launch = kernel("""extern "C" __global__ void k(float* out) {
        __shared__ float a[4]; extern __shared__ float b[];
        out[2 * blockIdx.x] = a[1]; out[2 * blockIdx.x + 1] = b[1]; a[1] = b[1] = 1; }""")
    out = np.zeros(6, F)
    launch((3,), (1,), (out,), shared=8)
    assert np.isnan(out).all()


def test_shared_memory_is_declared_in_many_ways() -> None:
    launch = kernel(
        """
        #include <cuda_bf16.h>
        struct Pair { float a; int b; };
        __constant__ float table[3] = {1, 2, 4};
        template <class T> __device__ T* row(T (*rows)[8], int i) { return rows[i]; }
        __device__ int next(int i) {
            __shared__ int seen[8];
            seen[i] = i;
            __syncthreads();
            return seen[(i + 1) % 8];
        }
        template <class T, int N> __global__ void k(T* x) {
            __shared__ __align__(16) __nv_bfloat16 low[2][N];
            static __shared__ Pair pairs[N], *first;
            volatile __shared__ int count;
            __shared__ T rows[sizeof(T)][8];
            extern __shared__ __align__(128) unsigned char raw[];
            T* kept = reinterpret_cast<T*>(raw) + N;
            int i = threadIdx.x;
            if (i == 0) { count = N; first = pairs; }
            low[1][i] = __float2bfloat16(i);
            pairs[i] = {(float)i, i};
            kept[i] = row(rows, 3)[i] = table[i % 3];
            __syncthreads();
            x[i] = (float)low[1][i] + first[i].b + count + kept[i] + rows[3][i] + next(i);
        }""",
        "k<double, 8>",
    )
    x, i = np.zeros(8), np.arange(8)
    statistics = launch((1,), (8,), (x,), shared=2 * 8 * 8, seed=1)
    np.testing.assert_array_equal(x, 2 * i + 8 + 2 * np.array([1, 2, 4])[i % 3] + (i + 1) % 8)
    assert statistics.static_shared == 32 + 64 + 8 + 4 + 512 + 32


# --- warps --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", SEEDS)
def test_shuffles(seed: int) -> None:
    launch = kernel("""extern "C" __global__ void k(const float* x, float* y, int width) {
        int i = threadIdx.x;
        float v = x[i];
        y[i] = __shfl_sync(~0u, v, 3, width);
        y[32 + i] = __shfl_up_sync(~0u, v, 2, width);
        y[64 + i] = __shfl_down_sync(~0u, v, 2, width);
        y[96 + i] = __shfl_xor_sync(~0u, v, 5, width);
        if (i < 16) y[128 + i] = __shfl_xor_sync(0xffffu, v, 1);
        else y[128 + i] = __shfl_sync(0xffff0000u, v, 31);
    }""")
    x, i = RNG(1).standard_normal(32).astype(F), np.arange(32)
    for width in (8, 32):
        y, first = np.zeros((5, 32), F), i // width * width
        launch((1,), (32,), (x, y, I(width)), seed=seed)
        up, down = np.where(i - 2 < first, i, i - 2), np.where(i + 2 >= first + width, i, i + 2)
        for row, lanes in enumerate((first + 3, up, down, i ^ 5, np.where(i < 16, i ^ 1, 31))):
            np.testing.assert_array_equal(y[row], x[lanes])


def test_votes_and_reductions() -> None:
    launch = kernel("""extern "C" __global__ void k(const int* x, int* y) {
        int i = threadIdx.x, v = x[i];
        unsigned odd = 0xaaaaaaaau;
        y[i] = __ballot_sync(~0u, v > 0);
        if (i & 1) y[32 + i] = __any_sync(odd, v > 5) + 2 * __all_sync(odd, v > -100);
        y[64 + i] = __reduce_add_sync(~0u, v);
        y[96 + i] = __reduce_max_sync(~0u, v) - __reduce_min_sync(~0u, v);
        y[128 + i] = __reduce_max_sync(~0u, (unsigned)v);
        __syncwarp();
    }""")
    x, y = RNG(2).integers(-9, 9, 32).astype(I), np.zeros((5, 32), I)
    launch((1,), (32,), (x, y))
    assert y[0, 0].view(U) == sum(1 << i for i in range(32) if x[i] > 0)
    assert (y[1, 1::2] == (x[1::2] > 5).any() + 2).all()
    assert (y[2] == x.sum()).all() and (y[3] == x.max() - x.min()).all()
    assert (y[4].view(U) == x.view(U).max()).all()


# --- a grid that waits for itself ---------------------------------------------------------------------------------

GRID = """
    __device__ void grid_barrier(unsigned* count, unsigned round) {
        __syncthreads();
        if (threadIdx.x == 0) {
            __threadfence();
            pyrnn_cpu_red_release_gpu_add(count, 1);
            while (pyrnn_cpu_ld_acquire_gpu(count) < (round + 1) * gridDim.x) pyrnn_spin_pause();
        }
        __syncthreads();
    }
    extern "C" __global__ void rotate(float* x, unsigned* count, int rounds) {
        __shared__ float kept[4];
        int i = blockIdx.x * blockDim.x + threadIdx.x, n = gridDim.x * blockDim.x;
        for (int r = 0; r < rounds; r++) {
            kept[threadIdx.x] = __ldcg(x + (i + 1) % n) + 1;
            grid_barrier(count, 2 * r);
            __stcg(x + i, kept[threadIdx.x]);
            grid_barrier(count, 2 * r + 1);
        }
    }"""


@pytest.mark.parametrize("seed", SEEDS)
def test_blocks_of_a_cooperative_launch_wait_for_each_other(seed: int) -> None:
    x, count = np.arange(20, dtype=F), np.zeros(1, U)
    kernel(GRID, "rotate")((5,), (4,), (x, count, I(7)), cooperative=True, seed=seed)
    np.testing.assert_array_equal(x, (np.arange(20) + 7) % 20 + 7)
    assert count[0] == 14 * 5


def test_a_block_may_run_far_ahead_of_another() -> None:
    launch = kernel("""extern "C" __global__ void k(unsigned* flags, float* x, float* y) {
        unsigned block = blockIdx.x;
        if (threadIdx.x == 0) pyrnn_cpu_st_release_gpu(flags + block, 1);
        while (!pyrnn_cpu_ld_acquire_gpu(flags + 1 - block)) {}
        for (int i = 0; i < 100 * block; i++) __syncthreads();
        if (block) *x = 1; else *y = *x; }""")
    seen = set()
    for seed in range(100):
        y = np.full(1, np.nan, F)
        launch((2,), (64,), (np.zeros(2, U), np.zeros(1, F), y), cooperative=True, seed=seed)
        seen.add(float(y[0]))
    assert seen == {0, 1}


def test_a_warp_may_run_far_ahead_of_another() -> None:
    launch = kernel("""extern "C" __global__ void k(float* x, float* y) {
        int warp = threadIdx.x / 32;
        __syncthreads();
        for (int i = 0; i < 100 * warp; i++) __syncwarp();
        if (warp) *x = 1; else if (threadIdx.x == 0) *y = *x; }""")
    seen = set()
    for seed in range(100):
        y = np.full(1, np.nan, F)
        launch((1,), (64,), (np.zeros(1, F), y), seed=seed)
        seen.add(float(y[0]))
    assert seen == {0, 1}


def test_blocks_of_a_normal_launch_can_not() -> None:
    with pytest.raises(EmulatorError, match=r"deadlock.*one block after the other"):
        kernel(GRID, "rotate")((5,), (4,), (np.zeros(20, F), np.zeros(1, U), I(7)))


# --- what is wrong is told ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("if (i < 40) return; __syncthreads();", r"stuck:(?s:.*)40 threads, first \(0, 0, 0\), ended"),
        ("if (i < 40) __syncthreads(); else while (!*(volatile float*)x) pyrnn_spin_pause();", "24 threads.*spins"),
        ("if (i < 40) __syncthreads();\nelse __syncthreads();", r"divergent __syncthreads\(\)"),
        (
            "if (i % 32) __shfl_sync(~0u, i, 0);",
            "62 threads.*waits in an operation of its warp, kernel.cu:1, with mask",
        ),
        ("if (i % 2) __shfl_sync(~0u, i, 0); else __ballot_sync(~0u, i);", "stuck"),
        ("__shfl_sync(0xffffu, i, 0);", "lane .* is not in the mask 0x0000ffff"),
        ("if (i < 16) __shfl_down_sync(0xffffu, i, 8);", "reads from lane .*, which is not in mask"),
        ("while (atomicCAS((int*)x + 1, 1, 2) != 1) __nanosleep(20);", "deadlock"),
        ("__shared__ float s[64]; s[i + (int)x[2] + 1] = 0;", "kernel.cu:1: index 64 is out of its array"),
        ("__shared__ float s[64]; float* p = s; p[i + 1] = 0;", "written outside of s, at byte 256 of 256"),
        ("extern __shared__ float s[]; s[i - 1] = 0;", "outside of the dynamic shared memory, at byte -4 of 256"),
        ("*(float2*)(x + 1) = make_float2(0, 0);", "misaligned"),
        ("assert(i < 60);", r"thread \(6\d, 0, 0\), kernel.cu:1: assert\(i < 60\)"),
        ("pyrnn_cpu_cp_async_16(x + 4, x + 1);", "cp.async.*aligned"),
        ("__shared__ float s[64 * 1024]; s[i] = 0;", "262144 bytes of static shared memory"),
    ],
)
def test_errors_say_what_and_where(body: str, message: str, seed: int) -> None:
    launch = kernel(f'extern "C" __global__ void k(float* x) {{ int i = threadIdx.x; {body} }}')
    x = np.zeros(16, F)
    with pytest.raises(EmulatorError, match=f"^k: (?s:.*){message}"):
        launch((2,), (64,), (x,), shared=256, seed=seed)
    fine = kernel('extern "C" __global__ void fine(int* x) { __syncthreads(); atomicAdd(x, 1); }', "fine")
    count = np.zeros(1, I)
    fine((2,), (64,), (count,), seed=seed)
    assert count[0] == 128


def test_a_last_warp_that_is_not_whole_has_no_lanes_beyond() -> None:
    launch = kernel('extern "C" __global__ void k(int* x) { __any_sync(*x, 1); }')
    with pytest.raises(EmulatorError, match="names lanes that the block, of 40 threads, does not have"):
        launch((1,), (40,), (np.full(1, -1, I),))


def test_arguments_are_held_against_the_parameters() -> None:
    launch = kernel("""struct S { int a; double b; };
        extern "C" __global__ void k(float* x, int n, float f, const S s) { *x = n + f + s.a + s.b; }""")
    S = np.dtype([("a", I), ("b", D)], align=True)
    x, s = np.zeros(1, F), np.array((3, 4.5), S)[()]
    launch((1,), (1,), (x, I(1), F(2), s))
    assert x[0] == 10.5
    launch((1,), (1,), (x, np.int64(-1), F(2), s))  # CuPy's own type for a Python int: its low bytes are the number
    assert x[0] == 8.5
    for args, message in [
        ((x, I(1), D(2), s), "argument 2: expected a floating-point number of 4 bytes, got float64"),
        ((x, np.int64(2**40), F(2), s), "argument 1: expected an integer of 4 bytes"),
        ((x, np.int16(1), F(2), s), "argument 1: expected an integer of 4 bytes"),
        ((np.zeros(1), I(1), F(2), s), "argument 0: expected an array of float32, got float64"),
        ((x, I(1), F(2), F(1)), "argument 3: expected a structure of 16 bytes"),
        ((x, I(1), F(2)), "expected 4 arguments, got 3"),
    ]:
        with pytest.raises(TypeError, match=f"^k(: |, ){message}"):
            launch((1,), (1,), args)


def test_what_is_no_kernel_is_the_compilers_word() -> None:
    with pytest.raises(CompileError, match=r"kernel\.cu:2:.*nonsense"):
        kernel('\nextern "C" __global__ void k() { nonsense(); }')
    with pytest.raises(CompileError, match="'other' was not declared"):
        kernel('extern "C" __global__ void k() { }', "other")
    with pytest.raises(CompileError, match=r"kernel\.cu:1:"):
        kernel('__shared__ float s[3];  // outside of a function\nextern "C" __global__ void k() { s[0] = 1; }')


# --- numbers ------------------------------------------------------------------------------------------------------


def test_bfloat16_is_rounded_to_the_nearest_even() -> None:
    torch = pytest.importorskip("torch")
    launch = kernel("""#include <cuda_bf16.h>
        extern "C" __global__ void k(const float* x, unsigned short* y, float* z, int n) {
            int i = blockIdx.x * blockDim.x + threadIdx.x;
            if (i >= n) return;
            __nv_bfloat16 v = __float2bfloat16(x[i]);
            y[i] = __bfloat16_as_ushort(v);
            z[i] = __bfloat1622float2(__floats2bfloat162_rn(0, x[i])).y - __bfloat162float(v);
        }""")
    words = RNG(3).integers(0, 2**32, 4096, dtype=U)
    words[:6] = 0x3F808000, 0x3F818000, 0x7F7FFFFF, 0x7F800000, 0xFF800000, 0x80000001
    x = words.view(F)
    x = x[~np.isnan(x)]
    y, z = np.zeros(len(x), np.uint16), np.zeros(len(x), F)
    launch((32,), (128,), (x, y, z, I(len(x))))
    np.testing.assert_array_equal(y, torch.from_numpy(x).bfloat16().view(torch.int16).numpy().view(np.uint16))
    assert (z[np.isfinite(z)] == 0).all()


FRAGMENTS = """
    #include <cuda_bf16.h>
    // Loads and stores as the PTX ISA draws them, in other words than the header's.
    extern "C" __global__ void bf16(const float* A, const float* B, const float* C, float* D) {
        int group = threadIdx.x / 4, thread = threadIdx.x % 4;
        auto pack = [](float low, float high) {
            __nv_bfloat162 v = __floats2bfloat162_rn(low, high);
            return *(unsigned*)&v;
        };
        unsigned a[4], b[2];
        for (int half = 0; half < 2; half++)
            for (int down = 0; down < 2; down++) {
                const float* p = A + (group + 8 * down) * 16 + 8 * half + 2 * thread;
                a[2 * half + down] = pack(p[0], p[1]);
            }
        for (int half = 0; half < 2; half++) {
            const float* p = B + (8 * half + 2 * thread) * 8 + group;
            b[half] = pack(p[0], p[8]);
        }
        float c[4], d[4];
        for (int i = 0; i < 4; i++) c[i] = C[(group + i / 2 * 8) * 8 + 2 * thread + i % 2];
        pyrnn_cpu_mma_m16n8k16_bf16(d, a, b, c);
        for (int i = 0; i < 4; i++) D[(group + i / 2 * 8) * 8 + 2 * thread + i % 2] = d[i];
    }
    extern "C" __global__ void tf32(const float* A, const float* B, const float* C, float* D) {
        int group = threadIdx.x / 4, thread = threadIdx.x % 4;
        unsigned a[4], b[2];
        for (int half = 0; half < 2; half++)
            for (int down = 0; down < 2; down++)
                a[2 * half + down] = __float_as_uint(A[(group + 8 * down) * 8 + thread + 4 * half]);
        for (int half = 0; half < 2; half++) b[half] = __float_as_uint(B[(thread + 4 * half) * 8 + group]);
        float c[4];
        for (int i = 0; i < 4; i++) c[i] = C[(group + i / 2 * 8) * 8 + 2 * thread + i % 2];
        pyrnn_cpu_mma_m16n8k8_tf32(c, a, b, c);
        for (int i = 0; i < 4; i++) D[(group + i / 2 * 8) * 8 + 2 * thread + i % 2] = c[i];
    }"""


@pytest.mark.parametrize(("name", "k", "bits"), [("bf16", 16, 16), ("tf32", 8, 13)])
@pytest.mark.parametrize("seed", SEEDS)
def test_tensor_cores(name: str, k: int, bits: int, seed: int) -> None:
    a, b, c = (RNG(4).standard_normal(shape).astype(F) for shape in ((16, k), (k, 8), (16, 8)))
    for operand in (a, b):  # leave the bits that the format has
        operand.view(U)[...] &= U(2**32 - 2**bits)
    d = np.zeros((16, 8), F)
    kernel(FRAGMENTS, name)((1,), (32,), (a, b, c, d), seed=seed)
    np.testing.assert_allclose(d, a.astype(D) @ b + c, atol=1e-5)


@pytest.mark.parametrize("turned", [False, True])
def test_matrices_are_loaded_as_fragments(turned: bool) -> None:
    source = f"""extern "C" __global__ void k(const unsigned short* x, unsigned* y) {{
        __shared__ alignas(16) unsigned short s[32][24];
        for (int j = 0; j < 8; j++) s[threadIdx.x][j] = x[threadIdx.x * 8 + j];
        __syncwarp();
        unsigned r[4];
        pyrnn_cpu_ldmatrix_x4(r, s[threadIdx.x], {str(turned).lower()});
        for (int m = 0; m < 4; m++) y[m * 32 + threadIdx.x] = r[m];
    }}"""
    x, y = np.arange(256, dtype=np.uint16).reshape(4, 8, 8), np.zeros((4, 32), U)
    kernel(source)((1,), (32,), (x, y))
    fragments = (x.swapaxes(1, 2) if turned else x).reshape(4, 32, 2)  # lane l has the l-th pair of each
    np.testing.assert_array_equal(y, np.ascontiguousarray(fragments).view(U)[..., 0])


def test_rounding_goes_to_the_nearest() -> None:
    launch = kernel("""extern "C" __global__ void k(const float* x, unsigned* y) {
        y[2 * threadIdx.x] = pyrnn_cpu_two_bf16(x[threadIdx.x], -x[threadIdx.x]);
        y[2 * threadIdx.x + 1] = pyrnn_cpu_tf32(x[threadIdx.x]);
    }""")
    words = np.array([0x3F808000, 0x3F818000, 0x3F801000, 0x3F800FFF, 0x7F7FFFFF, 0x7F800000], U)
    y = np.zeros((len(words), 2), U)
    launch((1,), (len(words),), (words.view(F), y))
    assert [hex(word) for word in y[:, 0] & 0xFFFF] == ["0x3f80", "0x3f82", "0x3f80", "0x3f80", "0x7f80", "0x7f80"]
    assert ((y[:, 0] >> 16) == (y[:, 0] & 0xFFFF | 0x8000)).all()
    assert [hex(word) for word in y[:, 1]] == [
        "0x3f808000", "0x3f818000", "0x3f802000", "0x3f800000", "0x7f800000", "0x7f800000"
    ]  # fmt: skip


def test_tf32_does_not_read_the_low_bits() -> None:
    a, b, c = np.full((16, 8), np.nextafter(F(2), F(0))), np.ones((8, 8), F), np.zeros((16, 8), F)
    kernel(FRAGMENTS, "tf32")((1,), (32,), (a, b, c, c))
    assert (c == 8 * (2 - 2**-10)).all()


ASYNC = """extern "C" __global__ void k(const float4* x, float* y, int valid) {
    extern __shared__ float4 s[];
    int i = threadIdx.x;
    for (int stage = 0; stage < 2; stage++) {
        pyrnn_cpu_cp_async_16(s + 32 * stage + i, x + 32 * stage + i, stage ? 4 * valid : 16);
        pyrnn_cpu_cp_async_commit();
    }
    FIRST
    y[i] = s[i].x;
    pyrnn_cpu_cp_async_wait(0);
    y[32 + i] = s[32 + i].x + s[32 + i].w;
}"""


def test_asynchronous_copies() -> None:
    x = RNG(5).standard_normal((64, 4)).astype(F)
    for seed in SEEDS:
        y = np.zeros(64, F)
        launch = kernel(ASYNC, options=("-DFIRST=pyrnn_cpu_cp_async_wait(1);",))
        launch((1,), (32,), (x, y, I(2)), shared=1024, seed=seed)
        np.testing.assert_array_equal(y[:32], x[:32, 0])
        np.testing.assert_array_equal(y[32:], x[32:, 0])  # the rest of the 16 bytes is zeros
    kernel(ASYNC, options=("-DFIRST=",))((1,), (32,), (x, y, I(2)), shared=1024, seed=1)
    assert np.isnan(y[:32]).any(), "a missing wait"


def test_small_functions() -> None:
    launch = kernel("""extern "C" __global__ void k(float* f, unsigned* u) {
        f[0] = rsqrtf(4.f); f[1] = exp2f(3); f[2] = __fdividef(1, 4); f[3] = __expf(0); f[4] = fmaf(2, 3, 4);
        f[5] = max(1.f, __int_as_float(0x7fc00000)); f[6] = min(2, 3.5f);
        f[7] = __saturatef(7); f[8] = __uint_as_float(0x40000000);
        float4 v = make_float4(1, 2, 3, 4); f[9] = v.w + sizeof(uint4);
        u[0] = __umulhi(0xffffffffu, 16); u[1] = __float_as_uint(1); u[2] = __popc(7) + __clz(1) + __ffs(8);
        u[3] = atomicMax(u + 4, 9u); u[5] = atomicCAS(u + 4, 9u, 5u); u[6] = atomicExch(u + 4, 1u);
    }""")
    f, u = np.zeros(10, F), np.zeros(8, U)
    launch((1,), (1,), (f, u))
    np.testing.assert_array_equal(f, [0.5, 8, 0.25, 1, 10, 1, 2, 1, 2, 20])
    np.testing.assert_array_equal(u, [15, 0x3F800000, 38, 0, 1, 9, 5, 0])


# --- other ways to build ------------------------------------------------------------------------------------------


def test_fibers_without_assembly_do_the_same() -> None:
    x, count = np.arange(20, dtype=F), np.zeros(1, U)
    launch = kernel(GRID, "rotate", options=["-DPYRNN_UCONTEXT=1"])
    launch((5,), (4,), (x, count, I(7)), cooperative=True, seed=1)
    np.testing.assert_array_equal(x, (np.arange(20) + 7) % 20 + 7)


@pytest.mark.parametrize("index", [0, 64])
def test_the_address_sanitizer_watches_dynamic_shared_memory(index: int) -> None:
    code = f"""
import sys; sys.path.insert(0, {str(CUDA)!r})
import numpy as np
from emulator import Module
k = Module('''extern "C" __global__ void k(float* x, int i) {{
    extern __shared__ float s[]; s[threadIdx.x] = 1; __syncthreads(); x[threadIdx.x] = s[i + threadIdx.x % 4];
    }}''', sanitize=True).kernel("k")
x = np.zeros(64, "f")
k.launch((3,), (64,), (x, np.int32({index})), shared=256)
assert (x == 1).all()
"""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=emulator.sanitizer_environment(), capture_output=True, text=True)
    if "cannot be preloaded" in done.stderr:
        pytest.skip("the compiler has no address sanitizer")
    assert (done.returncode == 0) == (index == 0), done.stderr
    assert ("heap-buffer-overflow" in done.stderr) == (index == 64), done.stderr


# --- the stand-in for CuPy ----------------------------------------------------------------------------------------


@pytest.fixture
def cp() -> Iterator[Any]:
    with fake_cupy.installed(attributes={"MultiProcessorCount": 4}) as module:
        fake_cupy.transfers.reset()
        yield module


def test_it_is_what_import_finds(cp: Any) -> None:
    import cupy
    import cupy.cublas
    import cupyx
    from cupy.cuda import runtime

    assert cupy is cp and cupy.cuda.is_available() and runtime.getDeviceCount() == 1
    assert cupy.ndarray.__module__ == "cupy" and not issubclass(cupy.ndarray, np.ndarray)
    a = cupy.zeros(3)
    cupyx.scatter_add(a, cupy.array([0, 0]), 1)
    assert a.tolist() == [2, 0, 0]
    for name in ("errstate", "insert", "no_such_name", "_core"):  # not CuPy's, or not the stand-in's
        with pytest.raises(AttributeError, match=name):
            getattr(cupy, name)
    for name in ("setflags", "ctypes", "__index__", "__contains__"):
        assert not hasattr(a, name)


def test_nothing_comes_from_or_goes_to_the_host_in_silence(cp: Any) -> None:
    host, x = np.ones(3, F), cp.ones(3, F)
    for operation in (
        lambda: x + host, lambda: host + x, lambda: np.add(x, host), lambda: x == host, lambda: cp.exp(host),
        lambda: x.__iadd__(host), lambda: cp.concatenate([x, host]), lambda: cp.where(x > 0, x, host), lambda: x @ host,
        lambda: x.__add__([1, 2]), lambda: cp.exp([1.0]), lambda: np.asarray(x), lambda: np.array(x),
        lambda: range(x[0]), lambda: hash(x), lambda: x.astype(D, casting="safe"), lambda: x.sum(where=x > 0),
    ):  # fmt: skip
        with pytest.raises(TypeError):
            operation()
    with pytest.raises(TypeError, match=r"Implicit conversion to a NumPy array is not allowed. Please use `.get\(\)`"):
        np.asarray(x)
    with pytest.raises(ValueError, match="cannot be used for fill"):
        x[:] = host
    assert vars(fake_cupy.transfers) == {"to_device": 0, "to_host": 0, "launches": 0}


def test_copies_between_host_and_device_are_counted(cp: Any) -> None:
    counts = fake_cupy.transfers
    x = cp.asarray(np.arange(6, dtype=F))
    cp.array([1.0, 2.0]), cp.ascontiguousarray(np.ones(3)), x[[0, 1]], x[np.array([0])]
    assert counts.to_device == 5
    assert cp.asarray(x) is x and counts.to_device == 5
    cp.zeros((2, 3)), cp.full(3, 2.0), cp.arange(3), x[1:3], x * 2 + np.float32(1), x.sum(), cp.exp(x)
    assert counts.to_device == 5 and counts.to_host == 0
    x.get(), cp.asnumpy(x), x.sum().item(), float(x[0]), bool(x[1] > 0), int(x[2]), x.tolist(), repr(x)
    assert counts.to_host == 8
    x.nonzero(), x[x > 2]  # their sizes
    assert counts.to_host == 10


def test_arrays_compute_as_numpys(cp: Any) -> None:
    a, b = RNG(6).standard_normal((2, 4, 3)).astype(F)
    x, y = cp.asarray(a), cp.asarray(b)
    for function in (
        lambda p, q, m: p * q - 2 / p, lambda p, q, m: -p**2 // 1, lambda p, q, m: abs(p) ** 0.5 % q,
        lambda p, q, m: m.exp(p) + m.tanh(q), lambda p, q, m: m.concatenate([p, q], axis=1), lambda p, q, m: p @ q.T,
        lambda p, q, m: m.where(p > q, p, q.dtype.type(0)), lambda p, q, m: (p > 0) & ~(q > 0), lambda p, q, m: p.sum(),
        lambda p, q, m: m.take_along_axis(p, m.argsort(q, axis=1), axis=1), lambda p, q, m: p.reshape(2, -1).T.copy(),
        lambda p, q, m: m.einsum("ij,kj->ik", p, q), lambda p, q, m: m.linalg.norm(p), lambda p, q, m: np.exp(p),
        lambda p, q, m: m.stack([p, q]).mean(axis=(0, 2), keepdims=True), lambda p, q, m: np.concatenate([p, q]),
        lambda p, q, m: p[1:, ::2], lambda p, q, m: m.expand_dims(p, 1).astype(D), lambda p, q, m: p.max(axis=0),
        lambda p, q, m: m.maximum(p, 0, out=q.copy()),
    ):  # fmt: skip
        expected, found = function(a, b, np), function(x, y, cp)
        assert type(found) is cp.ndarray and found.dtype == expected.dtype and found.shape == expected.shape
        np.testing.assert_array_equal(found.get(), expected)
    assert isinstance(x.sum(), cp.ndarray) and x.sum().shape == ()
    assert isinstance(cp.allclose(x, x), cp.ndarray) and cp.allclose(x, x)
    assert cp.result_type(x, D) == D and cp.float32 is np.float32 and cp.pi == np.pi and cp.newaxis is None
    assert [part.shape for part in x] == [(3,)] * 4 and len(x) == 4


def test_arrays_are_written_in_place(cp: Any) -> None:
    x = cp.zeros((2, 3), F)
    rows, view = x[1], x.T
    x += 1
    rows *= 3
    x[0, 0][...] = 2  # an element is a view
    x[0, 1] = 7
    x[:, 2] = cp.arange(2)
    cp.add.at(x, (cp.array([0, 0]), cp.array([0, 0])), 10)
    cp.put_along_axis(x, cp.array([[1], [1]]), cp.array([[5], [6]], F), axis=1)
    np.testing.assert_array_equal(view.get().T, [[22, 5, 0], [3, 6, 1]])
    assert x.flags.owndata and not view.flags.owndata and view.flags.f_contiguous and view.data.ptr == x.data.ptr
    assert rows.data.ptr == x.data.ptr + 12 == (x.data + 12).ptr
    part = cp.ndarray((2,), F, memptr=x.data + 4)
    part.fill(9)
    np.testing.assert_array_equal(x.get(), [[22, 9, 9], [3, 6, 1]])
    for twin in (copy.deepcopy(x), copy.copy(x), pickle.loads(pickle.dumps(x))):
        assert type(twin) is cp.ndarray and (twin == x).all() and twin.data.ptr != x.data.ptr


@pytest.mark.parametrize(("dtype", "name"), [(F, "float"), (D, "double")])
def test_what_is_read_beside_an_array_is_nan(cp: Any, dtype: type, name: str) -> None:
    kernel = cp.RawKernel(
        f'extern "C" __global__ void k({name}* x, {name}* y) {{ y[0] = 0 * x[-1]; y[1] = 0 * x[2]; }}', "k"
    )
    x, y = cp.ones(2, dtype), cp.ones(2, dtype)
    kernel((1,), (1,), (x, y))
    assert cp.isnan(y).all()


def test_new_memory_is_nan_and_results_are_contiguous(cp: Any) -> None:
    x = cp.empty((3, 4), F)
    assert cp.isnan(x).all() and x.data.ptr % 512 == 0
    assert (x.T + 0).flags.c_contiguous and x.T.copy(order="K").flags.f_contiguous
    assert cp.empty_like(x.T).flags.f_contiguous and cp.asfortranarray(x).strides == (4, 12)


def test_dlpack_says_where_the_memory_is(cp: Any) -> None:
    x = cp.arange(4)
    assert x.__dlpack_device__() == (1, 0)
    host = np.from_dlpack(x)
    assert host.ctypes.data == x.data.ptr == x.__cuda_array_interface__["data"][0]
    back = cp.from_dlpack(host)
    back += 1
    assert x.tolist() == [1, 2, 3, 4] and back.data.ptr == x.data.ptr


def test_raw_kernels_take_what_cupys_take(cp: Any) -> None:
    code = """struct S { int n; float a; };
        template <typename T> __global__ void scale(T* x, int n, T a) {
            int i = blockIdx.x * blockDim.x + threadIdx.x; if (i < n) x[i] *= a * FACTOR; }
        extern "C" __global__ void by(
            float* x, const S s, const float* none, const float* b, long long n, bool c, double d) {
            extern __shared__ float kept[];
            kept[threadIdx.x] = b[threadIdx.x];
            if (!none && c && n == 7) x[threadIdx.x] = s.n + s.a + kept[threadIdx.x] + d;
        }"""
    expressions = ("scale<float>", "scale<double>")
    module = cp.RawModule(code=code, options=("-std=c++17", "-DFACTOR=2"), name_expressions=expressions)
    for dtype, name in zip((F, D), expressions, strict=True):
        x = cp.arange(5, dtype=dtype)
        module.get_function(name)((1,), (32,), (x, 5, dtype(3)))
        assert x.tolist() == [0, 6, 12, 18, 24]
    s, b = np.zeros(1, [("n", I), ("a", F)]), cp.arange(8, dtype=F)
    s[0] = 3, 0.5
    for given in (s, s[0]):  # numpy's array of one and its scalar; ctypes structures CuPy does not take
        x = cp.empty(4, F)
        module.get_function("by")((1,), (4,), (x, given, None, b.data + 16, 7, True, 1.0), shared_mem=16)
        assert x.tolist() == [8.5, 9.5, 10.5, 11.5]
    assert fake_cupy.transfers.launches == 4
    launch = module.get_function("scale<float>")
    with pytest.raises(TypeError, match="argument 2: expected a floating-point number of 4 bytes, got float64"):
        launch((1,), (32,), (x, 4, 3.0))  # a Python float is a double
    with pytest.raises(TypeError, match=r"numpy.ndarray of shape \(4,\) as a kernel parameter"):
        launch((1,), (32,), (np.zeros(4, F), 4, F(3)))
    with pytest.raises(TypeError, match="Unsupported type"):
        launch((1,), (32,), (x, "4", F(3)))
    with pytest.raises(EmulatorError, match="an array of 16 bytes was written at byte 16"):
        launch((1,), (32,), (x, 5, F(3)))
    with pytest.raises(cp.cuda.driver.CUDADriverError, match="named symbol not found"):
        cp.RawModule(code="__global__ void k() {}").get_function("k")
    with pytest.raises(cp.cuda.compiler.CompileException, match="nonsense"):
        cp.RawKernel('extern "C" __global__ void k() { nonsense; }', "k")((1,), (1,), ())


def test_shared_memory_has_its_limits(cp: Any) -> None:
    source = (
        """extern "C" __global__ void k(int* x, int n) { extern __shared__ int s[]; s[n - 1] = 3; *x = s[n - 1]; }"""
    )
    kernel, x = cp.RawKernel(source, "k"), cp.zeros(1, I)
    size = cp.cuda.Device().attributes["MaxSharedMemoryPerBlockOptin"]
    with pytest.raises(cp.cuda.driver.CUDADriverError, match="INVALID_VALUE"):
        kernel((1,), (1,), (x, size // 4), shared_mem=size)
    kernel.max_dynamic_shared_size_bytes = size
    kernel((1,), (1,), (x, size // 4), shared_mem=size)
    assert x.item() == 3 and kernel.attributes["max_dynamic_shared_size_bytes"] == size
    with pytest.raises(cp.cuda.driver.CUDADriverError, match="INVALID_VALUE"):
        kernel.max_dynamic_shared_size_bytes = size + 1


def test_a_cooperative_grid_is_cut_to_what_is_resident(cp: Any) -> None:
    module = cp.RawModule(code=GRID, enable_cooperative_groups=True)
    kernel = module.get_function("rotate")
    fit = cp.cuda.driver.occupancyMaxActiveBlocksPerMultiprocessor(kernel.kernel.ptr, 4, 100 << 10)
    assert fit == 2 and cp.cuda.Device().attributes["MultiProcessorCount"] == 4
    kernel.max_dynamic_shared_size_bytes = 100 << 10
    x, count = cp.arange(32, dtype=F), cp.zeros(1, U)
    kernel((8,), (4,), (x, count, 3), shared_mem=100 << 10)
    np.testing.assert_array_equal(x.get(), (np.arange(32) + 3) % 32 + 3)
    with pytest.warns(UserWarning, match="grid size will be reduced from 9 to 8"):
        kernel((9,), (4,), (x, cp.zeros(1, U), 1), shared_mem=100 << 10)
    with pytest.raises(ValueError, match="exceeds the limit"):
        kernel((9, 2), (4,), (x, count, 1), shared_mem=100 << 10)


def test_gemm(cp: Any) -> None:
    a, b, c = (RNG(7).standard_normal(shape).astype(F) for shape in ((4, 3), (5, 3), (4, 5)))
    x, y, z = map(cp.asarray, (a, b, c))
    from cupy import cublas

    product = cublas.gemm("N", "T", x, y)
    np.testing.assert_allclose(product.get(), a @ b.T, rtol=1e-6)
    assert product.flags.f_contiguous
    assert cublas.gemm("N", "T", x, y, out=z, alpha=2, beta=0.5) is z
    np.testing.assert_allclose(z.get(), 2 * a @ b.T + 0.5 * c, rtol=1e-5)
    cp.matmul(x, y.T, out=z)
    np.testing.assert_allclose(z.get(), a @ b.T, rtol=1e-6)


def test_graphs_run_what_was_captured_and_nothing_before(cp: Any) -> None:
    double = cp.RawKernel('extern "C" __global__ void k(float* x) { x[threadIdx.x] *= 2; }', "k")
    x, y = cp.arange(4, dtype=F), cp.zeros(4, F)
    stream = cp.cuda.Stream(non_blocking=True)
    with stream:
        stream.begin_capture()
        double((1,), (4,), (x,))
        z = x + 1
        y[...] = z
        cp.add(y, x, out=y)
        assert cp.cuda.get_current_stream().is_capturing() and fake_cupy.transfers.launches == 0
        for operation in (z.get, lambda: cp.asarray(np.ones(3)), lambda: bool(x[0]), stream.synchronize):
            with pytest.raises(cp.cuda.runtime.CUDARuntimeError, match="not permitted when stream is capturing"):
                operation()
        graph = stream.end_capture()
    assert cp.cuda.get_current_stream() is cp.cuda.Stream.null
    assert x.tolist() == [0, 1, 2, 3] and np.isnan(z.get()).all() and y.tolist() == [0, 0, 0, 0]
    graph.launch()
    assert x.tolist() == [0, 2, 4, 6] and y.tolist() == [1, 5, 9, 13]
    graph.launch(stream=stream)
    assert x.tolist() == [0, 4, 8, 12] and z.tolist() == [1, 5, 9, 13]
    del z
    with pytest.raises(RuntimeError, match="arrays are gone"):
        graph.launch()
    with pytest.raises(RuntimeError, match="cannot capture on the default"):
        cp.cuda.Stream.null.begin_capture()


def test_events_streams_and_the_pool(cp: Any) -> None:
    start, end = cp.cuda.Event(), cp.cuda.get_current_stream().record()
    start.record()
    end.record()
    end.synchronize()
    assert cp.cuda.get_elapsed_time(start, end) >= 0 and end.done
    before = cp.get_default_memory_pool().used_bytes()
    x = cp.zeros(1000)
    assert cp.get_default_memory_pool().used_bytes() == before + x.nbytes
    del x
    assert cp.get_default_memory_pool().used_bytes() == before
    assert cp.cuda.Device(0).compute_capability == "90"


def test_random_numbers(cp: Any) -> None:
    x = cp.random.default_rng(3).standard_normal((2, 3), dtype=F)
    np.testing.assert_array_equal(x.get(), RNG(3).standard_normal((2, 3), dtype=F))
    assert cp.random.uniform(size=4).shape == (4,) and fake_cupy.transfers.to_device == 0


def test_pyrnns_own_array_code_runs_on_it(cp: Any) -> None:
    class Plain(pyrnn.Backend):  # the basic family and the updates, written against xp
        name, xp, array_type = "cupy", cp, cp.ndarray

    a, w = (RNG(8).standard_normal(shape).astype(F) for shape in ((5, 3), (4, 3)))
    x, weight = pyrnn.Tensor(cp.asarray(a)), pyrnn.Tensor(cp.asarray(w), requires_grad=True)
    target = np.array([0, 3, 1, 2, 2])
    results = []
    for inputs, parameter, classes, backend in (
        (x, weight, cp.asarray(target), Plain()),
        (pyrnn.Tensor(a), pyrnn.Tensor(w, requires_grad=True), target, "reference"),
    ):
        with pyrnn.use_backend(backend):
            loss = pyrnn.cross_entropy(pyrnn.linear(inputs, parameter).tanh() * 2 + 1, targets=classes).mean()
            loss.backward()
        results.append((loss, parameter.grad))
    (loss, grad), (expected, expected_grad) = results
    assert type(grad) is cp.ndarray
    np.testing.assert_allclose(float(loss), float(expected), rtol=1e-6)
    np.testing.assert_allclose(grad.get(), expected_grad, rtol=1e-5)


# --- NVRTC without a device ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("arch", ["sm_80", "sm_90", "sm_100"])
def test_nvrtc_tells_what_kernels_need(arch: str) -> None:
    if nvrtc.unavailable():
        pytest.skip(nvrtc.unavailable())
    source = """#include <cuda_bf16.h>
        template <int N> __global__ void __launch_bounds__(64, BLOCKS) many(float* x, int n) {
            __shared__ float s[64];
            float a[N];
            #pragma unroll
            for (int i = 0; i < N; i++) a[i] = x[32 * i];
            s[threadIdx.x] = a[0];
            __syncthreads();
            #pragma unroll 1
            for (int j = 0; j < n; j++) {
                #pragma unroll
                for (int i = 0; i < N; i++) a[i] = fmaf(a[i], a[(i + 1) % N], s[threadIdx.x ^ 1]);
            }
            #pragma unroll
            for (int i = 0; i < N; i++) x[32 * i] = __bfloat162float(__float2bfloat16(a[i]));
        }
        extern "C" __global__ void simple(float* x) { x[threadIdx.x] += 1; }"""
    names = ("many<8>", "many<120>")
    few = nvrtc.compile(source, arch, ("-DBLOCKS=16",), names=names)
    assert few.cubin[:4] == b"\x7fELF" and set(few.kernels) == {*names, "simple"}
    assert few.kernels["simple"].registers < few.kernels["many<8>"].registers < few.kernels["many<120>"].registers <= 64
    assert few.kernels["many<8>"].shared == 256 and few.kernels["simple"].shared == 0
    assert few.kernels["many<8>"].spill_stores == few.kernels["many<8>"].stack == 0
    spilt = few.kernels["many<120>"]
    assert spilt.spill_loads and spilt.spill_stores and spilt.stack
    enough = nvrtc.compile(source, arch, ("-DBLOCKS=1",), names=names).kernels["many<120>"]
    assert enough.registers > 120 and enough.spill_loads == enough.spill_stores == 0


def test_nvrtc_says_what_is_wrong() -> None:
    if nvrtc.unavailable():
        pytest.skip(nvrtc.unavailable())
    for source, names, message in (
        ("__global__ void k() { nonsense(); }", (), r'kernel.cu\(1\): error: identifier "nonsense" is undefined'),
        ("template <int N> __global__ void k() {}", ("other<3>",), "other"),
        (
            'extern "C" __global__ void k() { asm volatile("no.such.instruction;"); }',
            (),
            "Not a name of any known instruction",
        ),
    ):
        with pytest.raises(nvrtc.CompileError, match=message):
            nvrtc.compile(source, names=names)
