// Wrapper around a real CPU module whose computation has the fault FAULT.
#include <csignal>
#include <cstdio>
#include <dlfcn.h>
#include <unistd.h>

#include "ggml-backend-impl.h"
#include "ggml-impl.h"

enum { DIES = 1, HANGS = 2, WRONG = 3, PLANTED = 4 };

static ggml_backend_reg    reg;
static ggml_backend_device device;
static ggml_backend_dev_t  real_device;
static decltype(ggml_backend_i::graph_compute) real_compute;

static ggml_status compute(ggml_backend_t backend, ggml_cgraph * graph) {
    if (FAULT == DIES) {
        raise(SIGILL);
    }
    while (FAULT == HANGS) {
        sleep(1);
    }
    const ggml_status status = real_compute(backend, graph);
    static_cast<float *>(ggml_graph_node(graph, -1)->data)[0] += 1.0f;
    return status;
}

static ggml_backend_t init_backend(ggml_backend_dev_t, const char * params) {
    ggml_backend_t backend       = real_device->iface.init_backend(real_device, params);
    real_compute                 = backend->iface.graph_compute;
    backend->iface.graph_compute = compute;
    backend->device              = &device;
    return backend;
}

static ggml_backend_dev_t get_device(ggml_backend_reg_t, size_t) {
    return &device;
}

extern "C" int ggml_backend_score() {
    return 1;
}

extern "C" ggml_backend_reg_t ggml_backend_init() {
    if (FAULT == PLANTED) {
        std::fclose(std::fopen(REAL ".was-loaded", "w"));
    }
    void * real = dlopen(REAL, RTLD_NOW | RTLD_LOCAL);
    auto * init = reinterpret_cast<ggml_backend_init_t>(dlsym(real, "ggml_backend_init"));
    reg         = *init();
    real_device = reg.iface.get_device(init(), 0);
    device      = *real_device;
    device.iface.init_backend = init_backend;
    device.reg                = &reg;
    reg.iface.get_device      = get_device;
    return &reg;
}
