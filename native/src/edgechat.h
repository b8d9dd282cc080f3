// The C ABI of libedgechat: what Python should not do itself. All functions are thread-safe unless noted.
#pragma once

#include <stdint.h>

struct ggml_threadpool;

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
// ggml's own, for a backend that no context owns.
struct ggml_threadpool * edgechat_threadpool_raw(edgechat_threadpool * threadpool);

// Index of the largest of `count` logits, the first of equals, as llama.cpp's greedy sampler has it. That one first
// copies all candidates, which costs 3 % of decoding a model of 0.5B weights with a vocabulary of 152k.
EDGECHAT_API int32_t edgechat_argmax(const float * logits, int32_t count);

// An index of a text of tokens that finds where its end, or that of another text, stood before. Not thread-safe.
// A negative token separates texts: no match goes across it, and no draft begins with it or goes beyond it.
typedef struct edgechat_suffix_index edgechat_suffix_index;

// Matches are looked for up to this length, among so many occurrences of the last four tokens, newest first.
#define EDGECHAT_SUFFIX_MAX_MATCH 64
#define EDGECHAT_SUFFIX_MAX_COMPARED 64

// `capacity` tokens take at most 36 bytes each; with more it grows, to at most 54. Null if there is no memory.
EDGECHAT_API edgechat_suffix_index * edgechat_suffix_index_new(int32_t capacity);
EDGECHAT_API void edgechat_suffix_index_free(edgechat_suffix_index * index);
EDGECHAT_API int32_t edgechat_suffix_index_size(const edgechat_suffix_index * index);
EDGECHAT_API uint64_t edgechat_suffix_index_bytes(const edgechat_suffix_index * index);
// Returns the new size, or -1 if there is no memory: then nothing was appended.
EDGECHAT_API int32_t edgechat_suffix_index_append(edgechat_suffix_index * index, const int32_t * tokens, int32_t count);
EDGECHAT_API void edgechat_suffix_index_truncate(edgechat_suffix_index * index, int32_t size);
// Writes what followed the longest match of the end of `context` (of the index's own text if that is null), up to
// `max_draft` tokens, and returns how many. Of equally long matches the newest counts. `match_length` is its length, up
// to EDGECHAT_SUFFIX_MAX_MATCH; `position` where the draft was found, or -1.
EDGECHAT_API int32_t edgechat_suffix_index_draft(
    const edgechat_suffix_index * index, const int32_t * context, int32_t count, int32_t * draft, int32_t max_draft,
    int32_t * match_length, int32_t * position);

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

// A GPU that a loaded module found.
typedef struct edgechat_device {
    char     name[64];
    char     description[128];
    uint64_t free_bytes;
    uint64_t total_bytes;
    int32_t  is_unified;  // its memory is the machine's own
} edgechat_device;

// Writes up to `capacity` entries and returns how many GPUs there are.
EDGECHAT_API int edgechat_devices(edgechat_device * devices, int capacity);

struct llama_model_params;

// Says where a model's tensors go: `n_gpu_layers` on all GPUs there are, of these the experts beside the CPU if asked
// for; with 0, no GPU is even looked at.
EDGECHAT_API void edgechat_place(struct llama_model_params * params, int n_gpu_layers, int experts_on_cpu);

// Loads the backend module at `module_path` and tries it: every quantised matrix product that its first
// device claims, in its plain buffers and in each of its extra buffer types, then one decode of a tiny model.
//
// Writes one line to `report_fd` before each step ("stage\t<words>"), one for each wrong result
// ("fail\t<words>"), and "done\t<checks>\t<failures>" at the end, so that a reader knows where a crash or a
// hang happened. Returns the number of failures, or -1 if the module can't be loaded or refuses this CPU.
// Call it once, in a process of its own.
EDGECHAT_API int edgechat_selftest(const char * module_path, int n_threads, int report_fd);

// Loads the backend module at `module_path` and measures it with `n_threads` threads, for a few seconds; of `quick`
// only Q4_0. Writes
// lines of "speed\t<what>\t<buffer type>\t<batch>\t<per second>" to `report_fd`: for each weight type the weights
// multiplied in a second (those of a batch once, however many columns it has), for "attention <type>" numbers of keys
// and values that a query passes by, for "operation" small operations; "done" at the end. Returns 0, or -1 if the
// module can't be loaded. Call it once, in a process of its own.
EDGECHAT_API int edgechat_speeds(const char * module_path, int n_threads, int quick, int report_fd);

// What of a model decides which types its tensors get, and the tensors; types are ggml's numbers.
typedef struct edgechat_quant_model {
    const char * architecture;
    uint32_t     n_embd, n_ff, n_layer, n_head, n_head_kv, n_expert, key_length, value_length;
} edgechat_quant_model;
typedef struct edgechat_quant_tensor {
    const char * name;
    int64_t      shape[4];
    int32_t      n_dims;
    int32_t      type;
} edgechat_quant_tensor;

// Writes the type that each tensor has after quantising under a preset (a llama_ftype). Returns 0, or -1 if llama.cpp
// has no rules for such a model. It checks little: layers must be 1 to 512, and dimensions 1 to 4.
EDGECHAT_API int edgechat_quant_types(
    const edgechat_quant_model * model, const edgechat_quant_tensor * tensors, int count, int preset, int32_t * types);

#ifdef __cplusplus
}
#endif
