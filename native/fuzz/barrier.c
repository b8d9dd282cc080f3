// Stress test of src/cpu/barrier.h: `barrier THREADS ROUNDS [LENGTH]`. In each round one thread writes a plain
// variable, and after the barrier all threads read it; a thread sanitizer sees an order that the barrier fails to make.
// LENGTH is the longest work between two barriers, in loops of an empty body. Prints the first wrong value and ends
// with 1, or ends with 0.
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>

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

int main(int argc, char ** argv) {
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
