#include "edgechat.h"

#include "ggml-backend.h"
#include "llama-ext.h"

#include <cstdio>

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
