/* What this machine gives at best, for peak.py: multiply-adds in registers, and memory read once.
 *
 * WIDTH is the bytes of a vector. The compiler makes one multiply-add of a * b + c where the instruction set has it. */
#include <pthread.h>
#include <stddef.h>
#include <time.h>

#define MOST 4096

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + 1e-9 * t.tv_nsec;
}

typedef struct {
    void (*work)(void *);
    int *waiting; /* threads that have not arrived yet: all begin together */
    double begin, end;
    long count;
    const void *data;
    double sink;
} task;

static void *run(void *given) {
    task *t = given;
    __atomic_sub_fetch(t->waiting, 1, __ATOMIC_ACQ_REL);
    while (__atomic_load_n(t->waiting, __ATOMIC_ACQUIRE) > 0)
        ;
    t->begin = now();
    t->work(t);
    t->end = now();
    return NULL;
}

/* Runs one task per thread and returns the seconds from the first begin to the last end; below 0: no threads. */
static double together(task *tasks, int threads) {
    pthread_t ids[MOST];
    int waiting = threads;
    for (int i = 0; i < threads; i++) tasks[i].waiting = &waiting;
    for (int i = 1; i < threads; i++)
        if (pthread_create(&ids[i], NULL, run, &tasks[i])) {
            __atomic_store_n(&waiting, 0, __ATOMIC_RELEASE);
            for (int j = 1; j < i; j++) pthread_join(ids[j], NULL);
            return -1;
        }
    run(&tasks[0]);
    for (int i = 1; i < threads; i++) pthread_join(ids[i], NULL);
    double begin = tasks[0].begin, end = tasks[0].end;
    for (int i = 1; i < threads; i++) {
        if (tasks[i].begin < begin) begin = tasks[i].begin;
        if (tasks[i].end > end) end = tasks[i].end;
    }
    return end - begin;
}

/* Twelve chains hide the latency of two units of four to six cycles; they and their factors fit 16 registers. */
#define CHAINS(f) f(0) f(1) f(2) f(3) f(4) f(5) f(6) f(7) f(8) f(9) f(10) f(11)
#define DECLARE(i) vector c##i = a * (i + 1);
#define STEP(i) c##i = c##i * a + b;
#define ADD(i) a += c##i;

#define MULTIPLY_ADD(name, type)                                                                                       \
    static void name(void *given) {                                                                                    \
        typedef type vector __attribute__((vector_size(WIDTH)));                                                       \
        task *t = given;                                                                                               \
        vector a = {0}, b = {0};                                                                                       \
        a += (type)0.999;                                                                                              \
        b += (type)0.001; /* the chains go to 1: nothing overflows or becomes denormal */                              \
        CHAINS(DECLARE)                                                                                                \
        for (long n = t->count; n > 0; n--) { CHAINS(STEP) }                                                           \
        CHAINS(ADD)                                                                                                    \
        for (size_t i = 0; i < WIDTH / sizeof(type); i++) t->sink += a[i];                                             \
    }
MULTIPLY_ADD(multiply_add_float, float)
MULTIPLY_ADD(multiply_add_double, double)

/* Returns GFLOP/s of `count` rounds a thread; below 0 if threads could not be started. */
double pyrnn_peak(int is_double, int threads, long count) {
    task tasks[MOST];
    for (int i = 0; i < threads; i++)
        tasks[i] = (task){.work = is_double ? multiply_add_double : multiply_add_float, .count = count};
    double seconds = together(tasks, threads);
    double lanes = WIDTH / (is_double ? sizeof(double) : sizeof(float));
    return 2e-9 * 12 * lanes * count * threads / seconds;
}

static void read_all(void *given) {
    typedef long long vector __attribute__((vector_size(WIDTH)));
    task *t = given;
    const vector *data = t->data;
    vector s0 = {0}, s1 = s0, s2 = s0, s3 = s0;
    for (long n = 0; n + 4 <= t->count; n += 4) {
        s0 ^= data[n];
        s1 ^= data[n + 1];
        s2 ^= data[n + 2];
        s3 ^= data[n + 3];
    }
    s0 ^= s1 ^ s2 ^ s3;
    for (size_t i = 0; i < WIDTH / sizeof(long long); i++) t->sink += s0[i];
}

/* Returns GB/s of reading `bytes` from `data`, which lies on a vector's boundary, a part for each thread. */
double pyrnn_bandwidth(int threads, const char *data, size_t bytes) {
    task tasks[MOST];
    long vectors = bytes / WIDTH / threads;
    for (int i = 0; i < threads; i++)
        tasks[i] = (task){.work = read_all, .count = vectors, .data = data + i * vectors * WIDTH};
    double seconds = together(tasks, threads);
    return 1e-9 * vectors * WIDTH * threads / seconds;
}
