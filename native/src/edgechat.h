// The C ABI of libedgechat: what Python should not do itself. All functions are thread-safe unless noted.
#pragma once

#include <stdint.h>

#ifdef _WIN32
#define EDGECHAT_API __declspec(dllexport)
#else
#define EDGECHAT_API __attribute__((visibility("default")))
#endif

#ifdef __cplusplus
extern "C" {
#endif

struct llama_context;

// Abort flag. ggml polls the callback several hundred times per token, so it must not be Python.
typedef struct edgechat_abort_flag edgechat_abort_flag;
EDGECHAT_API edgechat_abort_flag * edgechat_abort_flag_new(void);
EDGECHAT_API void edgechat_abort_flag_free(edgechat_abort_flag * flag);
EDGECHAT_API void edgechat_abort_flag_set(edgechat_abort_flag * flag, int value);
// A ggml_abort_callback; `flag` is an edgechat_abort_flag.
EDGECHAT_API bool edgechat_abort_callback(void * flag);

// A pool of compute threads that outlives single decodes; without one ggml starts its threads anew for each.
// Null if the CPU module has none. Free the contexts that it is attached to first.
typedef struct edgechat_threadpool edgechat_threadpool;
EDGECHAT_API edgechat_threadpool * edgechat_threadpool_new(int n_threads);
EDGECHAT_API void edgechat_threadpool_attach(edgechat_threadpool * threadpool, struct llama_context * context);
EDGECHAT_API void edgechat_threadpool_free(edgechat_threadpool * threadpool);

// Index of the largest of `count` logits, the first of equals, as llama.cpp's greedy sampler has it. That one first
// copies all candidates, which costs 3 % of decoding a model of 0.5B weights with a vocabulary of 152k.
EDGECHAT_API int32_t edgechat_argmax(const float * logits, int32_t count);

// What one buffer type holds for a context, in bytes.
typedef struct edgechat_memory_entry {
    char     buffer_type[64];
    uint64_t model_bytes;
    uint64_t context_bytes;
    uint64_t compute_bytes;
    int32_t  is_host;
} edgechat_memory_entry;

// Writes up to `capacity` entries and returns how many there are. Not while the context decodes.
EDGECHAT_API int edgechat_memory_breakdown(
    const struct llama_context * context, edgechat_memory_entry * entries, int capacity);

// Loads the backend module at `module_path` and tries it: every quantised matrix product that its first
// device claims, in its plain buffers and in each of its extra buffer types, then one decode of a tiny model.
//
// Writes one line to `report_fd` before each step ("stage\t<words>"), one for each wrong result
// ("fail\t<words>"), and "done\t<checks>\t<failures>" at the end, so that a reader knows where a crash or a
// hang happened. Returns the number of failures, or -1 if the module can't be loaded or refuses this CPU.
// Call it once, in a process of its own.
EDGECHAT_API int edgechat_selftest(const char * module_path, int n_threads, int report_fd);

#ifdef __cplusplus
}
#endif
