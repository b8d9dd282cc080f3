// GPU discovery, and placement of a model's tensors on GPUs.
#include "edgechat.h"

#include "ggml-backend.h"
#include "llama.h"

#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

namespace {

std::vector<std::string> & excluded_names() {
    static std::vector<std::string> names;
    return names;
}

// Devices for models while some are excluded, and a null pointer. The list must outlive the loading of a model.
std::vector<ggml_backend_dev_t> & allowed_devices() {
    static std::vector<ggml_backend_dev_t> devices;
    return devices;
}

bool is_gpu(ggml_backend_dev_t device) {
    const enum ggml_backend_dev_type type = ggml_backend_dev_type(device);
    if (type != GGML_BACKEND_DEVICE_TYPE_GPU && type != GGML_BACKEND_DEVICE_TYPE_IGPU) {
        return false;
    }
    for (const std::string & name : excluded_names()) {
        if (name == ggml_backend_dev_name(device)) {
            return false;
        }
    }
    return true;
}

// Returns the devices for a model: all discrete GPUs, or else the first integrated one, like llama.cpp without a list.
std::vector<ggml_backend_dev_t> list_gpus() {
    std::vector<ggml_backend_dev_t> discrete;
    std::vector<ggml_backend_dev_t> integrated;
    for (size_t i = 0; i < ggml_backend_dev_count(); i++) {
        ggml_backend_dev_t device = ggml_backend_dev_get(i);
        if (is_gpu(device)) {
            (ggml_backend_dev_type(device) == GGML_BACKEND_DEVICE_TYPE_GPU ? discrete : integrated).push_back(device);
        }
    }
    if (discrete.empty() && !integrated.empty()) {
        discrete.push_back(integrated.front());
    }
    return discrete;
}

}  // namespace

int edgechat_devices(edgechat_device * devices, int capacity) {
    int count = 0;
    for (size_t i = 0; i < ggml_backend_dev_count(); i++) {
        ggml_backend_dev_t device = ggml_backend_dev_get(i);
        if (!is_gpu(device)) {
            continue;
        }
        if (count < capacity) {
            edgechat_device & entry       = devices[count];
            size_t            free_bytes  = 0;
            size_t            total_bytes = 0;
            ggml_backend_dev_memory(device, &free_bytes, &total_bytes);
            std::snprintf(entry.name, sizeof(entry.name), "%s", ggml_backend_dev_name(device));
            std::snprintf(entry.description, sizeof(entry.description), "%s", ggml_backend_dev_description(device));
            entry.free_bytes  = free_bytes;
            entry.total_bytes = total_bytes;
            // Metal reports a discrete GPU, although Apple's GPUs share the memory of the CPU.
            const char * kind = ggml_backend_reg_name(ggml_backend_dev_backend_reg(device));
            entry.is_unified =
                ggml_backend_dev_type(device) == GGML_BACKEND_DEVICE_TYPE_IGPU || std::strcmp(kind, "MTL") == 0 ||
                std::strcmp(kind, "Metal") == 0;
        }
        count++;
    }
    return count;
}

void edgechat_exclude_devices(const char * const * names, int count) {
    excluded_names().assign(names, names + count);
    allowed_devices() = list_gpus();
    allowed_devices().push_back(nullptr);
}

void edgechat_place(llama_model_params * params, int n_gpu_layers, int experts_on_cpu) {
    // Both lists must outlive the loading of a model, so they are static and never change.
    static ggml_backend_dev_t                 none[] = {nullptr};
    static llama_model_tensor_buft_override experts[] = {
        {"\\.ffn_(up|down|gate|gate_up)_(ch|)exps", ggml_backend_cpu_buffer_type()},
        {nullptr, nullptr},
    };
    params->n_gpu_layers          = n_gpu_layers;
    params->devices               = n_gpu_layers > 0 ? nullptr : none;
    if (n_gpu_layers > 0 && !excluded_names().empty()) {
        params->devices = allowed_devices().data();
    }
    params->tensor_buft_overrides = n_gpu_layers > 0 && experts_on_cpu != 0 ? experts : nullptr;
}
