// The C ABI of libedgechat, for work that is too slow or impossible in Python. All functions are thread-safe unless
// noted.
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

// Abort flag. ggml polls the callback several hundred times per token, so it must not call Python.
typedef struct edgechat_abort_flag edgechat_abort_flag;
EDGECHAT_API edgechat_abort_flag * edgechat_abort_flag_new(void);
EDGECHAT_API void edgechat_abort_flag_free(edgechat_abort_flag * flag);
EDGECHAT_API void edgechat_abort_flag_set(edgechat_abort_flag * flag, int value);
// A ggml_abort_callback; `flag` is an edgechat_abort_flag.
EDGECHAT_API bool edgechat_abort_callback(void * flag);

// A pool of compute threads that outlives single decodes; without a pool, ggml starts new threads for each decode.
// Null if the CPU module has no thread pools. Free the attached contexts before the pool.
typedef struct edgechat_threadpool edgechat_threadpool;
EDGECHAT_API edgechat_threadpool * edgechat_threadpool_new(int n_threads);
EDGECHAT_API void edgechat_threadpool_attach(edgechat_threadpool * threadpool, struct llama_context * context);
EDGECHAT_API void edgechat_threadpool_free(edgechat_threadpool * threadpool);
// Returns ggml's pool, for a backend without a context.
struct ggml_threadpool * edgechat_threadpool_raw(edgechat_threadpool * threadpool);

// While `is_lazy` is 1, new CPU buffers are cleared without touching their pages, where the system can do that (Linux).
// Not thread-safe: no other thread may allocate buffers during the call.
EDGECHAT_API void edgechat_set_lazy_clear(int is_lazy);

// Returns the index of the largest of `count` logits (the first of equal ones), like llama.cpp's greedy sampler. That
// sampler first copies all candidates, which takes 3 % of the decode time of a 0.5B model with a vocabulary of 152k.
EDGECHAT_API int32_t edgechat_argmax(const float * logits, int32_t count);

// Suffix index over a sequence of tokens: finds earlier occurrences of its end, or of the end of another sequence. Not
// thread-safe. A negative token separates texts: no match and no draft extends across it.
typedef struct edgechat_suffix_index edgechat_suffix_index;

// Maximum length of a match, and maximum number of compared occurrences of the last four tokens, newest first.
#define EDGECHAT_SUFFIX_MAX_MATCH 64
#define EDGECHAT_SUFFIX_MAX_COMPARED 64

// Uses at most 36 bytes per token up to `capacity` tokens; beyond that it grows, to at most 54 bytes per token. Null if
// out of memory.
EDGECHAT_API edgechat_suffix_index * edgechat_suffix_index_new(int32_t capacity);
EDGECHAT_API void edgechat_suffix_index_free(edgechat_suffix_index * index);
EDGECHAT_API int32_t edgechat_suffix_index_size(const edgechat_suffix_index * index);
EDGECHAT_API uint64_t edgechat_suffix_index_bytes(const edgechat_suffix_index * index);
// Returns the new size, or -1 if out of memory; then nothing was appended.
EDGECHAT_API int32_t edgechat_suffix_index_append(edgechat_suffix_index * index, const int32_t * tokens, int32_t count);
EDGECHAT_API void edgechat_suffix_index_truncate(edgechat_suffix_index * index, int32_t size);
// Finds the longest match of the end of `context` (if null: of the indexed text), or the newest of several matches of
// this length, and writes up to `max_draft` tokens that follow it. Returns the number of tokens. Sets `match_length`
// (at most EDGECHAT_SUFFIX_MAX_MATCH) and `position`, the position of the draft, or -1 without a match.
EDGECHAT_API int32_t edgechat_suffix_index_draft(
    const edgechat_suffix_index * index, const int32_t * context, int32_t count, int32_t * draft, int32_t max_draft,
    int32_t * match_length, int32_t * position);

// Drafts of a model or of prediction heads. A context has one user at a time.

// Widths and order of a drafter's batches.
typedef struct edgechat_draft_layout {
    int32_t n_vocab;               // only tokens below this number are drafted
    int32_t n_row;                 // floats of the hidden row that comes with each token; 0 for a draft model
    int32_t n_heads;               // prediction heads that follow each other; 1 if one head predicts all tokens
    int32_t has_fixed_position;    // 1: all draft tokens have the position of the token before them
    int32_t has_separate_outputs;  // 1: the graph keeps the rows of all tokens, so that all or none have outputs
} edgechat_draft_layout;

// One sequence of edgechat_draft_tokens.
typedef struct edgechat_draft {
    int32_t         seq;
    int32_t         chain_seq;        // sequence that gets the draft tokens; if not `seq`, it becomes a copy of it
    int32_t         position;         // of the first pending token
    int32_t         n_pending;        // at least 1
    const int32_t * pending;          // tokens to compute; the draft follows the last one
    const float *   rows;             // [n_pending][n_row]; null for a draft model
    int32_t         max_tokens;
    float           min_probability;  // the draft ends before a token with a lower probability
    int32_t         ends_at_eog;      // 1: the draft ends before an end-of-generation token
    int32_t *       tokens;           // result: up to `max_tokens` tokens
    float *         probabilities;    // result: the drafter's probabilities, from the softmax of the 10 largest logits
    int32_t         n_tokens;         // result
} edgechat_draft;

// Computes the pending tokens of all sequences in common batches, then extends each by its most likely tokens.
// The draft tokens stay in the memory of `chain_seq`, except the last one. Returns 0, or the code of llama_decode (1:
// no free cells, 2: aborted, negative: failed); then the sequences contain any part of these tokens.
EDGECHAT_API int32_t edgechat_draft_tokens(
    struct llama_context * context, const edgechat_draft_layout * layout, edgechat_draft * drafts, int32_t count);

// Makes a context keep the hidden rows of its outputs: inputs of `n_layers` layers, or with 0 layers the row for
// prediction heads. llama.cpp aborts the process if its graph of the architecture has no such rows.
EDGECHAT_API void edgechat_keep_rows(struct llama_context * context, const int32_t * layers, int32_t n_layers);

// Copies the hidden rows of outputs of the last batch, by index in the batch; the rows of several layers are joined.
// Returns 0, or -1 if a row is missing.
EDGECHAT_API int32_t edgechat_copy_rows(
    struct llama_context * context, const int32_t * layers, int32_t n_layers, const int32_t * indexes, int32_t count,
    float * rows);

// Converts `count` joined rows of `n_features` floats with the encoder of an EAGLE-3 model, at most `max_rows` at once.
// Returns 0, or the code of llama_encode.
EDGECHAT_API int32_t edgechat_encode_rows(
    struct llama_context * context, const float * features, int32_t n_features, int32_t count, int32_t max_rows,
    float * rows);

struct llama_model;

// Writes up to `capacity` indexes of the target's layers that an EAGLE-3 model reads; returns their number.
EDGECHAT_API int32_t edgechat_target_layers(const struct llama_model * model, int32_t * layers, int32_t capacity);

// Memory of a model and a context in one buffer type, in bytes.
typedef struct edgechat_memory_entry {
    char     buffer_type[64];
    uint64_t model_bytes;
    uint64_t context_bytes;
    uint64_t compute_bytes;
    int32_t  is_host;
} edgechat_memory_entry;

// Writes up to `capacity` entries and returns the total number. Must not run while the context decodes.
EDGECHAT_API int edgechat_memory_breakdown(
    const struct llama_context * context, edgechat_memory_entry * entries, int capacity);

// A GPU found by a loaded module.
typedef struct edgechat_device {
    char     name[64];
    char     description[128];
    uint64_t free_bytes;
    uint64_t total_bytes;
    int32_t  is_unified;  // 1 if it shares the memory of the CPU
} edgechat_device;

// Writes up to `capacity` entries and returns the total number of GPUs.
EDGECHAT_API int edgechat_devices(edgechat_device * devices, int capacity);

// Limits edgechat_devices and edgechat_place to GPUs other than those named, such as "Vulkan1". Not thread-safe: call it
// before any model is loaded.
EDGECHAT_API void edgechat_exclude_devices(const char * const * names, int count);

struct llama_model_params;

// Sets the placement of a model's tensors: `n_gpu_layers` layers on all GPUs, optionally without their experts, which
// stay on the CPU. With 0 layers no GPU is used at all.
EDGECHAT_API void edgechat_place(struct llama_model_params * params, int n_gpu_layers, int experts_on_cpu);

// Loads and tests the backend module at `module_path`: every quantised matrix product that its first device
// supports, in its default buffers and in each extra buffer type, then one decode of a tiny model.
//
// Writes one line to `report_fd` before each step ("stage\t<text>"), one for each wrong result ("fail\t<text>"), and
// "done\t<checks>\t<failures>" at the end, so that the reader can tell where a crash or a hang happened. Returns the
// number of failures, or -1 if the module can't be loaded or does not support this CPU. Call it once per process.
EDGECHAT_API int edgechat_selftest(const char * module_path, int n_threads, int report_fd);

// What edgechat_selftest_device tests.
typedef struct edgechat_selftest_options {
    int32_t      device;     // number of the device within the module
    int32_t      n_threads;
    int32_t      report_fd;
    int32_t      decodes;    // 1: also the decode of a tiny model
    const char * types;      // ggml's numbers of the weight types to test, separated by spaces; empty: all
    uint64_t     n_bytes;    // memory to allocate on the device, write and read back; 0: none
    // If not 0, nothing is tested: the speed of the types is measured on the device, and on the CPU with so many threads.
    int32_t      n_speed_threads;
} edgechat_selftest_options;

// Like edgechat_selftest, for one device of a module. After loading, writes
// "device\t<devices of the module>\t<name>\t<description>\t<gpu, igpu, cpu or accel>", and after the test of memory
// "memory\t<allocated bytes>", after each weight type "type\t<number>". Memory that cannot be allocated is not a failure; memory that loses its contents is.
EDGECHAT_API int edgechat_selftest_device(const char * module_path, const edgechat_selftest_options * options);

// Loads the backend module at `module_path` and measures it with `n_threads` threads for a few seconds; with `quick`,
// only Q4_0. Writes lines "speed\t<name>\t<buffer type>\t<batch>\t<per second>" to `report_fd`: for each weight type
// the weights multiplied per second (counted once per batch), for "attention <type>" the key and value elements read
// per query and second, for "operation" small operations; "done" at the end. Returns 0, or -1 if the module can't
// be loaded. Call it once per process.
EDGECHAT_API int edgechat_speeds(const char * module_path, int n_threads, int quick, int report_fd);

// Properties of a model that determine the quantised types of its tensors, and the tensors; types are ggml's numbers.
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

// Writes the type of each tensor after quantisation with a preset (a llama_ftype). Returns 0, or -1 if llama.cpp has no
// rules for the model. Validates little: the caller must pass 1 to 512 layers and 1 to 4 dimensions.
EDGECHAT_API int edgechat_quant_types(
    const edgechat_quant_model * model, const edgechat_quant_tensor * tensors, int count, int preset, int32_t * types);

#ifdef __cplusplus
}
#endif
