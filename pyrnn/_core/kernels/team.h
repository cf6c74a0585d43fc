/* Threads: a team for one call, its barrier, and the state of the floating-point unit inside it. */
#ifndef PYRNN_TEAM_H
#define PYRNN_TEAM_H

#include <limits.h>
#include <sched.h>
#include <stdatomic.h>
#include <time.h>
#ifdef __linux__
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif
#ifdef _OPENMP
#include <omp.h>
#endif

/* Seconds at a barrier before a thread sleeps. At the first one others may still be waking up, or wait for this core. */
#define SPIN_FIRST 3e-4
#define SPIN_LATER 1e-4

typedef struct {
    atomic_int arrived, phase, sleepers;
    atomic_int late; /* whether a thread was kept off its core */
} barrier_t;

/* A thread's place in its team. */
typedef struct {
    int id, size;
    int spins; /* whether it spins at a barrier before it sleeps */
    barrier_t *barrier;
    double *slept;   /* seconds at the first barrier, and at all */
    uint64_t floats; /* the caller's floating-point state */
} member_t;

/* Calls to come that run on one thread, since in two calls running a thread of the team was kept off its core by other
   programs (in one it may just have woken up on a wrong core). Then the team is tried again: twice as many calls pass before
   the next try each time that it fails. Every result is the same to the bit on any number of threads, so this changes
   nothing but the time. */
static atomic_int crowded, suspected, patience;
#define MOST_PATIENCE 16
#define CROWDED_SHARE 0.3 /* of a call, in which a thread neither ran nor slept, or slept for one that came late */
#define LATE_BRIEF 2e-3   /* seconds that a call of some microseconds took */
#define MAX_CROWD 4       /* threads a core: more only cost memory */

static inline double clock_seconds(clockid_t clock) {
    struct timespec now;
    clock_gettime(clock, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}
static inline double seconds(void) { return clock_seconds(CLOCK_MONOTONIC); }

static inline void pause_cpu(void) {
#if defined(__x86_64__)
    _mm_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

/* Sleep until the phase is no longer the one given, or a while; and wake those who do. */
static inline void phase_sleep(barrier_t *b, int phase) {
#ifdef __linux__
    atomic_fetch_add(&b->sleepers, 1);
    syscall(SYS_futex, &b->phase, FUTEX_WAIT_PRIVATE, phase, NULL, NULL, 0);
    atomic_fetch_sub(&b->sleepers, 1);
#else
    (void)b, (void)phase;
    sched_yield();
#endif
}
static inline void phase_wake(barrier_t *b) {
#ifdef __linux__
    if (atomic_load(&b->sleepers)) syscall(SYS_futex, &b->phase, FUTEX_WAKE_PRIVATE, INT_MAX, NULL, NULL, 0);
#else
    (void)b;
#endif
}

/* Wait for the whole team. Spins, since a step of a layer takes microseconds; sleeps when that takes too long, as it does
   with more threads than free cores: the one that we wait for may need ours. */
static inline void team_wait(const member_t *me) {
    if (me->size == 1) return;
    barrier_t *b = me->barrier;
    const int phase = atomic_load(&b->phase);
    if (atomic_fetch_add(&b->arrived, 1) == me->size - 1) {
        atomic_store(&b->arrived, 0);
        atomic_store(&b->phase, phase + 1);
        phase_wake(b);
        return;
    }
    double until = 0; /* the clock is asked now and then: a pause takes 10 to 140 cycles */
    int spinning = me->spins;
    for (int pauses = 1; atomic_load_explicit(&b->phase, memory_order_acquire) == phase; pauses++) {
        if (spinning && pauses % 64 == 0) {
            const double now = seconds();
            if (!until) until = now + (phase ? SPIN_LATER : SPIN_FIRST);
            spinning = now <= until;
        }
        if (spinning) {
            pause_cpu();
        } else {
            const double begin = seconds();
            phase_sleep(b, phase);
            const double slept = seconds() - begin;
            me->slept[1] += slept;
            if (!phase) me->slept[0] += slept;
        }
    }
}

/* The part [first, last) of n things in blocks of `block` that falls to this thread. */
static inline void team_share(const member_t *me, ptrdiff_t n, ptrdiff_t block, ptrdiff_t *first, ptrdiff_t *last) {
    const ptrdiff_t blocks = (n + block - 1) / block;
    *first = blocks * me->id / me->size * block;
    *last = blocks * (me->id + 1) / me->size * block;
    if (*first > n) *first = n;
    if (*last > n) *last = n;
}

/* Denormals would slow the kernels down many times over, so they count as zero inside. */
static inline uint64_t denormals_off(void) {
#if defined(__x86_64__)
    const unsigned before = _mm_getcsr();
    _mm_setcsr(before | 0x8040); /* flush to zero, denormals are zero */
    return before;
#elif defined(__aarch64__)
    uint64_t before;
    __asm__ volatile("mrs %0, fpcr" : "=r"(before));
    __asm__ volatile("msr fpcr, %0" ::"r"(before | (1ull << 24)));
    return before;
#else
    return 0;
#endif
}

static inline void denormals_restore(uint64_t before) {
#if defined(__x86_64__)
    _mm_setcsr((unsigned)before);
#elif defined(__aarch64__)
    __asm__ volatile("msr fpcr, %0" ::"r"(before));
#else
    (void)before;
#endif
}

/* Run `work` on a team of at most `threads`; OpenMP may give fewer. A call is brief when it takes less than about 0.2 ms. */
typedef void (*work_t)(const member_t *me, void *context);

static void team_run(int threads, int brief, work_t work, void *context) {
    barrier_t barrier;
    atomic_init(&barrier.arrived, 0);
    atomic_init(&barrier.phase, 0);
    atomic_init(&barrier.sleepers, 0);
    atomic_init(&barrier.late, 0);
#ifdef _OPENMP
    if (threads > 1 && atomic_load(&crowded) > 0) {
        atomic_fetch_sub(&crowded, 1);
        threads = 1;
    }
    if (threads > 1) {
        const int cores = omp_get_num_procs(), spins = threads <= cores;
        if (threads > MAX_CROWD * cores) threads = MAX_CROWD * cores;
#pragma omp parallel num_threads(threads)
        {
            /* The clock of a thread's own time costs as much as a brief call may gain; there only a gap tells. */
            const double begin = seconds(), ran = brief ? 0 : clock_seconds(CLOCK_THREAD_CPUTIME_ID);
            double slept[2] = {0, 0};
            const member_t me = {omp_get_thread_num(), omp_get_num_threads(), spins, &barrier, slept, denormals_off()};
            work(&me, context);
            denormals_restore(me.floats);
            team_wait(&me); /* OpenMP's own wait at the end would spin for milliseconds on a core that a late one needs */
            const double took = seconds() - begin;
            const double off = brief ? took : took - (clock_seconds(CLOCK_THREAD_CPUTIME_ID) - ran) - slept[1];
            if (off > (brief ? LATE_BRIEF : CROWDED_SHARE * took) || slept[0] > CROWDED_SHARE * took)
                atomic_store(&barrier.late, 1);
        }
        const int late = atomic_load(&barrier.late);
        if (!late) {
            atomic_store(&patience, 0);
        } else if (atomic_load(&suspected) && spins) {
            const int calls = atomic_load(&patience) ? 2 * atomic_load(&patience) : 2;
            atomic_store(&patience, calls < MOST_PATIENCE ? calls : MOST_PATIENCE);
            atomic_store(&crowded, atomic_load(&patience));
        }
        atomic_store(&suspected, late);
        return;
    }
#else
    (void)threads, (void)brief;
#endif
    const member_t me = {0, 1, 0, &barrier, NULL, denormals_off()};
    work(&me, context);
    denormals_restore(me.floats);
}

#endif
