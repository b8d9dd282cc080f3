// Kernel benchmark: speed of matrix products for each weight type, from which decode and prefill speed are predicted.
#include "edgechat.h"
#include "selftest.h"
#include "weights.h"

#include "ggml-cpp.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <functional>
#include <string>
#include <vector>

#ifdef _WIN32
#include <io.h>
#define write _write
#else
#include <unistd.h>
#endif

namespace {

constexpr int64_t n_in  = 2048;
constexpr int64_t n_out = 512;
// Sizes of the measured matrices. Decoding reads weights from memory, so they exceed the caches; larger batches are
// compute-bound.
constexpr size_t streamed_bytes = 160u << 20;
constexpr size_t computed_bytes = 2u << 20;
constexpr size_t copied_bytes   = 64u << 20;
// Number of small operations in a graph that measures the overhead per operation.
constexpr int n_small = 200;
// Shape of the measured KV cache: 4 heads of 64 elements, and this number of tokens.
constexpr int64_t n_depth     = 2048;
constexpr int64_t n_head_kv   = 4;
constexpr int64_t head_length = 64;

constexpr int    min_runs  = 3;
constexpr int    max_runs  = 15;
constexpr double enough_s  = 0.04;

using Clock = std::chrono::steady_clock;

// Returns the median seconds of a run; the first run is a warm-up.
double median_s(const std::function<void()> & run) {
    run();
    std::vector<double> times;
    double              total = 0.0;
    while (times.size() < min_runs || (total < enough_s && times.size() < max_runs)) {
        const auto start = Clock::now();
        run();
        times.push_back(std::chrono::duration<double>(Clock::now() - start).count());
        total += times.back();
    }
    std::nth_element(times.begin(), times.begin() + static_cast<long>(times.size() / 2), times.end());
    return times[times.size() / 2];
}

ggml_context_ptr new_context(size_t n_tensors) {
    return ggml_context_ptr(
        ggml_init({ggml_tensor_overhead() * n_tensors + ggml_graph_overhead_custom(n_tensors, false), nullptr, true}));
}

// True for types that only specially trained models use, and for types that no chat model uses.
bool is_rare(ggml_type type) {
    switch (type) {
        case GGML_TYPE_IQ1_S:
        case GGML_TYPE_IQ1_M:
        case GGML_TYPE_TQ1_0:
        case GGML_TYPE_TQ2_0:
        case GGML_TYPE_Q1_0:
        case GGML_TYPE_Q2_0:
        case GGML_TYPE_NVFP4:
            return true;
        default:
            return false;
    }
}

class Measurement {
  public:
    Measurement(ggml_backend_dev_t device, ggml_backend_t backend, int fd)
        : device_(device), backend_(backend), fd_(fd) {}

    // Measures only products of the given types, one column and many.
    void some(const std::vector<ggml_type> & types) {
        for (ggml_type type : types) {
            products(type, {1, 256});
        }
    }

    // Measures the bytes per second that are copied from ordinary memory to a device with its own buffers.
    void copies() {
        const ggml_context_ptr context = new_context(2);
        ggml_tensor *          tensor  = ggml_new_tensor_1d(context.get(), GGML_TYPE_I8, copied_bytes);
        const ggml_backend_buffer_ptr buffer(ggml_backend_alloc_ctx_tensors(context.get(), backend_));
        if (!buffer) {
            return;
        }
        const std::vector<uint8_t> data(copied_bytes, 1);
        const double seconds = median_s([&] { ggml_backend_tensor_set(tensor, data.data(), 0, data.size()); });
        line("copy", ggml_backend_buffer_name(buffer.get()), 1, static_cast<double>(copied_bytes) / seconds);
    }

    // Measures only one common type, to compare thread counts.
    void quick() {
        products(GGML_TYPE_Q4_0);
        line("done", "", 0, 0.0);
    }

    void all() {
        small_operations();
        for (ggml_type type : {GGML_TYPE_F16, GGML_TYPE_Q8_0}) {
            attention(type, 1);
            attention(type, 32);
        }
        for (int number = 0; number < GGML_TYPE_COUNT; number++) {
            const ggml_type type = static_cast<ggml_type>(number);
            if (is_weight_type(type) && !is_rare(type)) {
                products(type);
            }
        }
        line("done", "", 0, 0.0);
    }

  private:
    void line(const std::string & what, const std::string & where, int64_t batch, double per_s) {
        char text[160];
        const int size = std::snprintf(text, sizeof(text), "speed\t%s\t%s\t%d\t%.6g\n", what.c_str(), where.c_str(),
                                       static_cast<int>(batch), per_s);
        if (write(fd_, text, static_cast<unsigned>(size)) < 0) {
            std::abort();
        }
    }

    double graph_s(ggml_cgraph * graph) {
        return median_s([&] { ggml_backend_graph_compute(backend_, graph); });
    }

    // Measures the overhead of operations: threads synchronise once after each operation, and twice in a product.
    void small_operations() {
        chain("operation", GGML_TYPE_F32, 1024, [](ggml_context * c, ggml_tensor * y, ggml_tensor *) {
            return ggml_rms_norm(c, y, 1e-5f);
        });
        chain("product", GGML_TYPE_Q8_0, 64, [](ggml_context * c, ggml_tensor * y, ggml_tensor * weight) {
            return ggml_mul_mat(c, weight, y);
        });
    }

    void chain(const char * name, ggml_type type, int64_t width,
               const std::function<ggml_tensor *(ggml_context *, ggml_tensor *, ggml_tensor *)> & step) {
        const ggml_context_ptr context = new_context(n_small + 4);
        ggml_tensor *          y       = ggml_new_tensor_1d(context.get(), GGML_TYPE_F32, width);
        ggml_tensor *          weight  = ggml_new_tensor_2d(context.get(), type, width, width);
        for (int i = 0; i < n_small; i++) {
            y = step(context.get(), y, weight);
        }
        const ggml_backend_buffer_ptr buffer(ggml_backend_alloc_ctx_tensors(context.get(), backend_));
        ggml_backend_buffer_clear(buffer.get(), 0);
        ggml_cgraph * graph = ggml_new_graph_custom(context.get(), n_small + 4, false);
        ggml_build_forward_expand(graph, y);
        line(name, "", 1, n_small / graph_s(graph));
    }

    // Measures the number of key and value elements that are read per query and second.
    void attention(ggml_type type, int64_t batch) {
        const ggml_context_ptr context = new_context(16);
        ggml_context *         c       = context.get();
        ggml_tensor * q = ggml_new_tensor_4d(c, GGML_TYPE_F32, head_length, batch, 2 * n_head_kv, 1);
        ggml_tensor * k = ggml_new_tensor_4d(c, type, head_length, n_depth, n_head_kv, 1);
        ggml_tensor * v = ggml_new_tensor_4d(c, type, head_length, n_depth, n_head_kv, 1);
        ggml_tensor * m = ggml_new_tensor_4d(c, GGML_TYPE_F16, n_depth, batch, 1, 1);
        ggml_tensor * result = ggml_flash_attn_ext(c, q, k, v, m, 0.125f, 0.0f, 0.0f);
        if (!ggml_backend_dev_supports_op(device_, result)) {
            return;
        }
        const ggml_backend_buffer_ptr buffer(ggml_backend_alloc_ctx_tensors(c, backend_));
        if (!buffer) {
            return;
        }
        ggml_backend_buffer_clear(buffer.get(), 0);
        ggml_cgraph * graph = ggml_new_graph_custom(c, 16, false);
        ggml_build_forward_expand(graph, result);
        const double numbers = 2.0 * head_length * n_depth * 2 * n_head_kv * static_cast<double>(batch);
        line(std::string("attention ") + ggml_type_name(type), "", batch, numbers / graph_s(graph));
    }

    void products(ggml_type type, const std::vector<int64_t> & batches = {1, 4, 32}) {
        const std::vector<uint8_t> matrix = random_weights(type, n_in, n_out);
        for (ggml_backend_buffer_type_t buffer_type : buffer_types(device_)) {
            const size_t n_streamed = std::max<size_t>(1, streamed_bytes / matrix.size());
            const size_t n_computed = std::max<size_t>(1, computed_bytes / matrix.size());
            if (!claims(type, buffer_type)) {
                continue;
            }
            const ggml_context_ptr     context = new_context(n_streamed);
            std::vector<ggml_tensor *> weights;
            for (size_t i = 0; i < n_streamed; i++) {
                weights.push_back(ggml_new_tensor_2d(context.get(), type, n_in, n_out));
            }
            const ggml_backend_buffer_ptr buffer(ggml_backend_alloc_ctx_tensors_from_buft(context.get(), buffer_type));
            if (!buffer) {
                continue;
            }
            ggml_backend_buffer_set_usage(buffer.get(), GGML_BACKEND_BUFFER_USAGE_WEIGHTS);
            for (ggml_tensor * weight : weights) {
                ggml_backend_tensor_set(weight, matrix.data(), 0, matrix.size());
            }
            const std::string where = ggml_backend_buft_name(buffer_type);
            for (int64_t batch : batches) {
                const size_t count = batch == 1 ? n_streamed : n_computed;
                line(ggml_type_name(type), where, batch, product_s(weights, count, batch));
            }
        }
    }

    // Measures the weights per second of `count` consecutive products.
    double product_s(const std::vector<ggml_tensor *> & weights, size_t count, int64_t batch) {
        const ggml_context_ptr context     = new_context(2 * count + 2);
        ggml_tensor *          activations = ggml_new_tensor_2d(context.get(), GGML_TYPE_F32, n_in, batch);
        ggml_cgraph *          graph = ggml_new_graph_custom(context.get(), 2 * count + 2, false);
        for (size_t i = 0; i < count; i++) {
            ggml_build_forward_expand(graph, ggml_mul_mat(context.get(), weights[i], activations));
        }
        const ggml_backend_buffer_ptr buffer(ggml_backend_alloc_ctx_tensors(context.get(), backend_));
        const std::vector<float> values = Noise(0x2545f491u).take(n_in * batch);
        ggml_backend_tensor_set(activations, values.data(), 0, ggml_nbytes(activations));
        return static_cast<double>(n_in * n_out) * static_cast<double>(count) / graph_s(graph);
    }

    bool claims(ggml_type type, ggml_backend_buffer_type_t buffer_type) {
        const ggml_context_ptr context = new_context(4);
        ggml_tensor *          weight  = ggml_new_tensor_2d(context.get(), type, n_in, n_out);
        ggml_tensor *          input   = ggml_new_tensor_2d(context.get(), GGML_TYPE_F32, n_in, 1);
        const ggml_backend_buffer_ptr buffer(ggml_backend_buft_alloc_buffer(buffer_type, 0));
        weight->buffer = buffer.get();
        return ggml_backend_dev_supports_op(device_, ggml_mul_mat(context.get(), weight, input));
    }

    ggml_backend_dev_t device_;
    ggml_backend_t     backend_;
    int                fd_;
};

}  // namespace

// Runs `measure` while the backend, if it is the CPU, computes with a pool of threads.
static void with_threads(
    ggml_backend_dev_t device, ggml_backend_t backend, int n_threads, const std::function<void()> & measure) {
    edgechat_threadpool * threadpool = edgechat_threadpool_new(n_threads);
    const auto use = reinterpret_cast<void (*)(ggml_backend_t, ggml_threadpool *)>(
        ggml_backend_reg_get_proc_address(ggml_backend_dev_backend_reg(device), "ggml_backend_cpu_set_threadpool"));
    if (threadpool != nullptr && use != nullptr) {
        use(backend, edgechat_threadpool_raw(threadpool));
    }
    measure();
    if (threadpool != nullptr && use != nullptr) {
        use(backend, nullptr);
    }
    edgechat_threadpool_free(threadpool);
}

void selftest_speeds(const Opened & opened, const std::vector<ggml_type> & types, int n_threads, int fd) {
    Measurement measurement(opened.device, opened.backend.get(), fd);
    measurement.copies();
    measurement.some(types);
    ggml_backend_dev_t     cpu = ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU);
    const ggml_backend_ptr backend(cpu == nullptr ? nullptr : ggml_backend_dev_init(cpu, nullptr));
    if (backend) {
        set_threads(cpu, backend.get(), n_threads);
        with_threads(cpu, backend.get(), n_threads, [&] { Measurement(cpu, backend.get(), fd).some(types); });
    }
}

int edgechat_speeds(const char * module_path, int n_threads, int quick, int report_fd) {
    const Opened opened = open_module(module_path, n_threads);
    if (!opened.backend) {
        return -1;
    }
    with_threads(opened.device, opened.backend.get(), n_threads, [&] {
        Measurement measurement(opened.device, opened.backend.get(), report_fd);
        quick != 0 ? measurement.quick() : measurement.all();
    });
    return 0;
}
