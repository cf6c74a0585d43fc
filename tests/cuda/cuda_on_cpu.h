// CUDA C++ on the CPU, to run kernels exactly where there is no GPU: `emulator.py` includes this file before a source.
//
// A CUDA thread is a fiber: a stack of its own that runs until it waits, at a barrier or in an operation of its warp,
// and is then left for the next one. All fibers run on one thread of the machine, so a launch is deterministic, atomics
// are plain and a stuck launch is seen as one. The blocks of a normal launch run one after the other; those of a
// cooperative launch are all resident, so that one may wait for another, if it calls pyrnn_spin_pause() while it does.
//
// A seed other than 0 shuffles the order of threads and blocks and lets some stand still while others run far ahead, to
// find races that a fixed order hides. What is never written (shared memory at first, bytes around it) holds no zeros.
//
// Two words are left to `emulator.py`, as no macro can express them: __global__ and __shared__.
#pragma once
#define PYRNN_ON_CPU 1
#include <type_traits>
#undef _GLIBCXX_USE_STD_SPEC_FUNCS  // a third of the time that it takes to compile a small kernel
#include <math.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <tuple>
#include <utility>

#define __device__
#define __host__
#define __constant__
#define __grid_constant__
#define __forceinline__ inline
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))

// --- vectors ------------------------------------------------------------------------------------------------------

#define PYRNN_VECTORS(type, name, align2, align4)                                                             \
    struct alignas(align2) name##2 { type x, y; };                                                            \
    struct name##3 { type x, y, z; };                                                                         \
    struct alignas(align4) name##4 { type x, y, z, w; };                                                      \
    inline name##2 make_##name##2(type x, type y) { return {x, y}; }                                          \
    inline name##3 make_##name##3(type x, type y, type z) { return {x, y, z}; }                               \
    inline name##4 make_##name##4(type x, type y, type z, type w) { return {x, y, z, w}; }
PYRNN_VECTORS(float, float, 8, 16)
PYRNN_VECTORS(double, double, 16, 16)
PYRNN_VECTORS(int, int, 8, 16)
PYRNN_VECTORS(unsigned, uint, 8, 16)
PYRNN_VECTORS(short, short, 4, 8)
PYRNN_VECTORS(unsigned short, ushort, 4, 8)
PYRNN_VECTORS(unsigned char, uchar, 2, 4)
PYRNN_VECTORS(long long, longlong, 16, 16)
#undef PYRNN_VECTORS

struct dim3 {
    unsigned x, y, z;
    dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
    size_t count() const { return (size_t)x * y * z; }
    uint3 at(size_t i) const { return {(unsigned)(i % x), (unsigned)(i / x % y), (unsigned)(i / x / y)}; }
};

constexpr int warpSize = 32;

#if !(defined(__x86_64__) && defined(__linux__)) && !defined(PYRNN_UCONTEXT)
#define PYRNN_UCONTEXT 1
#endif
#ifdef PYRNN_UCONTEXT
#include <ucontext.h>
#endif

namespace pyrnn_cpu {

// --- fibers -------------------------------------------------------------------------------------------------------

#ifndef PYRNN_UCONTEXT
typedef void *Context;  // where its stack stands
extern "C" void pyrnn_cpu_switch(Context *from, Context to);
// What a call must preserve is pushed on the old stack and popped from the new one.
asm(".text\n.local pyrnn_cpu_switch\n.type pyrnn_cpu_switch, @function\npyrnn_cpu_switch:\n"
    "push %rbp\npush %rbx\npush %r12\npush %r13\npush %r14\npush %r15\n"
    "mov %rsp, (%rdi)\nmov %rsi, %rsp\n"
    "pop %r15\npop %r14\npop %r13\npop %r12\npop %rbx\npop %rbp\n"
    "pop %rcx\njmp *%rcx\n");  // no ret, which the processor would predict wrong each time

static inline void switch_context(Context *from, Context *to) { pyrnn_cpu_switch(from, *to); }

static void make_context(Context *context, char *stack, size_t size, void (*entry)()) {
    void **top = (void **)(stack + size);
    *--top = nullptr;  // so that the stack is aligned as after a call
    *--top = (void *)entry;
    *context = top - 6;
}
#else
typedef ucontext_t Context;
static inline void switch_context(Context *from, Context *to) { swapcontext(from, to); }
static void make_context(Context *context, char *stack, size_t size, void (*entry)()) {
    getcontext(context);
    context->uc_stack.ss_sp = stack, context->uc_stack.ss_size = size, context->uc_link = nullptr;
    makecontext(context, entry, 0);
}
#endif

#ifdef __SANITIZE_ADDRESS__
extern "C" void __sanitizer_start_switch_fiber(void **, const void *, size_t);
extern "C" void __sanitizer_finish_switch_fiber(void *, const void **, size_t *);
extern "C" void __asan_unpoison_memory_region(const void *, size_t);
constexpr size_t GUARD = 0;  // the sanitizer has bytes of its own around what it watches
static void departs(const void *stack, size_t size) { __sanitizer_start_switch_fiber(nullptr, stack, size); }
static void arrives(const void **stack, size_t *size) { __sanitizer_finish_switch_fiber(nullptr, stack, size); }
static void forget(const void *stack, size_t size) { __asan_unpoison_memory_region(stack, size); }
#else
constexpr size_t GUARD = 128;
static inline void departs(const void *, size_t) {}
static inline void arrives(const void **, size_t *) {}
static inline void forget(const void *, size_t) {}
#endif
constexpr size_t STACK = 1 << 19;  // as in emulator.py
constexpr size_t IDLE_ROUNDS = 10000, MAX_SHARED = 64, MAX_COPIES = 32;
constexpr unsigned char OUTSIDE = 0xDB, UNWRITTEN = 0xFF;  // as float: -1.2e17 and NaN

struct Site {
    const char *file;
    int line;
};
// The last parameters of a function that tells where it was called: as defaults they are the caller's.
#define PYRNN_CALLER const char *file = __builtin_FILE(), int line = __builtin_LINE()

// What emulator.py describes, and what it is told.
struct Launch {
    uint32_t grid[3], block[3];
    char *stacks;  // STACK bytes for each thread that is resident at once, the lowest page of which can't be touched
    uint64_t shared, seed;
    uint32_t cooperative;
    uint32_t static_shared;  // bytes of a block, found out by running
    uint64_t switches;
    char error[4096];
};

enum State { READY, AT_BARRIER, IN_WARP, ENDED };

struct Copy {  // of cp.async
    void *to;
    const void *from;
    unsigned size, group;
};

struct Thread {
    Context context;
    char *stack;
    State state;
    Site site;  // where it waits
    unsigned number, mask;
    const void *operation, *in;  // of its warp, and what it gives and takes there
    void *out;
    uint3 index;
    struct Block *block;
    unsigned groups, copies;
    Copy pending[MAX_COPIES];
};

struct Some {  // warps of a block, or blocks, that run for a while
    uint64_t which;
    unsigned left;
};

struct Block {
    uint3 index;
    Thread *threads;
    unsigned alive, arrived;
    Some warps;
    char *dynamic;
    char *shared[MAX_SHARED];
};

static struct {
    size_t size;
    const char *name;
} shared_variables[MAX_SHARED];
static int shared_count = 0;

static Thread *self = nullptr;
static Launch *launch = nullptr;
static dim3 grid_size, block_size;
static unsigned block_threads;
static Context scheduler;
static const void *scheduler_stack;
static size_t scheduler_size;
static void (*kernel_call)(void *);
static void *kernel_values;
static uint64_t progress, random_state;

static uint64_t random_bits() {  // xorshift64*, Vigna 2016
    random_state ^= random_state >> 12, random_state ^= random_state << 25, random_state ^= random_state >> 27;
    return random_state * 0x2545F4914F6CDD1DULL >> 16;
}

__attribute__((format(printf, 1, 2))) static void report(const char *format, ...) {
    size_t length = strlen(launch->error);
    va_list values;
    va_start(values, format);
    vsnprintf(launch->error + length, sizeof launch->error - length, format, values);
    va_end(values);
}

static void report_thread(const Thread *t) {
    const uint3 &b = t->block->index, &i = t->index;
    report("block (%u, %u, %u), thread (%u, %u, %u)", b.x, b.y, b.z, i.x, i.y, i.z);
}

static void leave() {
    launch->switches++;
    departs(scheduler_stack, scheduler_size);
    switch_context(&self->context, &scheduler);
    arrives(&scheduler_stack, &scheduler_size);
}

// Ends the launch with this error; its fibers are never run again.
__attribute__((format(printf, 2, 3))) [[noreturn]] static void fail(Site site, const char *format, ...) {
    report_thread(self);
    char text[512];
    va_list values;
    va_start(values, format);
    vsnprintf(text, sizeof text, format, values);
    va_end(values);
    report(", %s:%d: %s", site.file, site.line, text);
    for (;;) leave();
}

static void thread_main() {
    arrives(&scheduler_stack, &scheduler_size);
    kernel_call(kernel_values);
    self->state = ENDED;
    self->block->alive--;
    progress++;
    for (;;) leave();
}

static char *stack_of(size_t thread) { return launch->stacks + thread * STACK; }

// --- memory of a block --------------------------------------------------------------------------------------------

static char *new_shared(size_t size) {
    void *memory = nullptr;
    if (posix_memalign(&memory, 128, size + 2 * GUARD + !size)) abort();
    memset(memory, OUTSIDE, size + 2 * GUARD);
    memset((char *)memory + GUARD, UNWRITTEN, size);
    return (char *)memory + GUARD;
}

static void end_shared(const Block &block, char *memory, size_t size, const char *name) {
    for (size_t i = 0; i < 2 * GUARD; i++) {
        const unsigned char *outside = (unsigned char *)memory + (i < GUARD ? i - GUARD : size + i - GUARD);
        if (*outside == OUTSIDE || *launch->error) continue;
        report("block (%u, %u, %u): shared memory was written outside of %s, at byte %td of %zu", block.index.x,
               block.index.y, block.index.z, name, outside - (unsigned char *)memory, size);
    }
    free(memory - GUARD);
}

template <class T> T &static_shared(int &id, const char *name) {
    if (!id) {
        if (shared_count == MAX_SHARED) fail({name, 0}, "too many shared variables");
        shared_variables[shared_count] = {sizeof(T), name};
        id = ++shared_count;
    }
    char *&place = self->block->shared[id - 1];
    if (!place) place = new_shared(sizeof(T));
    return *(T *)place;
}

static inline char *dynamic_shared() { return self->block->dynamic; }

// --- waiting ------------------------------------------------------------------------------------------------------

static void barrier(Site site) {
    Block &block = *self->block;
    self->site = site, self->state = AT_BARRIER;
    if (++block.arrived < block_threads) return leave();
    for (unsigned i = 0; i < block_threads; i++) {
        Thread &t = block.threads[i];
        if (t.site.line != site.line || (t.site.file != site.file && strcmp(t.site.file, site.file)))
            fail(site, "divergent __syncthreads(): another thread waits at %s:%d", t.site.file, t.site.line);
        t.state = READY;
    }
    block.arrived = 0;
    progress++;
}

template <class F> struct Tag { static constexpr char here = 0; };

// An operation of a warp: the last lane to come does it for all, as combine(mask, what they give, what they take).
template <class In, class Out, class F> Out in_warp(unsigned mask, const In &in, F combine, Site site) {
    Out out{};
    Thread *warp = self->block->threads + self->number / 32 * 32;
    unsigned lane = self->number % 32, lanes = block_threads - self->number / 32 * 32;
    if (!(mask >> lane & 1)) fail(site, "lane %u is not in the mask 0x%08x that it names", lane, mask);
    if (lanes < 32 && mask >> lanes)
        fail(site, "mask 0x%08x names lanes that the block, of %u threads, does not have", mask, block_threads);
    self->site = site, self->state = IN_WARP, self->mask = mask, self->operation = &Tag<F>::here;
    self->in = &in, self->out = &out;
    for (int i = 31; i >= 0; i--) {
        if (!(mask >> i & 1)) continue;
        const Thread &t = warp[i];
        if (t.state == IN_WARP && t.mask == mask && t.operation == self->operation) continue;
        leave();
        return out;
    }
    const In *ins[32] = {};
    Out *outs[32] = {};
    for (int i = 0; i < 32; i++)
        if (mask >> i & 1) ins[i] = (const In *)warp[i].in, outs[i] = (Out *)warp[i].out, warp[i].state = READY;
    progress++;
    combine(mask, ins, outs);
    return out;
}

// Tells why a block in which no thread can run will never go on.
static void report_stuck(const Block &block) {
    report("block (%u, %u, %u) is stuck:", block.index.x, block.index.y, block.index.z);
    const char *what[] = {"spins or yields", "waits at __syncthreads()", "waits in an operation of its warp", "ended"};
    for (unsigned i = 0; i < block_threads; i++) {
        const Thread &t = block.threads[i];
        unsigned alike = 0, before = 0;
        for (unsigned j = 0; j < block_threads; j++) {
            const Thread &o = block.threads[j];
            bool same = o.state == t.state && (t.state == READY || t.state == ENDED ||
                        (o.site.line == t.site.line && o.mask == t.mask && o.operation == t.operation));
            alike += same, before += same && j < i;
        }
        if (before) continue;
        report("\n  %u thread%s, first (%u, %u, %u), %s", alike, alike == 1 ? "" : "s", t.index.x, t.index.y, t.index.z,
               what[t.state]);
        if (t.state == AT_BARRIER || t.state == IN_WARP) report(", %s:%d", t.site.file, t.site.line);
        if (t.state == IN_WARP) report(", with mask 0x%08x, of which a lane is elsewhere or has ended", t.mask);
    }
}

// --- the scheduler ------------------------------------------------------------------------------------------------

static void shuffle(unsigned *order, unsigned count) {
    for (unsigned i = 0; i < count; i++) order[i] = i;
    for (unsigned i = count; launch->seed && i > 1; i--) std::swap(order[i - 1], order[random_bits() % i]);
}

// Tells who runs now: with a seed half of them, for up to 512 times on end.
static uint64_t draw(Some &some) {
    if (!launch->seed) return ~0ULL;
    if (!some.left) some = {random_bits(), 1u << random_bits() % 10};
    some.left--;
    return some.which;
}

static void start(Block &block, size_t number, size_t slot) {
    block.index = grid_size.at(number), block.alive = block_threads, block.arrived = 0, block.warps = {};
    block.dynamic = new_shared(launch->shared);
    memset(block.shared, 0, sizeof block.shared);
    for (unsigned i = 0; i < block_threads; i++) {
        Thread &t = block.threads[i];
        t.state = READY, t.number = i, t.index = block_size.at(i), t.block = &block, t.groups = t.copies = 0;
        t.operation = nullptr, t.mask = 0;
        t.stack = stack_of(slot * block_threads + i);
        forget(t.stack, STACK);
        size_t size = STACK - i % 16 * 256;  // or all would share a few lines of the cache
        make_context(&t.context, t.stack, size, thread_main);
    }
}

static void end(Block &block) {
    launch->static_shared = 0;
    for (int i = 0; i < shared_count; i++) {
        if (!block.shared[i]) continue;
        launch->static_shared += shared_variables[i].size;
        end_shared(block, block.shared[i], shared_variables[i].size, shared_variables[i].name);
    }
    end_shared(block, block.dynamic, launch->shared, "the dynamic shared memory");
}

// Runs each thread of a block until it waits, some not at all where there is a seed; tells whether the block goes on.
static bool pass(Block &block, unsigned *order) {
    if (launch->seed) shuffle(order, block_threads);
    for (bool ran = false; !ran;) {
        uint64_t warps = draw(block.warps);
        for (unsigned i = 0; i < block_threads && !*launch->error; i++) {
            Thread &t = block.threads[order[i]];
            if (t.state != READY || !(warps >> order[i] / 32 % 32 & 1)) continue;
            self = &t, ran = true;
            departs(t.stack, STACK);
            switch_context(&scheduler, &t.context);
            arrives(nullptr, nullptr);
        }
        if (!ran) block.warps.left = 0;  // all of these wait: others can run
    }
    self = nullptr;
    if (*launch->error || !block.alive) return false;
    for (unsigned i = 0; i < block_threads; i++)
        if (block.threads[i].state == READY) return true;
    report_stuck(block);
    return false;
}

static void run(Launch *l, void (*call)(void *), void *values) {
    launch = l, kernel_call = call, kernel_values = values;
    grid_size = {l->grid[0], l->grid[1], l->grid[2]}, block_size = {l->block[0], l->block[1], l->block[2]};
    block_threads = block_size.count(), random_state = l->seed * 0x9E3779B97F4A7C15ULL + 1;
    unsigned total = grid_size.count(), resident = l->cooperative ? total : 1, started = 0, running = 0;
    Block *blocks = new Block[resident];
    Thread *threads = new Thread[(size_t)resident * block_threads];
    unsigned *order = new unsigned[block_threads], *queue = new unsigned[total], *turns = new unsigned[resident];
    bool *runs = new bool[resident]();
    shuffle(order, block_threads), shuffle(queue, total), shuffle(turns, resident);
    Some some = {};
    for (size_t idle = 0, before = 0; !*l->error; before = progress) {
        for (unsigned i = 0; i < resident; i++) {
            if (runs[i] || started == total) continue;
            blocks[i].threads = threads + (size_t)i * block_threads;
            start(blocks[i], queue[started++], i), runs[i] = true, running++;
        }
        if (!running) break;
        if (l->seed) shuffle(turns, resident);
        if (idle > 8) some.left = 0;  // those who run wait for the others
        uint64_t run_now = resident > 1 ? draw(some) : ~0ULL;
        for (unsigned i = 0; i < resident && !*l->error; i++) {
            unsigned slot = turns[i];
            if (!runs[slot] || !(run_now >> slot % 48 & 1)) continue;
            if (!pass(blocks[slot], order)) end(blocks[slot]), runs[slot] = false, running--;
        }
        idle = progress == before ? idle + 1 : 0;
        if (idle < IDLE_ROUNDS) continue;
        report("deadlock: all threads wait or spin%s\n",
               resident == total ? "" : ", in a launch that runs one block after the other");
        for (unsigned i = 0, told = 0; i < resident && told < 4; i++)
            if (runs[i]) report_stuck(blocks[i]), report("\n"), told++;
    }
    for (unsigned i = 0; i < resident; i++)
        if (runs[i]) end(blocks[i]);
    delete[] blocks, delete[] threads, delete[] order, delete[] queue, delete[] turns, delete[] runs;
}

template <class... A> void run_kernel(Launch *l, void **arguments, void (*kernel)(A...)) {
    int i = 0;
    std::tuple<std::remove_cv_t<A>...> values{*(std::remove_cv_t<A> *)arguments[i++]...};
    auto call = [&] { std::apply(kernel, values); };
    run(l, [](void *c) { (*(decltype(call) *)c)(); }, &call);
}

// What a kernel takes, as in "p4 i4 f4 s24": integers, floating-point numbers and structures with their bytes, pointers
// with those of what they point to if that is floating-point, else 0.
template <class A> int parameter(char *text) {
    using To = std::remove_pointer_t<A>;
    if constexpr (std::is_pointer_v<A>) {
        if constexpr (std::is_floating_point_v<To>) return sprintf(text, "p%zu ", sizeof(To));
        return sprintf(text, "p0 ");
    }
    const char kind = std::is_floating_point_v<A> ? 'f' : std::is_integral_v<A> || std::is_enum_v<A> ? 'i' : 's';
    return sprintf(text, "%c%zu ", kind, sizeof(A));
}
template <class... A> const char *parameters(void (*)(A...)) {
    static char text[24 * (sizeof...(A) + 1)];
    char *end = text;
    ((end += parameter<A>(end)), ...);
    return text;
}

template <class To, class From> inline To bits(From from) {
    static_assert(sizeof(To) == sizeof(From), "");
    To to;
    memcpy(&to, &from, sizeof to);
    return to;
}

}  // namespace pyrnn_cpu

#define threadIdx (pyrnn_cpu::self->index)
#define blockIdx (pyrnn_cpu::self->block->index)
#define blockDim (pyrnn_cpu::block_size)
#define gridDim (pyrnn_cpu::grid_size)
#define assert(condition) ((condition) ? (void)0 : pyrnn_cpu::fail({__FILE__, __LINE__}, "assert(%s)", #condition))
#define __trap() pyrnn_cpu::fail({__FILE__, __LINE__}, "__trap()")

// --- barriers, fences, spinning -----------------------------------------------------------------------------------

inline void __syncthreads(PYRNN_CALLER) { pyrnn_cpu::barrier({file, line}); }
inline void __threadfence() {}
inline void __threadfence_block() {}
inline void __threadfence_system() {}
inline void pyrnn_spin_pause() { pyrnn_cpu::leave(); }  // what a loop that waits for another block calls
inline void __nanosleep(unsigned) { pyrnn_cpu::leave(); }

// --- operations of a warp -----------------------------------------------------------------------------------------

inline void __syncwarp(unsigned mask = ~0u, PYRNN_CALLER) {
    pyrnn_cpu::in_warp<char, char>(mask, 0, [](unsigned, const char **, char **) {}, {file, line});
}

namespace pyrnn_cpu {
template <class T> struct Shuffle {
    T value;
    int from;
    Site site;
};
template <class T> T shuffle_lanes(unsigned mask, T value, int from, Site site) {
    auto combine = [](unsigned mask, const Shuffle<T> **in, T **out) {
        for (int i = 0; i < 32; i++) {
            if (!(mask >> i & 1)) continue;
            if (!(mask >> in[i]->from & 1))
                fail(in[i]->site, "lane %d reads from lane %d, which is not in mask 0x%08x", i, in[i]->from, mask);
            *out[i] = in[in[i]->from]->value;
        }
    };
    return in_warp<Shuffle<T>, T>(mask, Shuffle<T>{value, from, site}, combine, site);
}
inline int this_lane() { return self->number % 32; }
}  // namespace pyrnn_cpu

template <class T> T __shfl_sync(unsigned mask, T value, int from, int width = 32, PYRNN_CALLER) {
    int first = pyrnn_cpu::this_lane() / width * width;
    return pyrnn_cpu::shuffle_lanes(mask, value, first + (from & (width - 1)), {file, line});
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32, PYRNN_CALLER) {
    int lane = pyrnn_cpu::this_lane(), from = lane - (int)delta;
    return pyrnn_cpu::shuffle_lanes(mask, value, from < lane / width * width ? lane : from, {file, line});
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32, PYRNN_CALLER) {
    int lane = pyrnn_cpu::this_lane(), from = lane + (int)delta;
    return pyrnn_cpu::shuffle_lanes(mask, value, from >= lane / width * width + width ? lane : from, {file, line});
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = 32, PYRNN_CALLER) {
    int lane = pyrnn_cpu::this_lane(), from = lane ^ lanes;
    return pyrnn_cpu::shuffle_lanes(mask, value, from >= lane / width * width + width ? lane : from, {file, line});
}

// One result for all lanes: `result` starts as `first` and becomes `expression` of itself, lane i and its `value`.
#define PYRNN_WARP_REDUCE(name, T, R, first, expression)                                                      \
    inline R name(unsigned mask, T mine, PYRNN_CALLER) {                                 \
        auto combine = [](unsigned mask, const T **in, R **out) {                                             \
            R result = first;                                                                                 \
            for (int i = 0; i < 32; i++) {                                                                    \
                if (!(mask >> i & 1)) continue;                                                               \
                T value = *in[i];                                                                             \
                result = expression;                                                                          \
            }                                                                                                 \
            for (int i = 0; i < 32; i++)                                                                      \
                if (mask >> i & 1) *out[i] = result;                                                          \
        };                                                                                                    \
        return pyrnn_cpu::in_warp<T, R>(mask, mine, combine, {file, line});                                   \
    }
PYRNN_WARP_REDUCE(__ballot_sync, int, unsigned, 0, result | (unsigned)(value != 0) << i)
PYRNN_WARP_REDUCE(__any_sync, int, int, 0, result | (value != 0))
PYRNN_WARP_REDUCE(__all_sync, int, int, 1, result & (value != 0))
PYRNN_WARP_REDUCE(__reduce_add_sync, unsigned, unsigned, 0, result + value)
PYRNN_WARP_REDUCE(__reduce_add_sync, int, int, 0, (int)((unsigned)result + value))
PYRNN_WARP_REDUCE(__reduce_max_sync, unsigned, unsigned, 0, value > result ? value : result)
PYRNN_WARP_REDUCE(__reduce_max_sync, int, int, INT32_MIN, value > result ? value : result)
PYRNN_WARP_REDUCE(__reduce_min_sync, unsigned, unsigned, ~0u, value < result ? value : result)
PYRNN_WARP_REDUCE(__reduce_min_sync, int, int, INT32_MAX, value < result ? value : result)
PYRNN_WARP_REDUCE(__reduce_or_sync, unsigned, unsigned, 0, result | value)
PYRNN_WARP_REDUCE(__reduce_xor_sync, unsigned, unsigned, 0, result ^ value)
PYRNN_WARP_REDUCE(__reduce_and_sync, unsigned, unsigned, ~0u, result & value)
#undef PYRNN_WARP_REDUCE

// --- memory -------------------------------------------------------------------------------------------------------

// Atomics return what was there. They count as progress if they change it: a lock that is tried in vain does not.
#define PYRNN_ATOMIC(name, expression)                                                                        \
    template <class T, class V> T name(T *p, V given) {                                                       \
        T old = *p, value = (T)given;                                                                         \
        *p = expression;                                                                                      \
        pyrnn_cpu::progress += memcmp(&old, p, sizeof old) != 0;                                              \
        return old;                                                                                           \
    }
PYRNN_ATOMIC(atomicAdd, old + value)
PYRNN_ATOMIC(atomicSub, old - value)
PYRNN_ATOMIC(atomicMax, value > old ? value : old)
PYRNN_ATOMIC(atomicMin, value < old ? value : old)
PYRNN_ATOMIC(atomicExch, value)
PYRNN_ATOMIC(atomicOr, old | value)
PYRNN_ATOMIC(atomicAnd, old & value)
#undef PYRNN_ATOMIC
template <class T, class V, class W> T atomicCAS(T *p, V compare, W value) {
    return *p == (T)compare ? atomicExch(p, value) : *p;
}

#define PYRNN_LOAD(name) template <class T> inline T name(const T *p) { return *p; }
#define PYRNN_STORE(name) template <class T> inline void name(T *p, T value) { atomicExch(p, value); }
PYRNN_LOAD(__ldg) PYRNN_LOAD(__ldcg) PYRNN_LOAD(__ldca) PYRNN_LOAD(__ldcs) PYRNN_LOAD(__ldcv) PYRNN_LOAD(__ldlu)
PYRNN_STORE(__stcg) PYRNN_STORE(__stwb) PYRNN_STORE(__stcs) PYRNN_STORE(__stwt)
#undef PYRNN_LOAD
#undef PYRNN_STORE

// ld.acquire.gpu, st.release.gpu and red.release.gpu.add on 32 bits. An acquire lets other threads run first.
inline unsigned pyrnn_cpu_ld_acquire_gpu(const unsigned *p) {
    pyrnn_cpu::leave();
    return *(const volatile unsigned *)p;
}
inline void pyrnn_cpu_st_release_gpu(unsigned *p, unsigned value) { atomicExch(p, value); }
inline void pyrnn_cpu_red_release_gpu_add(unsigned *p, unsigned value) { atomicAdd(p, value); }

// cp.async.cg.shared.global of 16 bytes, of which `size` are read and the rest are zeros; commit_group; wait_group N.
// With a seed some copies happen only when they are waited for, as they may on a GPU: a missing wait is then seen.
namespace pyrnn_cpu {
inline void copy(const Copy &c) {
    memset(c.to, 0, 16);
    memcpy(c.to, c.from, c.size);
}
}  // namespace pyrnn_cpu
inline void pyrnn_cpu_cp_async_16(void *shared, const void *global, unsigned size = 16, PYRNN_CALLER) {
    pyrnn_cpu::Thread &t = *pyrnn_cpu::self;
    if ((uintptr_t)shared % 16 || (uintptr_t)global % 16 || size > 16)
        pyrnn_cpu::fail({file, line}, "cp.async of %u bytes from %p to %p: not aligned to 16", size, global, shared);
    pyrnn_cpu::Copy c{shared, global, size, t.groups};
    if (pyrnn_cpu::launch->seed && t.copies < pyrnn_cpu::MAX_COPIES && pyrnn_cpu::random_bits() & 1)
        t.pending[t.copies++] = c;
    else
        pyrnn_cpu::copy(c);
}
inline void pyrnn_cpu_cp_async_commit() { pyrnn_cpu::self->groups++; }
inline void pyrnn_cpu_cp_async_wait(unsigned groups_left) {
    pyrnn_cpu::Thread &t = *pyrnn_cpu::self;
    unsigned kept = 0;
    for (unsigned i = 0; i < t.copies; i++) {
        if (t.pending[i].group + groups_left < t.groups)
            pyrnn_cpu::copy(t.pending[i]);
        else
            t.pending[kept++] = t.pending[i];
    }
    t.copies = kept;
}

// --- tensor cores: PTX ISA 9.2, 9.7.14.5.7 and 9.7.14.5.8, matrix fragments for mma.m16n8k8 and mma.m16n8k16 -------

namespace pyrnn_cpu {
struct Fragments {
    unsigned a[4], b[2];
    float c[4];
};
struct Accumulators { float d[4]; };

// d = a b + c; elements(in, ...) puts a lane's elements into A (16, K) and B (K, 8). Sums are in float32, k ascending.
template <int K, class F> void mma(float *d, const unsigned *a, const unsigned *b, const float *c, F, Site site) {
    Fragments mine;
    memcpy(mine.a, a, sizeof mine.a), memcpy(mine.b, b, sizeof mine.b), memcpy(mine.c, c, sizeof mine.c);
    auto combine = [](unsigned, const Fragments **in, Accumulators **out) {
        float A[16][K], B[K][8];
        for (int lane = 0; lane < 32; lane++) F::elements(*in[lane], lane >> 2, lane & 3, A, B);
        for (int lane = 0; lane < 32; lane++)
            for (int i = 0; i < 4; i++) {
                float sum = in[lane]->c[i];
                int row = (lane >> 2) + (i < 2 ? 0 : 8), column = (lane & 3) * 2 + (i & 1);
                for (int k = 0; k < K; k++) sum += A[row][k] * B[k][column];
                out[lane]->d[i] = sum;
            }
    };
    Accumulators result = in_warp<Fragments, Accumulators>(~0u, mine, combine, site);
    memcpy(d, result.d, sizeof result.d);
}

struct Bf16Fragments {
    static float element(unsigned pair, int i) { return bits<float>(i & 1 ? pair & 0xFFFF0000u : pair << 16); }
    static void elements(const Fragments &in, int group, int thread, float A[16][16], float B[16][8]) {
        for (int i = 0; i < 8; i++)
            A[group + (i & 2 ? 8 : 0)][thread * 2 + (i & 1) + (i < 4 ? 0 : 8)] = element(in.a[i / 2], i);
        for (int i = 0; i < 4; i++) B[thread * 2 + (i & 1) + (i < 2 ? 0 : 8)][group] = element(in.b[i / 2], i);
    }
};
struct Tf32Fragments {
    static float element(unsigned word) { return bits<float>(word & 0xFFFFE000u); }  // the rest is not read
    static void elements(const Fragments &in, int group, int thread, float A[16][8], float B[8][8]) {
        for (int i = 0; i < 4; i++) A[group + (i & 1 ? 8 : 0)][thread + (i & 2 ? 4 : 0)] = element(in.a[i]);
        for (int i = 0; i < 2; i++) B[thread + 4 * i][group] = element(in.b[i]);
    }
};
}  // namespace pyrnn_cpu

// mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32
inline void pyrnn_cpu_mma_m16n8k16_bf16(float *d, const unsigned *a, const unsigned *b, const float *c, PYRNN_CALLER) {
    pyrnn_cpu::mma<16>(d, a, b, c, pyrnn_cpu::Bf16Fragments(), {file, line});
}
// mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32
inline void pyrnn_cpu_mma_m16n8k8_tf32(float *d, const unsigned *a, const unsigned *b, const float *c, PYRNN_CALLER) {
    pyrnn_cpu::mma<8>(d, a, b, c, pyrnn_cpu::Tf32Fragments(), {file, line});
}

// ldmatrix.sync.aligned.m8n8.x4[.trans].shared.b16: PTX ISA 9.2, 9.7.14.5.15
namespace pyrnn_cpu {
struct MatrixRow { const void *at; bool turned; };
struct FourWords { unsigned r[4]; };
}  // namespace pyrnn_cpu
inline void pyrnn_cpu_ldmatrix_x4(unsigned *r, const void *row, bool turned, PYRNN_CALLER) {
    if ((uintptr_t)row % 16) pyrnn_cpu::fail({file, line}, "ldmatrix of a row at %p: not aligned to 16", row);
    auto combine = [](unsigned, const pyrnn_cpu::MatrixRow **in, pyrnn_cpu::FourWords **out) {
        for (int matrix = 0; matrix < 4; matrix++) {
            unsigned short m[8][8];
            for (int i = 0; i < 8; i++) memcpy(m[i], in[matrix * 8 + i]->at, 16);
            for (int lane = 0; lane < 32; lane++) {
                int one = lane / 4, two = lane % 4 * 2;
                out[lane]->r[matrix] = in[lane]->turned ? m[two][one] | m[two + 1][one] << 16 : m[one][two] | m[one][two + 1] << 16;
            }
        }
    };
    auto result = pyrnn_cpu::in_warp<pyrnn_cpu::MatrixRow, pyrnn_cpu::FourWords>(~0u, {row, turned}, combine, {file, line});
    memcpy(r, result.r, sizeof result.r);
}

// --- numbers ------------------------------------------------------------------------------------------------------

#define PYRNN_CAST(name, From, To) inline To name(From x) { return pyrnn_cpu::bits<To>(x); }
PYRNN_CAST(__float_as_int, float, int) PYRNN_CAST(__int_as_float, int, float)
PYRNN_CAST(__float_as_uint, float, unsigned) PYRNN_CAST(__uint_as_float, unsigned, float)
PYRNN_CAST(__double_as_longlong, double, long long) PYRNN_CAST(__longlong_as_double, long long, double)
#undef PYRNN_CAST

// As CUDA's: of a NaN and a number, the number.
template <class A, class B> inline std::common_type_t<A, B> min(A a, B b) {
    using C = std::common_type_t<A, B>;
    if constexpr (std::is_floating_point_v<C>) return (C)b != (C)b || (C)a < (C)b ? (C)a : (C)b;
    return (C)a < (C)b ? (C)a : (C)b;
}
template <class A, class B> inline std::common_type_t<A, B> max(A a, B b) {
    using C = std::common_type_t<A, B>;
    if constexpr (std::is_floating_point_v<C>) return (C)b != (C)b || (C)a > (C)b ? (C)a : (C)b;
    return (C)a > (C)b ? (C)a : (C)b;
}

// The device's fast functions are less exact than these: their errors are for a GPU to show.
inline float rsqrtf(float x) { return 1 / sqrtf(x); }
inline double rsqrt(double x) { return 1 / sqrt(x); }
inline float __expf(float x) { return expf(x); }
inline float __exp10f(float x) { return powf(10, x); }
inline float __logf(float x) { return logf(x); }
inline float __log2f(float x) { return log2f(x); }
inline float __powf(float x, float y) { return powf(x, y); }
inline float __sinf(float x) { return sinf(x); }
inline float __cosf(float x) { return cosf(x); }
inline float __fdividef(float x, float y) { return x / y; }
inline float __fdiv_rn(float x, float y) { return x / y; }
inline float __frcp_rn(float x) { return 1 / x; }
inline float __frsqrt_rn(float x) { return 1 / sqrtf(x); }
inline float __fsqrt_rn(float x) { return sqrtf(x); }
inline float __fadd_rn(float x, float y) { return x + y; }
inline float __fsub_rn(float x, float y) { return x - y; }
inline float __fmul_rn(float x, float y) { return x * y; }
inline float __fmaf_rn(float x, float y, float z) { return fmaf(x, y, z); }
inline double __fma_rn(double x, double y, double z) { return fma(x, y, z); }
inline float __saturatef(float x) { return x > 0 ? x < 1 ? x : 1 : 0; }
inline int __float2int_rn(float x) { return (int)rintf(x); }
inline int __float2int_rz(float x) { return (int)x; }
inline float __int2float_rn(int x) { return (float)x; }
inline float __uint2float_rn(unsigned x) { return (float)x; }
inline float __double2float_rn(double x) { return (float)x; }
inline unsigned __umulhi(unsigned x, unsigned y) { return (uint64_t)x * y >> 32; }
inline int __mulhi(int x, int y) { return (int64_t)x * y >> 32; }
inline uint64_t __umul64hi(uint64_t x, uint64_t y) { return (unsigned __int128)x * y >> 64; }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __clz(int x) { return x ? __builtin_clz(x) : 32; }
inline int __ffs(int x) { return __builtin_ffs(x); }

// cuda_bf16.h
struct alignas(2) __nv_bfloat16 {
    unsigned short x;
    __nv_bfloat16() = default;
    __nv_bfloat16(float value) {  // to the nearest, ties to even
        unsigned word = __float_as_uint(value);
        x = value != value ? 0x7FFF : (word + 0x7FFF + (word >> 16 & 1)) >> 16;
    }
    operator float() const { return __uint_as_float((unsigned)x << 16); }
};
struct alignas(4) __nv_bfloat162 { __nv_bfloat16 x, y; };
typedef __nv_bfloat16 nv_bfloat16;
typedef __nv_bfloat162 nv_bfloat162;
// cvt.rn.bf16x2.f32: the first in the low half
inline unsigned pyrnn_cpu_two_bf16(float low, float high) {
    const __nv_bfloat16 two[2] = {low, high};
    unsigned both;
    memcpy(&both, two, sizeof both);
    return both;
}
// cvt.rna.tf32.f32: ties away from zero
inline unsigned pyrnn_cpu_tf32(float x) {
    const unsigned word = pyrnn_cpu::bits<unsigned>(x);
    return (word & 0x7F800000u) == 0x7F800000u ? word : (word + 0x1000u) & 0xFFFFE000u;
}
inline __nv_bfloat16 __float2bfloat16(float x) { return x; }
inline __nv_bfloat16 __float2bfloat16_rn(float x) { return x; }
inline float __bfloat162float(__nv_bfloat16 x) { return x; }
inline __nv_bfloat16 __ushort_as_bfloat16(unsigned short x) { return pyrnn_cpu::bits<__nv_bfloat16>(x); }
inline unsigned short __bfloat16_as_ushort(__nv_bfloat16 x) { return x.x; }
inline __nv_bfloat162 __halves2bfloat162(__nv_bfloat16 x, __nv_bfloat16 y) { return {x, y}; }
inline __nv_bfloat162 __floats2bfloat162_rn(float x, float y) { return {x, y}; }
inline __nv_bfloat162 __float22bfloat162_rn(float2 v) { return {v.x, v.y}; }
inline __nv_bfloat162 __float2bfloat162_rn(float x) { return {x, x}; }
inline float2 __bfloat1622float2(__nv_bfloat162 v) { return {v.x, v.y}; }
inline float __low2float(__nv_bfloat162 v) { return v.x; }
inline float __high2float(__nv_bfloat162 v) { return v.y; }

// --- what -fsanitize=alignment,bounds,null finds ------------------------------------------------------------------

namespace pyrnn_cpu {
struct Found { Site site; unsigned column; };
}  // namespace pyrnn_cpu
extern "C" inline __attribute__((used)) void __ubsan_handle_type_mismatch_v1_abort(pyrnn_cpu::Found *found, void *p) {
    pyrnn_cpu::fail(found->site, "a misaligned or null pointer is used: %p", p);
}
extern "C" inline __attribute__((used)) void __ubsan_handle_out_of_bounds_abort(pyrnn_cpu::Found *found, size_t index) {
    pyrnn_cpu::fail(found->site, "index %zd is out of its array", index);
}
