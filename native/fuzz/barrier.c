// Stress test of src/cpu/barrier.h: `barrier THREADS ROUNDS [LENGTH]`. In each round one thread writes a plain
// variable, and after the barrier all threads read it; a thread sanitizer sees an order that the barrier fails to make.
// `barrier spin` checks how the time of spinning follows the waits.
// LENGTH is the longest work between two barriers, in loops of an empty body. Prints the first wrong value and ends
// with 1, or ends with 0.
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../src/cpu/barrier.h"

enum { MAX_THREADS = 64 };

static atomic_int n_arrived = 0;
static atomic_int n_passed = 0;
static int n_threads = 0;
static int n_rounds = 0;
static int max_length = 0;
static int value = 0;
static atomic_int n_errors = 0;

static void * run(void * argument) {
    const int index = *(const int *) argument;
    unsigned random = (unsigned) index + 1;
    for (int round = 0; round < n_rounds; round++) {
        random = random * 1664525u + 1013904223u;
        for (volatile int i = max_length > 0 ? (int) ((random >> 8) % (unsigned) max_length) : 0; i > 0; i--) {
        }
        if (round % n_threads == index) {
            value = round;
        }
        edgechat_barrier_wait(&n_arrived, &n_passed, n_threads);
        const int seen = value;
        if (seen != round && atomic_fetch_add(&n_errors, 1) == 0) {
            fprintf(stderr, "thread %d read %d in round %d\n", index, seen, round);
        }
        edgechat_barrier_wait(&n_arrived, &n_passed, n_threads);
    }
    return NULL;
}

// Spin in `n_waits` waits of `wait_ns`, as edgechat_barrier_wait does; return in how many of them a thread sleeps.
static int count_sleeps(int64_t * spin_ns, int n_waits, int64_t wait_ns) {
    int n_sleeps = 0;
    for (int i = 1; i <= n_waits; i++) {
        const int64_t limit_ns = i % EDGECHAT_PROBE_INTERVAL == 0 ? EDGECHAT_MAX_SPIN_NS : *spin_ns;
        const int sleeps = wait_ns > limit_ns;
        *spin_ns = edgechat_next_spin_ns(*spin_ns, sleeps ? -1 : wait_ns);
        n_sleeps += sleeps;
    }
    return n_sleeps;
}

// Waits of 2 to 30 us end while the threads spin, also after a time of long waits.
static int check_spin_times(void) {
    for (int64_t wait_ns = 2000; wait_ns <= 30000; wait_ns += 1000) {
        int64_t spin_ns = EDGECHAT_MAX_SPIN_NS;
        const int n_long = count_sleeps(&spin_ns, 1000, 5000000);
        const int n_short = count_sleeps(&spin_ns, 1000, wait_ns);
        if (n_long != 1000 || n_short > EDGECHAT_PROBE_INTERVAL) {
            fprintf(stderr, "%d sleeps in long waits, %d in waits of %d ns\n", n_long, n_short, (int) wait_ns);
            return 1;
        }
    }
    return 0;
}

int main(int argc, char ** argv) {
    if (argc > 1 && strcmp(argv[1], "spin") == 0) {
        return check_spin_times();
    }
    n_threads = argc > 1 ? atoi(argv[1]) : 0;
    n_rounds = argc > 2 ? atoi(argv[2]) : 0;
    max_length = argc > 3 ? atoi(argv[3]) : 0;
    if (n_threads < 1 || n_threads > MAX_THREADS || n_rounds < 1) {
        fprintf(stderr, "usage: barrier THREADS ROUNDS [LENGTH]\n");
        return 2;
    }
    pthread_t threads[MAX_THREADS];
    int indexes[MAX_THREADS];
    for (int i = 0; i < n_threads; i++) {
        indexes[i] = i;
        if (pthread_create(&threads[i], NULL, run, &indexes[i]) != 0) {
            fprintf(stderr, "cannot start thread %d\n", i);
            return 2;
        }
    }
    for (int i = 0; i < n_threads; i++) {
        pthread_join(threads[i], NULL);
    }
    return atomic_load(&n_errors) > 0;
}
