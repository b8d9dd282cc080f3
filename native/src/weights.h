// Random weights for tests and measurements, and the buffer types of a backend module.
#pragma once

#include "ggml-backend.h"
#include "ggml-cpp.h"
#include "ggml.h"

#include <cstdint>
#include <vector>

// A deterministic random generator, the same on every platform (xorshift32).
class Noise {
  public:
    explicit Noise(uint32_t seed) : state_(seed) {}

    float next() {
        state_ ^= state_ << 13;
        state_ ^= state_ >> 17;
        state_ ^= state_ << 5;
        return static_cast<float>(state_) / 2147483648.0f - 1.0f;
    }

    std::vector<float> take(int64_t count) {
        std::vector<float> values(static_cast<size_t>(count));
        for (float & value : values) {
            value = next();
        }
        return values;
    }

  private:
    uint32_t state_;
};

// Returns quantised random weights in `rows` rows of `n_in`; random blocks for the few types that are slow to quantise.
std::vector<uint8_t> random_weights(ggml_type type, int64_t n_in, int64_t rows);

// True for types of weights in model files; the other types are for activations, or retired.
bool is_weight_type(ggml_type type);

// Returns the default buffer type of a device, then its extra buffer types (repack, AMX, KleidiAI).
std::vector<ggml_backend_buffer_type_t> buffer_types(ggml_backend_dev_t device);

// A device of a module and its backend with n_threads threads; the backend is null if it can't be loaded.
struct Opened {
    ggml_backend_dev_t device    = nullptr;
    int                n_devices = 0;  // of the module
    ggml_backend_ptr   backend;
};

// Sets the number of threads of a backend that has one.
void set_threads(ggml_backend_dev_t device, ggml_backend_t backend, int n_threads);

Opened open_module(const char * module_path, int n_threads, int device = 0);
