#include "weights.h"

#include <cstring>

namespace {

// Types whose quantiser first builds a search table, which takes seconds. Any bit pattern is a valid block of these
// types once its scale is sane, so tests use random blocks.
bool has_slow_quantiser(ggml_type type) {
    switch (type) {
        case GGML_TYPE_IQ1_S:
        case GGML_TYPE_IQ1_M:
        case GGML_TYPE_IQ2_XXS:
        case GGML_TYPE_IQ2_XS:
        case GGML_TYPE_IQ2_S:
        case GGML_TYPE_IQ3_XXS:
        case GGML_TYPE_IQ3_S:
            return true;
        default:
            return false;
    }
}

// Returns random blocks of `type` with a scale of 2^-7 (ggml-common.h: the scale is a leading half, but IQ1_M spreads
// it over the upper four bits of the four 16-bit words at the end of a block).
void fill_blocks(ggml_type type, std::vector<uint8_t> & data) {
    Noise noise(0x9e3779b9u);
    for (uint8_t & byte : data) {
        byte = static_cast<uint8_t>(static_cast<int>((noise.next() + 1.0f) * 128.0f) & 0xff);
    }
    const ggml_fp16_t scale = ggml_fp32_to_fp16(0.0078125f);
    const size_t      size  = ggml_type_size(type);
    for (size_t block = 0; block < data.size(); block += size) {
        if (type != GGML_TYPE_IQ1_M) {
            std::memcpy(&data[block], &scale, sizeof(scale));
            continue;
        }
        for (size_t word = 0; word < 4; word++) {
            uint8_t & upper = data[block + size - 8 + 2 * word + 1];
            upper           = static_cast<uint8_t>((upper & 0x0f) | (((scale >> (4 * word)) & 0x0f) << 4));
        }
    }
}

}  // namespace

std::vector<uint8_t> random_weights(ggml_type type, int64_t n_in, int64_t rows) {
    std::vector<uint8_t> data(ggml_row_size(type, n_in) * static_cast<size_t>(rows));
    if (has_slow_quantiser(type)) {
        fill_blocks(type, data);
    } else {
        const std::vector<float> source = Noise(0x9e3779b9u).take(n_in * rows);
        ggml_quantize_chunk(type, source.data(), data.data(), 0, rows, n_in, nullptr);
    }
    return data;
}

std::vector<ggml_backend_buffer_type_t> buffer_types(ggml_backend_dev_t device) {
    std::vector<ggml_backend_buffer_type_t> found{ggml_backend_dev_buffer_type(device)};
    // The registry returns a void pointer to a C function; C++17 has no cast for it without a warning.
    void * address = ggml_backend_reg_get_proc_address(
        ggml_backend_dev_backend_reg(device), "ggml_backend_dev_get_extra_bufts");
    const auto get_extra = reinterpret_cast<ggml_backend_dev_get_extra_bufts_t>(address);
    ggml_backend_buffer_type_t * extra = get_extra == nullptr ? nullptr : get_extra(device);
    for (; extra != nullptr && *extra != nullptr; extra++) {
        found.push_back(*extra);
    }
    return found;
}

bool is_weight_type(ggml_type type) {
    const ggml_type_traits * traits = ggml_get_type_traits(type);
    if (type == GGML_TYPE_Q8_1 || type == GGML_TYPE_Q8_K || traits->blck_size == 0) {
        return false;
    }
    return traits->is_quantized || type == GGML_TYPE_F32 || type == GGML_TYPE_F16 || type == GGML_TYPE_BF16;
}

void set_threads(ggml_backend_dev_t device, ggml_backend_t backend, int n_threads) {
    void * address =
        ggml_backend_reg_get_proc_address(ggml_backend_dev_backend_reg(device), "ggml_backend_set_n_threads");
    if (address != nullptr) {
        reinterpret_cast<ggml_backend_set_n_threads_t>(address)(backend, n_threads);
    }
}

Opened open_module(const char * module_path, int n_threads, int device) {
    Opened             opened;
    ggml_backend_reg_t module = ggml_backend_load(module_path);
    opened.n_devices = module == nullptr ? 0 : static_cast<int>(ggml_backend_reg_dev_count(module));
    if (device < 0 || device >= opened.n_devices) {
        return opened;
    }
    opened.device = ggml_backend_reg_dev_get(module, static_cast<size_t>(device));
    opened.backend.reset(ggml_backend_dev_init(opened.device, nullptr));
    if (opened.backend) {
        set_threads(opened.device, opened.backend.get(), n_threads);
    }
    return opened;
}
