// Self-test of a backend module: finds kernels that crash or compute wrong results before they are used.
#include "selftest.h"

#include "edgechat.h"
#include "weights.h"

#include "ggml-cpp.h"
#include "ggml.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <utility>
#include <vector>

#ifdef _WIN32
#include <io.h>
#define write _write
#else
#include <unistd.h>
#endif

void Report::line(const char * kind, const std::string & message) {
    const std::string text = std::string(kind) + "\t" + message + "\n";
    // Unbuffered, so that a crash in the next step does not lose the line that names it.
    if (write(fd_, text.data(), static_cast<unsigned>(text.size())) < 0) {
        std::abort();
    }
}

void Report::stage(const std::string & message) {
    checks_++;
    line("stage", message);
}

void Report::fail(const std::string & message) {
    failures_++;
    line("fail", message);
}

void Report::device(int n_devices, ggml_backend_dev_t device) {
    const char * kind = "accel";
    switch (ggml_backend_dev_type(device)) {
        case GGML_BACKEND_DEVICE_TYPE_CPU: kind = "cpu"; break;
        case GGML_BACKEND_DEVICE_TYPE_GPU: kind = "gpu"; break;
        case GGML_BACKEND_DEVICE_TYPE_IGPU: kind = "igpu"; break;
        default: break;
    }
    line("device", std::to_string(n_devices) + "\t" + ggml_backend_dev_name(device) + "\t" +
                       ggml_backend_dev_description(device) + "\t" + kind);
}

void Report::memory(uint64_t n_bytes) { line("memory", std::to_string(n_bytes)); }

void Report::type(int number) { line("type", std::to_string(number)); }

void Report::done() {
    line("done", std::to_string(checks_) + "\t" + std::to_string(failures_));
}

namespace {

constexpr int64_t n_in      = 512;  // a multiple of the largest block (256)
constexpr int64_t n_out     = 64;   // a multiple of every tile height
constexpr int64_t n_experts = 4;
constexpr int64_t n_used    = 2;

// Error bound for all types, as a fraction of the output's standard deviation. CPU kernels quantise activations to 8
// bits in blocks of 32 to 256, a step of about 3 sigma / 127, which causes an error of 0.7 %; BF16 is finer. Seven
// standard deviations of that error give no false alarms and detect one wrong value among thousands.
constexpr double max_error = 0.05;

// Weights of n_experts matrices (n_in x n_out) in `type`, and their values dequantised by ggml-base.
struct Weights {
    ggml_type            type;
    std::vector<uint8_t> data;
    std::vector<float>   exact;
    double               rms = 0.0;

    explicit Weights(ggml_type weight_type) : type(weight_type) {
        const int64_t rows  = n_out * n_experts;
        const int64_t count = n_in * rows;
        data = random_weights(type, n_in, rows);
        exact.resize(static_cast<size_t>(count));
        if (type == GGML_TYPE_F32) {
            std::memcpy(exact.data(), data.data(), data.size());
        } else {
            ggml_get_type_traits(type)->to_float(data.data(), exact.data(), count);
        }
        for (const float value : exact) {
            rms += static_cast<double>(value) * static_cast<double>(value);
        }
        rms = std::sqrt(rms / static_cast<double>(count));
    }
};

// One product under test: a dense or a routed (mixture of experts) matrix product.
struct Product {
    const Weights & weights;
    int64_t         batch;
    bool            routed;

    int64_t columns() const { return routed ? batch * n_used : batch; }
    int64_t expert(int64_t column) const { return routed ? (column * 7 + column / n_used) % n_experts : 0; }
};

ggml_context_ptr new_context() {
    return ggml_context_ptr(ggml_init({ggml_tensor_overhead() * 16 + ggml_graph_overhead(), nullptr, true}));
}

ggml_tensor * new_weight(ggml_context * context, const Product & product) {
    return product.routed ? ggml_new_tensor_3d(context, product.weights.type, n_in, n_out, n_experts)
                          : ggml_new_tensor_2d(context, product.weights.type, n_in, n_out);
}

struct Inputs {
    ggml_tensor * activations;
    ggml_tensor * experts;  // null for a dense product
    ggml_tensor * result;
};

Inputs new_inputs(ggml_context * context, ggml_tensor * weight, const Product & product) {
    if (!product.routed) {
        ggml_tensor * activations = ggml_new_tensor_2d(context, GGML_TYPE_F32, n_in, product.batch);
        return {activations, nullptr, ggml_mul_mat(context, weight, activations)};
    }
    ggml_tensor * activations = ggml_new_tensor_3d(context, GGML_TYPE_F32, n_in, n_used, product.batch);
    ggml_tensor * experts     = ggml_new_tensor_2d(context, GGML_TYPE_I32, n_used, product.batch);
    return {activations, experts, ggml_mul_mat_id(context, weight, activations, experts)};
}

// Compares the result with a float64 product of the dequantised weights. Returns a description of the error, or "".
std::string compare(
    const Product & product, const std::vector<float> & activations, const std::vector<float> & result) {
    // Standard deviation of an output; activations are uniform in [-1, 1].
    const double scale = product.weights.rms * std::sqrt(static_cast<double>(n_in) / 3.0);
    for (int64_t column = 0; column < product.columns(); column++) {
        const float * x = activations.data() + column * n_in;
        for (int64_t row = 0; row < n_out; row++) {
            const float * w   = product.weights.exact.data() + (product.expert(column) * n_out + row) * n_in;
            double        sum = 0.0;
            for (int64_t i = 0; i < n_in; i++) {
                sum += static_cast<double>(w[i]) * static_cast<double>(x[i]);
            }
            const double got = static_cast<double>(result[static_cast<size_t>(column * n_out + row)]);
            if (!(std::fabs(got - sum) <= max_error * scale)) {
                char message[96];
                std::snprintf(message, sizeof(message), "row %d, column %d is %.6g, should be %.6g",
                              static_cast<int>(row), static_cast<int>(column), got, sum);
                return message;
            }
        }
    }
    return "";
}

bool claims(ggml_backend_dev_t device, ggml_backend_buffer_type_t buffer_type, const Product & product) {
    const ggml_context_ptr context = new_context();
    ggml_tensor *          weight  = new_weight(context.get(), product);
    const Inputs           inputs  = new_inputs(context.get(), weight, product);
    // Extra buffer types decide by the weight's buffer; an empty buffer is enough for the query.
    const ggml_backend_buffer_ptr buffer(ggml_backend_buft_alloc_buffer(buffer_type, 0));
    weight->buffer = buffer.get();
    return ggml_backend_dev_supports_op(device, inputs.result);
}

std::string run(ggml_backend_t backend, ggml_backend_buffer_type_t buffer_type, const Product & product) {
    const ggml_context_ptr weight_context = new_context();
    ggml_tensor *          weight         = new_weight(weight_context.get(), product);
    const ggml_backend_buffer_ptr weight_buffer(
        ggml_backend_alloc_ctx_tensors_from_buft(weight_context.get(), buffer_type));
    if (!weight_buffer) {
        return "its buffer can't be allocated";
    }
    ggml_backend_buffer_set_usage(weight_buffer.get(), GGML_BACKEND_BUFFER_USAGE_WEIGHTS);
    ggml_backend_tensor_set(weight, product.weights.data.data(), 0, ggml_nbytes(weight));

    const ggml_context_ptr        context = new_context();
    const Inputs                  inputs  = new_inputs(context.get(), weight, product);
    const ggml_backend_buffer_ptr buffer(ggml_backend_alloc_ctx_tensors(context.get(), backend));
    const std::vector<float>      activations = Noise(0x2545f491u).take(n_in * product.columns());
    ggml_backend_tensor_set(inputs.activations, activations.data(), 0, ggml_nbytes(inputs.activations));
    if (inputs.experts != nullptr) {
        std::vector<int32_t> experts;
        for (int64_t column = 0; column < product.columns(); column++) {
            experts.push_back(static_cast<int32_t>(product.expert(column)));
        }
        ggml_backend_tensor_set(inputs.experts, experts.data(), 0, ggml_nbytes(inputs.experts));
    }

    ggml_cgraph * graph = ggml_new_graph(context.get());
    ggml_build_forward_expand(graph, inputs.result);
    if (ggml_backend_graph_compute(backend, graph) != GGML_STATUS_SUCCESS) {
        return "the backend reports a failure";
    }
    std::vector<float> result(static_cast<size_t>(n_out * product.columns()));
    ggml_backend_tensor_get(inputs.result, result.data(), 0, ggml_nbytes(inputs.result));
    return compare(product, activations, result);
}

// Returns whether `types`, ggml's numbers separated by spaces, contains the type; an empty list contains all.
bool is_listed(const char * types, ggml_type type) {
    const std::string list = std::string(" ") + types + " ";
    return *types == '\0' || list.find(" " + std::to_string(static_cast<int>(type)) + " ") != std::string::npos;
}

void try_products(ggml_backend_dev_t device, ggml_backend_t backend, const char * types, Report & report) {
    const std::vector<ggml_backend_buffer_type_t> buffers = buffer_types(device);
    for (int number = 0; number < GGML_TYPE_COUNT; number++) {
        const ggml_type type = static_cast<ggml_type>(number);
        if (!is_weight_type(type) || !is_listed(types, type)) {
            continue;
        }
        const Weights weights(type);
        for (ggml_backend_buffer_type_t buffer_type : buffers) {
            for (bool routed : {false, true}) {
                for (int64_t batch : {1, 4, 32}) {
                    const Product product{weights, batch, routed};
                    if (!claims(device, buffer_type, product)) {
                        continue;
                    }
                    const std::string name = std::string(routed ? "routed product of " : "product of ") +
                        ggml_type_name(type) + " in " + ggml_backend_buft_name(buffer_type) + ", batch " +
                        std::to_string(batch);
                    report.stage(name);
                    const std::string wrong = run(backend, buffer_type, product);
                    if (!wrong.empty()) {
                        report.fail(name + ": " + wrong);
                    }
                }
            }
        }
        report.type(number);
    }
}

// Allocates up to n_bytes in pieces as large as the device allows, writes a pattern to both ends of each piece, and reads
// all of them back, to find devices whose memory is smaller than they say or whose large buffers overlap.
void try_memory(ggml_backend_dev_t device, uint64_t n_bytes, Report & report) {
    constexpr uint64_t       n_end = 1u << 20;
    constexpr uint64_t       n_max = 1u << 30;
    ggml_backend_buffer_type_t type  = ggml_backend_dev_buffer_type(device);
    const uint64_t           piece = std::max(std::min<uint64_t>(ggml_backend_buft_get_max_size(type), n_max), 2 * n_end);
    struct Piece {
        ggml_context_ptr        context;
        ggml_backend_buffer_ptr buffer;
        ggml_tensor *           ends[2];
    };
    size_t free_bytes  = 0;
    size_t total_bytes = 0;
    ggml_backend_dev_memory(device, &free_bytes, &total_bytes);
    // Programs need the rest: of a shared memory more than of the memory of a card.
    const bool is_shared = ggml_backend_dev_type(device) != GGML_BACKEND_DEVICE_TYPE_GPU;
    n_bytes = std::min<uint64_t>(n_bytes, is_shared ? free_bytes / 2 : free_bytes - free_bytes / 8);
    std::vector<Piece> pieces;
    uint64_t           n_allocated = 0;
    const auto         pattern     = [](size_t number, size_t end) {
        return Noise(static_cast<uint32_t>(0x2545f491u + 2 * number + end)).take(n_end / sizeof(float));
    };
    while (n_allocated + 2 * n_end <= n_bytes) {
        const uint64_t size = std::min(n_bytes - n_allocated, piece) / n_end * n_end;
        report.stage("allocation of " + std::to_string((n_allocated + size) >> 20) + " MiB on the device");
        ggml_backend_buffer_ptr buffer(ggml_backend_buft_alloc_buffer(type, size));
        if (!buffer) {
            break;
        }
        Piece new_piece{new_context(), std::move(buffer), {nullptr, nullptr}};
        char * base = static_cast<char *>(ggml_backend_buffer_get_base(new_piece.buffer.get()));
        for (size_t end = 0; end < 2; end++) {
            ggml_tensor * tensor =
                ggml_new_tensor_1d(new_piece.context.get(), GGML_TYPE_F32, static_cast<int64_t>(n_end / sizeof(float)));
            ggml_backend_tensor_alloc(new_piece.buffer.get(), tensor, base + (end == 0 ? 0 : size - n_end));
            ggml_backend_tensor_set(tensor, pattern(pieces.size(), end).data(), 0, n_end);
            new_piece.ends[end] = tensor;
        }
        pieces.push_back(std::move(new_piece));
        n_allocated += size;
    }
    for (size_t number = 0; number < pieces.size(); number++) {
        for (size_t end = 0; end < 2; end++) {
            std::vector<float> read(n_end / sizeof(float));
            ggml_backend_tensor_get(pieces[number].ends[end], read.data(), 0, n_end);
            if (read != pattern(number, end)) {
                report.fail("memory: piece " + std::to_string(number) + " of " + std::to_string(pieces.size()) +
                            " lost its contents");
                return;
            }
        }
    }
    report.memory(n_allocated);
}

}  // namespace

int edgechat_selftest_device(const char * module_path, const edgechat_selftest_options * options) {
    Report report(options->report_fd);
    report.stage("loading the module");
    const Opened opened = open_module(module_path, options->n_threads, options->device);
    if (opened.device != nullptr) {
        report.device(opened.n_devices, opened.device);
    }
    if (!opened.backend) {
        return -1;
    }
    if (options->n_speed_threads > 0) {
        std::vector<ggml_type> timed;
        for (int number = 0; number < GGML_TYPE_COUNT; number++) {
            const ggml_type type = static_cast<ggml_type>(number);
            if (is_weight_type(type) && is_listed(options->types, type)) {
                timed.push_back(type);
            }
        }
        report.stage("measuring the speed");
        selftest_speeds(opened, timed, options->n_speed_threads, options->report_fd);
        report.done();
        return 0;
    }
    if (options->n_bytes > 0) {
        try_memory(opened.device, options->n_bytes, report);
    }
    try_products(opened.device, opened.backend.get(), options->types, report);
    if (options->decodes != 0) {
        selftest_decode(opened.device, options->n_threads, report);
    }
    report.done();
    return report.failures();
}

int edgechat_selftest(const char * module_path, int n_threads, int report_fd) {
    const edgechat_selftest_options options{0, n_threads, report_fd, 1, "", 0, 0};
    return edgechat_selftest_device(module_path, &options);
}
