// Decodes with a tiny random model, to test other operations than matrix products.
#include "selftest.h"

#include "ggml-cpp.h"
#include "ggml.h"
#include "gguf.h"
#include "llama.h"

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>
#include <vector>

#ifdef __linux__
#include <sys/mman.h>
#include <unistd.h>
#endif

namespace {

constexpr uint32_t n_embd   = 256;
constexpr uint32_t n_ff     = 512;
constexpr uint32_t n_head   = 4;
constexpr uint32_t n_kv     = 2;
constexpr uint32_t n_vocab  = 128;
constexpr uint32_t n_layer  = 2;
constexpr int      n_tokens = 8;

struct FileCloser {
    void operator()(std::FILE * file) const { std::fclose(file); }
};

struct ModelFree {
    void operator()(llama_model * model) const { llama_model_free(model); }
};

struct ContextFree {
    void operator()(llama_context * context) const { llama_free(context); }
};

using File    = std::unique_ptr<std::FILE, FileCloser>;
using Model   = std::unique_ptr<llama_model, ModelFree>;
using Context = std::unique_ptr<llama_context, ContextFree>;

// Opens a temporary file, in memory where possible, so that a full or read-only disk does not fail the backend's test.
std::FILE * new_file() {
#ifdef __linux__
    const int fd = memfd_create("edgechat-selftest", MFD_CLOEXEC);
    if (fd >= 0) {
        return fdopen(fd, "w+b");
    }
#endif
    return std::tmpfile();
}

class Writer {
  public:
    Writer() : context_(ggml_init({16u << 20, nullptr, false})), file_(gguf_init_empty()) {
        gguf_set_val_str(file_.get(), "general.architecture", "llama");
        gguf_set_val_str(file_.get(), "tokenizer.ggml.model", "none");
        set("llama.vocab_size", n_vocab);
        set("llama.context_length", 64);
        set("llama.embedding_length", n_embd);
        set("llama.feed_forward_length", n_ff);
        set("llama.block_count", n_layer);
        set("llama.attention.head_count", n_head);
        set("llama.attention.head_count_kv", n_kv);
        set("llama.rope.dimension_count", n_embd / n_head);
        gguf_set_val_f32(file_.get(), "llama.attention.layer_norm_rms_epsilon", 1e-5f);
        matrix("token_embd.weight", GGML_TYPE_Q8_0, n_embd, n_vocab);
        matrix("output.weight", GGML_TYPE_Q8_0, n_embd, n_vocab);
        norm("output_norm.weight");
        for (uint32_t i = 0; i < n_layer; i++) {
            const std::string block  = "blk." + std::to_string(i) + ".";
            const ggml_type   type   = i == 0 ? GGML_TYPE_Q4_0 : GGML_TYPE_Q4_K;
            const uint32_t    kv_dim = n_embd / n_head * n_kv;
            norm(block + "attn_norm.weight");
            norm(block + "ffn_norm.weight");
            matrix(block + "attn_q.weight", type, n_embd, n_embd);
            matrix(block + "attn_k.weight", type, n_embd, kv_dim);
            matrix(block + "attn_v.weight", type, n_embd, kv_dim);
            matrix(block + "attn_output.weight", type, n_embd, n_embd);
            matrix(block + "ffn_gate.weight", type, n_embd, n_ff);
            matrix(block + "ffn_up.weight", type, n_embd, n_ff);
            matrix(block + "ffn_down.weight", type, n_ff, n_embd);
        }
    }

    File write() const {
        File file(new_file());
        if (file && gguf_write_to_file_ptr(file_.get(), file.get(), false)) {
            std::rewind(file.get());
            return file;
        }
        return nullptr;
    }

  private:
    void set(const char * key, uint32_t value) { gguf_set_val_u32(file_.get(), key, value); }

    void norm(const std::string & name) {
        ggml_tensor * tensor = ggml_new_tensor_1d(context_.get(), GGML_TYPE_F32, n_embd);
        for (uint32_t i = 0; i < n_embd; i++) {
            static_cast<float *>(tensor->data)[i] = 1.0f;
        }
        ggml_set_name(tensor, name.c_str());
        gguf_add_tensor(file_.get(), tensor);
    }

    void matrix(const std::string & name, ggml_type type, uint32_t n_in, uint32_t n_out) {
        ggml_tensor *      tensor = ggml_new_tensor_2d(context_.get(), type, n_in, n_out);
        std::vector<float> values(static_cast<size_t>(n_in) * n_out);
        const float        scale = 1.0f / std::sqrt(static_cast<float>(n_in));
        for (float & value : values) {
            seed_ = seed_ * 1664525u + 1013904223u;
            value = (static_cast<float>(seed_ >> 8) / 8388608.0f - 1.0f) * scale;
        }
        ggml_quantize_chunk(type, values.data(), tensor->data, 0, n_out, n_in, nullptr);
        ggml_set_name(tensor, name.c_str());
        gguf_add_tensor(file_.get(), tensor);
    }

    uint32_t         seed_ = 1;
    ggml_context_ptr context_;
    gguf_context_ptr file_;
};

Context new_context(llama_model * model, int n_threads) {
    llama_context_params params = llama_context_default_params();
    params.n_ctx                = 64;
    params.n_batch              = 32;
    params.n_threads            = n_threads;
    params.n_threads_batch      = n_threads;
    return Context(llama_init_from_model(model, params));
}

std::vector<llama_token> new_tokens() {
    std::vector<llama_token> tokens;
    for (int i = 0; i < n_tokens; i++) {
        tokens.push_back((i * 37 + 5) % static_cast<int>(n_vocab));
    }
    return tokens;
}

// Returns the logits after the last of n_tokens tokens, decoded in batches of `batch`; empty if decoding failed.
std::vector<float> decode(llama_model * model, int n_threads, int batch) {
    const Context context = new_context(model, n_threads);
    if (!context) {
        return {};
    }
    std::vector<llama_token> tokens = new_tokens();
    for (int i = 0; i < n_tokens; i += batch) {
        if (llama_decode(context.get(), llama_batch_get_one(tokens.data() + i, batch)) != 0) {
            return {};
        }
    }
    const float * logits = llama_get_logits_ith(context.get(), -1);
    return logits == nullptr ? std::vector<float>() : std::vector<float>(logits, logits + n_vocab);
}

std::string compare(const std::vector<float> & together, const std::vector<float> & singly) {
    if (together.empty() || singly.empty()) {
        return "decoding failed";
    }
    double error = 0.0;
    double power = 0.0;
    for (size_t i = 0; i < together.size(); i++) {
        error += std::pow(static_cast<double>(together[i]) - static_cast<double>(singly[i]), 2);
        power += std::pow(static_cast<double>(together[i]), 2);
    }
    // Both results differ by rounding of activations in another block or order; 1 % of the signal is far above that.
    if (!(error <= 1e-4 * power) || !(power > 0.0)) {
        char message[96];
        std::snprintf(message, sizeof(message), "eight tokens at once and one by one differ: %.3g of %.3g", error, power);
        return message;
    }
    return "";
}

// Aborts a decode as soon as the backend asks. Returns whether decoding in the same context then still works; a backend
// that never asks computes to the end, which is no failure.
bool survives_abort(llama_model * model, int n_threads, const std::vector<float> & expected) {
    const Context context = new_context(model, n_threads);
    if (!context) {
        return false;
    }
    bool is_aborted = true;
    llama_set_abort_callback(context.get(), [](void * flag) { return *static_cast<bool *>(flag); }, &is_aborted);
    for (int attempt = 0; attempt < 2; attempt++) {
        std::vector<llama_token> tokens = new_tokens();
        llama_memory_clear(llama_get_memory(context.get()), true);
        const int result = llama_decode(context.get(), llama_batch_get_one(tokens.data(), n_tokens));
        if (result < 0 || (result != 0 && !is_aborted)) {
            return false;
        }
        is_aborted = false;
    }
    const float * logits = llama_get_logits_ith(context.get(), -1);
    return logits != nullptr && compare(expected, std::vector<float>(logits, logits + n_vocab)).empty();
}

}  // namespace

void selftest_decode(ggml_backend_dev_t device, int n_threads, Report & report) {
    report.stage("decode of a tiny model");
    llama_log_set([](ggml_log_level, const char *, void *) {}, nullptr);
    const File file = Writer().write();
    if (!file) {
        std::exit(1);  // not the backend's failure
    }
    ggml_backend_dev_t devices[] = {device, nullptr};
    llama_model_params params    = llama_model_default_params();
    params.load_mode             = LLAMA_LOAD_MODE_NONE;
    if (ggml_backend_dev_type(device) != GGML_BACKEND_DEVICE_TYPE_CPU) {
        params.devices      = devices;
        params.n_gpu_layers = 99;
    }
    const Model model(llama_model_load_from_file_ptr(file.get(), params));
    if (!model) {
        report.fail("decode of a tiny model: it can't be loaded");
        return;
    }
    const std::vector<float> together = decode(model.get(), n_threads, n_tokens);
    const std::string        wrong    = compare(together, decode(model.get(), n_threads, 1));
    if (!wrong.empty()) {
        report.fail("decode of a tiny model: " + wrong);
        return;
    }
    report.stage("abort of a decode");
    if (!survives_abort(model.get(), n_threads, together)) {
        report.fail("abort of a decode: the next decode fails or differs");
    }
}
