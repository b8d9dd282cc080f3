// llama.cpp's ggml-cpu.c with another barrier (barrier.h), and with threads that stop polling for work sooner.
#include <stdbool.h>

struct ggml_threadpool;
static void edgechat_barrier(struct ggml_threadpool * pool);
static bool edgechat_stops_polling(void);

// The file defines and calls ggml_barrier. The first token of the argument distinguishes the definition and the
// declarations, whose argument begins with `struct`, from the calls.
#define ggml_barrier(argument) EDGECHAT_BARRIER_##argument)
#define EDGECHAT_BARRIER_struct edgechat_upstream_barrier(struct
#define EDGECHAT_BARRIER_params edgechat_barrier(params
#define EDGECHAT_BARRIER_state edgechat_barrier(state

// The definition of ggml_thread_cpu_relax has the argument `void`. Its call is in the loop that polls for work.
#define ggml_thread_cpu_relax(...) EDGECHAT_RELAX_##__VA_ARGS__
#define EDGECHAT_RELAX_void edgechat_upstream_relax(void)
#define EDGECHAT_RELAX_ if (edgechat_stops_polling()) break

#include "ggml-cpu.c"

#undef ggml_barrier
#undef ggml_thread_cpu_relax

#include "barrier.h"

// Time of polling before a thread sleeps until the next graph, in nanoseconds. Less than 2 ms pass between two decode
// steps.
static const int64_t edgechat_max_polling_ns = 5000000;

static EDGECHAT_THREAD_LOCAL int edgechat_n_polls = 0;
static EDGECHAT_THREAD_LOCAL int64_t edgechat_polling_since_ns = 0;

static bool edgechat_stops_polling(void) {
    edgechat_pause();
    if (++edgechat_n_polls % EDGECHAT_SPINS_PER_CLOCK != 0) {
        return false;
    }
    const int64_t now_ns = edgechat_now_ns();
    if (edgechat_polling_since_ns == 0) {
        edgechat_polling_since_ns = now_ns;
    }
    return now_ns - edgechat_polling_since_ns > edgechat_max_polling_ns;
}

static void edgechat_barrier(struct ggml_threadpool * pool) {
    const int n_threads = atomic_load_explicit(&pool->n_graph, memory_order_relaxed) & GGML_THREADPOOL_N_THREADS_MASK;
    if (n_threads > 1) {
        edgechat_barrier_wait(&pool->n_barrier, &pool->n_barrier_passed, n_threads);
        edgechat_polling_since_ns = 0;
    }
}

void ggml_barrier(struct ggml_threadpool * pool) {
    edgechat_barrier(pool);
}
