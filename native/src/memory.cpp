#include "edgechat.h"

#include "../ggml/src/ggml-backend-impl.h"
#include "ggml-backend.h"
#include "llama-ext.h"

#include <cstdint>
#include <cstdio>
#include <cstring>

#if defined(__linux__)
#    include <sys/mman.h>
#    include <unistd.h>
#endif

int edgechat_memory_breakdown(const llama_context * context, edgechat_memory_entry * entries, int capacity) {
    int count = 0;
    for (const auto & [buffer_type, bytes] : llama_get_memory_breakdown(context)) {
        if (count < capacity) {
            edgechat_memory_entry & entry = entries[count];
            std::snprintf(entry.buffer_type, sizeof(entry.buffer_type), "%s", ggml_backend_buft_name(buffer_type));
            entry.model_bytes   = bytes.model;
            entry.context_bytes = bytes.context;
            entry.compute_bytes = bytes.compute;
            entry.is_host       = ggml_backend_buft_is_host(buffer_type) ? 1 : 0;
        }
        count++;
    }
    return count;
}

#if defined(__linux__)
namespace {

ggml_backend_buffer_type_i original_iface{};
bool                       is_patched = false;

// Fills a buffer with `value`. For zero, its whole pages are given back to the system, which provides zeros instead:
// the memory of ggml_aligned_malloc is private and anonymous.
void clear_lazily(ggml_backend_buffer_t buffer, uint8_t value) {
    char * const start = static_cast<char *>(buffer->iface.get_base(buffer));
    const auto   page  = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
    const auto   begin = reinterpret_cast<uintptr_t>(start);
    const auto   first = (begin + page - 1) / page * page;
    const auto   last  = (begin + buffer->size) / page * page;
    if (value != 0 || first >= last || madvise(reinterpret_cast<void *>(first), last - first, MADV_DONTNEED) != 0) {
        std::memset(start, value, buffer->size);
        return;
    }
    std::memset(start, 0, first - begin);
    std::memset(reinterpret_cast<void *>(last), 0, begin + buffer->size - last);
}

ggml_backend_buffer_t allocate(ggml_backend_buffer_type_t type, size_t size) {
    ggml_backend_buffer_t buffer = original_iface.alloc_buffer(type, size);
    if (buffer != nullptr) {
        buffer->iface.clear = clear_lazily;
    }
    return buffer;
}

}  // namespace

void edgechat_set_lazy_clear(int is_lazy) {
    ggml_backend_buffer_type & type = *ggml_backend_cpu_buffer_type();
    if (is_lazy != 0 && !is_patched) {
        original_iface          = type.iface;
        type.iface.alloc_buffer = allocate;
    } else if (is_lazy == 0 && is_patched) {
        type.iface = original_iface;
    }
    is_patched = is_lazy != 0;
}
#else
void edgechat_set_lazy_clear(int) {}
#endif
