// A barrier for the threads of a computation that spins while waits are short, and sleeps while they are long.
//
// ggml's own barrier spins until the last thread arrives. When another program takes a core, the last thread cannot
// arrive before the scheduler runs it again. Meanwhile, the spinning threads use up their share of CPU time. A sleeping
// thread keeps its share, and the scheduler runs it soon after it is woken.
//
// C11 without dependencies; on Linux, macOS and Windows threads sleep, elsewhere they yield.
#pragma once

#include <stdbool.h>
#include <stdint.h>
#include <time.h>

#if defined(__linux__)
#include <limits.h>
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>
#elif !defined(_WIN32) && !defined(__APPLE__)
#include <sched.h>
#endif
#if defined(__x86_64__) || defined(_M_X64)
#include <immintrin.h>
#endif

#if defined(_MSC_VER) && !defined(__clang__)
// ggml-cpu.c defines the atomic types and functions for this compiler.
#define EDGECHAT_THREAD_LOCAL __declspec(thread)
#else
#include <stdatomic.h>
#define EDGECHAT_THREAD_LOCAL _Thread_local
#endif

enum {
    // Number of pause instructions between two reads of the clock.
    EDGECHAT_SPINS_PER_CLOCK = 32,
    // Bounds of the time that a thread spins before it sleeps, in nanoseconds.
    EDGECHAT_MAX_SPIN_NS = 50000,
    EDGECHAT_MIN_SPIN_NS = 1000,
    // After this number of waits a thread spins for the longest time once, to see whether waits are short again.
    EDGECHAT_PROBE_INTERVAL = 64,
};

// Number of threads of this process that sleep in a barrier.
static atomic_int edgechat_n_sleepers = 0;

// Time that this thread spins before it sleeps, and the number of its waits.
static EDGECHAT_THREAD_LOCAL int64_t edgechat_spin_ns = EDGECHAT_MAX_SPIN_NS;
static EDGECHAT_THREAD_LOCAL unsigned edgechat_n_waits = 0;

// Returns the time of a monotonic clock in nanoseconds.
static inline int64_t edgechat_now_ns(void) {
#if defined(_WIN32)
    LARGE_INTEGER ticks, ticks_per_s;
    QueryPerformanceCounter(&ticks);
    QueryPerformanceFrequency(&ticks_per_s);
    return (int64_t) ((double) ticks.QuadPart * 1e9 / (double) ticks_per_s.QuadPart);
#else
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t) now.tv_sec * 1000000000 + now.tv_nsec;
#endif
}

static inline void edgechat_pause(void) {
#if defined(__x86_64__) || defined(_M_X64)
    _mm_pause();
#elif defined(__aarch64__) && (defined(__GNUC__) || defined(__clang__))
    __asm__ volatile("yield" ::: "memory");
#endif
}

#if defined(__APPLE__)
// Functions of macOS's libSystem that C++'s std::atomic::wait uses; no header declares them.
int __ulock_wait(uint32_t operation, void * address, uint64_t value, uint32_t timeout_us);
int __ulock_wake(uint32_t operation, void * address, uint64_t wake_value);
#endif

// Sleep until edgechat_wake_all(address), unless *address differs from `value`; may return earlier.
static inline void edgechat_sleep(atomic_int * address, int value) {
#if defined(__linux__)
    syscall(SYS_futex, (int *) address, FUTEX_WAIT_PRIVATE, value, NULL, NULL, 0);
#elif defined(__APPLE__)
    __ulock_wait(1 /* UL_COMPARE_AND_WAIT */, (void *) address, (uint32_t) value, 0);
#elif defined(_WIN32)
    WaitOnAddress(address, &value, sizeof(value), INFINITE);
#else
    (void) address;
    (void) value;
    sched_yield();
#endif
}

static inline void edgechat_wake_all(atomic_int * address) {
#if defined(__linux__)
    syscall(SYS_futex, (int *) address, FUTEX_WAKE_PRIVATE, INT_MAX, NULL, NULL, 0);
#elif defined(__APPLE__)
    __ulock_wake(1 | 0x100 /* ULF_WAKE_ALL */, (void *) address, 0);
#elif defined(_WIN32)
    WakeByAddressAll((void *) address);
#else
    (void) address;
#endif
}

// Returns the spin time of the next wait. `spin_ns` is the previous spin time, and `wait_ns` the duration of the wait
// that has just ended, or a negative number if the thread slept. Long waits shorten the spin time immediately, short
// waits lengthen it slowly, and a probe that ended without sleep sets it to twice the duration of the wait.
static inline int64_t edgechat_next_spin_ns(int64_t spin_ns, int64_t wait_ns) {
    int64_t next_ns = spin_ns + spin_ns / 4;
    if (wait_ns < 0) {
        next_ns = spin_ns / 2;
    } else if (wait_ns > spin_ns) {
        next_ns = 2 * wait_ns;
    }
    if (next_ns < EDGECHAT_MIN_SPIN_NS) {
        return EDGECHAT_MIN_SPIN_NS;
    }
    return next_ns < EDGECHAT_MAX_SPIN_NS ? next_ns : EDGECHAT_MAX_SPIN_NS;
}

// Wait until all `n_threads` threads have called this function with the same counters, which begin with 0.
static inline void edgechat_barrier_wait(atomic_int * n_arrived, atomic_int * n_passed, int n_threads) {
    const int passed = atomic_load_explicit(n_passed, memory_order_relaxed);
    if (atomic_fetch_add_explicit(n_arrived, 1, memory_order_seq_cst) == n_threads - 1) {
        atomic_store_explicit(n_arrived, 0, memory_order_relaxed);
        atomic_fetch_add_explicit(n_passed, 1, memory_order_seq_cst);
        // A thread counts itself before the kernel reads n_passed, so either it is seen here or it does not sleep.
        if (atomic_load_explicit(&edgechat_n_sleepers, memory_order_seq_cst) > 0) {
            edgechat_wake_all(n_passed);
        }
        return;
    }
    const bool is_probe = ++edgechat_n_waits % EDGECHAT_PROBE_INTERVAL == 0;
    const int64_t limit_ns = is_probe ? EDGECHAT_MAX_SPIN_NS : edgechat_spin_ns;
    int64_t start_ns = 0;
    for (int n_spins = 1;; n_spins++) {
        if (atomic_load_explicit(n_passed, memory_order_acquire) != passed) {
            const int64_t wait_ns = is_probe && start_ns != 0 ? edgechat_now_ns() - start_ns : 0;
            edgechat_spin_ns = edgechat_next_spin_ns(edgechat_spin_ns, wait_ns);
            return;
        }
        edgechat_pause();
        if (n_spins % EDGECHAT_SPINS_PER_CLOCK == 0) {
            const int64_t now_ns = edgechat_now_ns();
            start_ns = start_ns == 0 ? now_ns : start_ns;
            if (now_ns - start_ns > limit_ns) {
                break;
            }
        }
    }
    edgechat_spin_ns = edgechat_next_spin_ns(edgechat_spin_ns, -1);
    atomic_fetch_add_explicit(&edgechat_n_sleepers, 1, memory_order_seq_cst);
    while (atomic_load_explicit(n_passed, memory_order_seq_cst) == passed) {
        edgechat_sleep(n_passed, passed);
    }
    atomic_fetch_add_explicit(&edgechat_n_sleepers, -1, memory_order_seq_cst);
}
