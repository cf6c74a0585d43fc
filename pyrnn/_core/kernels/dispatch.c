/* Picks the table of kernels for this CPU. Built for the oldest CPU of the architecture. */
#include <string.h>
#ifdef _OPENMP
#include <omp.h>
#endif

#include "pyrnn_kernels.h"

#if defined(__x86_64__)
extern const pyrnn_kernels pyrnn_kernels_v2, pyrnn_kernels_v3, pyrnn_kernels_v4;

#define HAS(feature) (__builtin_cpu_supports(feature) != 0)
#if defined(__GNUC__) && !defined(__clang__) && __GNUC__ >= 12
static int has_v2(void) { return HAS("x86-64-v2"); }
static int has_v3(void) { return HAS("x86-64-v3"); }
static int has_v4(void) { return HAS("x86-64-v4"); }
#else /* which know no levels here: the features by which the levels' CPUs are told apart */
static int has_v2(void) { return HAS("sse4.2") && HAS("popcnt"); }
static int has_v3(void) { return has_v2() && HAS("avx2") && HAS("fma") && HAS("bmi") && HAS("bmi2"); }
static int has_v4(void) {
    return has_v3() && HAS("avx512f") && HAS("avx512bw") && HAS("avx512cd") && HAS("avx512dq") && HAS("avx512vl");
}
#endif

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
