// Scripted GPU module: allocates host memory up to a limit and computes with the kernels of the real CPU module.
// Environment variables: GPU_BYTES is the memory limit, GPU_SAYS_BYTES the reported memory; with GPU_WRONG results are
// wrong; with GPU_GONE there is no device. While the file GPU_FAILS_IF exists, the device fails as the file says: with
// "fail N", graphs return an error after N graphs; with "die N", they abort the process; with "nan N", they compute NaN;
// with "load 0", the process aborts when it allocates memory for weights.
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <dlfcn.h>

#include "ggml-backend-impl.h"
#include "ggml-impl.h"

static size_t number(const char * name, size_t otherwise) {
    const char * value = std::getenv(name);
    return value == nullptr ? otherwise : std::strtoull(value, nullptr, 10);
}

static std::atomic<size_t>      used{0};
static ggml_backend_reg         reg;
static ggml_backend_device      device;
static ggml_backend_buffer_type buffer_type;
static ggml_backend_dev_t       cpu;

static bool must_fail(const char * how, bool is_graph) {
    const char * path = std::getenv("GPU_FAILS_IF");
    FILE *       file = path == nullptr ? nullptr : std::fopen(path, "r");
    if (file == nullptr) {
        return false;
    }
    static std::atomic<int> n_graphs{0};
    char                    mode[16] = "fail";
    int                     n        = 0;
    const int               n_read   = std::fscanf(file, "%15s %d", mode, &n);
    std::fclose(file);
    return n_read >= 0 && std::strcmp(mode, how) == 0 && (is_graph ? n_graphs++ : 0) >= n;
}

static void free_buffer(ggml_backend_buffer_t buffer) {
    used -= buffer->size;
    std::free(buffer->context);
}

static void * get_base(ggml_backend_buffer_t buffer) { return buffer->context; }

static void fill(ggml_backend_buffer_t, ggml_tensor * t, uint8_t value, size_t offset, size_t size) {
    std::memset(static_cast<char *>(t->data) + offset, value, size);
}

static void set(ggml_backend_buffer_t, ggml_tensor * t, const void * data, size_t offset, size_t size) {
    std::memcpy(static_cast<char *>(t->data) + offset, data, size);
}

static void get(ggml_backend_buffer_t, const ggml_tensor * t, void * data, size_t offset, size_t size) {
    std::memcpy(data, static_cast<const char *>(t->data) + offset, size);
}

static void clear(ggml_backend_buffer_t buffer, uint8_t value) { std::memset(buffer->context, value, buffer->size); }

static ggml_backend_buffer_t alloc_buffer(ggml_backend_buffer_type_t type, size_t size) {
    if (used + size > number("GPU_BYTES", size_t{1} << 30)) {
        return nullptr;
    }
    if (size > size_t{1} << 22 && must_fail("load", false)) {
        std::abort();
    }
    void * memory = nullptr;
    if (posix_memalign(&memory, 64, size + 64) != 0) {
        return nullptr;
    }
    used += size;
    ggml_backend_buffer_i iface{};
    iface.free_buffer   = free_buffer;
    iface.get_base      = get_base;
    iface.memset_tensor = fill;
    iface.set_tensor    = set;
    iface.get_tensor    = get;
    iface.clear         = clear;
    return ggml_backend_buffer_init(type, iface, memory, size);
}

static const char * name_of_type(ggml_backend_buffer_type_t) { return "Scripted0"; }
static size_t       alignment(ggml_backend_buffer_type_t) { return 64; }
static bool         is_host(ggml_backend_buffer_type_t) { return false; }

static const char * backend_name(ggml_backend_t) { return "Scripted"; }
static void         backend_free(ggml_backend_t backend) {
    ggml_backend_free(static_cast<ggml_backend_t>(backend->context));
    delete backend;
}

static ggml_status compute(ggml_backend_t backend, ggml_cgraph * graph) {
    if (must_fail("fail", true)) {
        return GGML_STATUS_FAILED;
    }
    if (must_fail("die", true)) {
        std::abort();
    }
    const bool is_nan = must_fail("nan", true);
    const ggml_status status = ggml_backend_graph_compute(static_cast<ggml_backend_t>(backend->context), graph);
    if (std::getenv("GPU_WRONG") != nullptr) {
        static_cast<float *>(ggml_graph_node(graph, -1)->data)[0] += 1.0f;
    }
    if (is_nan) {
        std::memset(ggml_graph_node(graph, -1)->data, 0xff, ggml_nbytes(ggml_graph_node(graph, -1)));
    }
    return status;
}

static ggml_guid guid = {0x5c, 0x21, 0x9b, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13};

static ggml_backend_t init_backend(ggml_backend_dev_t, const char *) {
    auto * backend               = new ggml_backend{};
    backend->guid                = &guid;
    backend->iface.get_name      = backend_name;
    backend->iface.free          = backend_free;
    backend->iface.graph_compute = compute;
    backend->device              = &device;
    backend->context             = ggml_backend_dev_init(cpu, nullptr);
    // One thread: more would compete with the threads of the CPU backend.
    reinterpret_cast<ggml_backend_set_n_threads_t>(cpu->reg->iface.get_proc_address(
        cpu->reg, "ggml_backend_set_n_threads"))(static_cast<ggml_backend_t>(backend->context), 1);
    return backend;
}

static const char * dev_name(ggml_backend_dev_t) { return "Scripted0"; }
static const char * dev_description(ggml_backend_dev_t) { return "a scripted GPU"; }
static void         dev_memory(ggml_backend_dev_t, size_t * free_bytes, size_t * total) {
    *total      = number("GPU_SAYS_BYTES", number("GPU_BYTES", size_t{1} << 30));
    *free_bytes = *total > used ? *total - used : 0;
}
static enum ggml_backend_dev_type dev_type(ggml_backend_dev_t) { return GGML_BACKEND_DEVICE_TYPE_GPU; }
static void                  dev_props(ggml_backend_dev_t dev, ggml_backend_dev_props * props) {
    *props = ggml_backend_dev_props{};
    props->name        = dev_name(dev);
    props->description = dev_description(dev);
    props->type        = dev_type(dev);
    dev_memory(dev, &props->memory_free, &props->memory_total);
}
static ggml_backend_buffer_type_t dev_buffer_type(ggml_backend_dev_t) { return &buffer_type; }
static bool dev_supports_op(ggml_backend_dev_t, const ggml_tensor * op) {
    // Like the plain CPU kernels: for weights in the memory of this device, only their type matters.
    if (op->op == GGML_OP_MUL_MAT_ID || op->op == GGML_OP_MUL_MAT) {
        return op->src[1]->type == GGML_TYPE_F32;
    }
    return ggml_backend_dev_supports_op(cpu, op);
}
static bool dev_supports_buft(ggml_backend_dev_t, ggml_backend_buffer_type_t type) { return type == &buffer_type; }

static const char *       reg_name(ggml_backend_reg_t) { return "Scripted"; }
static size_t             reg_count(ggml_backend_reg_t) { return std::getenv("GPU_GONE") == nullptr ? 1 : 0; }
static ggml_backend_dev_t reg_device(ggml_backend_reg_t, size_t) { return &device; }
static void *             reg_address(ggml_backend_reg_t, const char *) { return nullptr; }

extern "C" int ggml_backend_score() { return 1; }

extern "C" ggml_backend_reg_t ggml_backend_init() {
    void * real = dlopen(REAL, RTLD_NOW | RTLD_LOCAL);
    auto * init = reinterpret_cast<ggml_backend_init_t>(dlsym(real, "ggml_backend_init"));
    cpu         = init()->iface.get_device(init(), 0);

    buffer_type.iface.get_name      = name_of_type;
    buffer_type.iface.alloc_buffer  = alloc_buffer;
    buffer_type.iface.get_alignment = alignment;
    buffer_type.iface.is_host       = is_host;
    buffer_type.device              = &device;

    device.iface.get_name        = dev_name;
    device.iface.get_description = dev_description;
    device.iface.get_memory      = dev_memory;
    device.iface.get_type        = dev_type;
    device.iface.get_props       = dev_props;
    device.iface.init_backend    = init_backend;
    device.iface.get_buffer_type = dev_buffer_type;
    device.iface.supports_op     = dev_supports_op;
    device.iface.supports_buft   = dev_supports_buft;
    device.reg                   = &reg;

    reg.api_version            = GGML_BACKEND_API_VERSION;
    reg.iface.get_name         = reg_name;
    reg.iface.get_device_count = reg_count;
    reg.iface.get_device       = reg_device;
    reg.iface.get_proc_address = reg_address;
    return &reg;
}
