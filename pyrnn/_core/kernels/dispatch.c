/* Picks the table of kernels for this CPU. Built for the oldest CPU of the architecture. */
#include <string.h>
#ifdef _OPENMP
#include <omp.h>
#endif

#include "pyrnn_kernels.h"

#if defined(__x86_64__)
extern const pyrnn_kernels pyrnn_kernels_v2, pyrnn_kernels_v3, pyrnn_kernels_v4;

static int has_v2(void) { return __builtin_cpu_supports("sse4.2"); }
static int has_v3(void) { return has_v2() && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }
static int has_v4(void) {
    return has_v3() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vl");
}

static const struct { const pyrnn_kernels *table; int (*present)(void); } LADDER[] = {
    {&pyrnn_kernels_v4, has_v4}, {&pyrnn_kernels_v3, has_v3}, {&pyrnn_kernels_v2, has_v2}};
#else
extern const pyrnn_kernels pyrnn_kernels_base; /* NEON on Arm, plain vectors elsewhere */

static int always(void) { return 1; }

static const struct { const pyrnn_kernels *table; int (*present)(void); } LADDER[] = {
    {&pyrnn_kernels_base, always}};
#endif

const pyrnn_kernels *pyrnn_kernels_at(const char *level) {
#if defined(__x86_64__)
    __builtin_cpu_init();
#endif
    for (size_t i = 0; i < sizeof LADDER / sizeof *LADDER; i++)
        if ((!level || !strcmp(level, LADDER[i].table->level)) && LADDER[i].present()) return LADDER[i].table;
    return NULL;
}

#ifdef _OPENMP
int pyrnn_openmp(void) { return 1; }
int pyrnn_openmp_threads(void) { return omp_get_max_threads(); }
#else
int pyrnn_openmp(void) { return 0; }
int pyrnn_openmp_threads(void) { return 1; }
#endif
