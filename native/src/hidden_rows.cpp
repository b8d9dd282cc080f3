// Hidden rows of a model, from which prediction heads draft.
#include "edgechat.h"

#include "llama-ext.h"
#include "llama.h"

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <exception>
#include <memory>

namespace {

constexpr int32_t FAILED        = -100;  // not a code of llama_encode
constexpr int32_t INVALID_INPUT = -101;

struct Free {
    void operator()(llama_batch_ext * batch) const { llama_batch_ext_free(batch); }
};

bool is_last_layer(const llama_context * context, int32_t layer) {
    return layer >= llama_model_n_layer(llama_get_model(context));
}

}  // namespace

void edgechat_keep_rows(llama_context * context, const int32_t * layers, int32_t n_layers) {
    bool needs_nextn = n_layers == 0;
    for (int32_t i = 0; i < n_layers; i++) {
        if (is_last_layer(context, layers[i])) {
            needs_nextn = true;
        } else {
            llama_set_embeddings_layer_inp(context, static_cast<uint32_t>(layers[i]), true);
        }
    }
    if (needs_nextn) {
        llama_set_embeddings_nextn(context, true, true);
    }
}

int32_t edgechat_copy_rows(
    llama_context * context, const int32_t * layers, int32_t n_layers, const int32_t * indexes, int32_t count,
    float * rows) {
    const llama_model * model   = llama_get_model(context);
    const auto          n_embd  = static_cast<size_t>(llama_model_n_embd(model));
    const auto          n_nextn = static_cast<size_t>(llama_model_n_embd_out(model));
    float *             target  = rows;
    for (int32_t i = 0; i < count; i++) {
        for (int32_t k = 0; k < std::max(1, n_layers); k++) {
            const bool    is_nextn = n_layers == 0 || is_last_layer(context, layers[k]);
            const size_t  width    = is_nextn ? n_nextn : n_embd;
            const float * row      = nullptr;
            if (is_nextn) {
                row = llama_get_embeddings_nextn_ith(context, indexes[i]);
            } else {
                row = llama_get_embeddings_layer_inp(context, static_cast<uint32_t>(layers[k]));
                row = row == nullptr ? nullptr : row + static_cast<size_t>(indexes[i]) * n_embd;
            }
            if (row == nullptr) {
                return -1;
            }
            std::memcpy(target, row, width * sizeof(float));
            target += width;
        }
    }
    return 0;
}

int32_t edgechat_encode_rows(
    llama_context * context, const float * features, int32_t n_features, int32_t count, int32_t max_rows,
    float * rows) {
    try {
        const auto n_row = static_cast<size_t>(llama_model_n_embd(llama_get_model(context)));
        // The encoder does not use positions, but llama.cpp checks that they continue those in the memory.
        const llama_pos first_position = llama_memory_seq_pos_max(llama_get_memory(context), 0) + 1;
        const std::unique_ptr<llama_batch_ext, Free> batch(llama_batch_ext_init(context));
        for (int32_t start = 0; start < count; start += max_rows) {
            const int32_t end = std::min(count, start + max_rows);
            llama_batch_ext_clear(batch.get());
            for (int32_t i = start; i < end; i++) {
                float * const    row       = const_cast<float *>(features) + static_cast<size_t>(i) * n_features;
                const llama_embd embedding = {row, 1, static_cast<size_t>(n_features)};
                const llama_pos  position  = first_position + i - start;
                const int32_t    index     = llama_batch_ext_add_embd(batch.get(), 0, embedding);
                if (index < 0) {
                    return INVALID_INPUT;
                }
                llama_batch_ext_set_pos(batch.get(), index, &position);
                llama_batch_ext_set_output_logits(batch.get(), index, true);
            }
            if (const int32_t code = llama_process(context, LLAMA_PROCESS_TYPE_ENCODE, batch.get())) {
                return code;
            }
            const float * encoded = llama_get_embeddings_nextn(context);
            if (encoded == nullptr) {
                return FAILED;
            }
            std::memcpy(rows + start * n_row, encoded, (end - start) * n_row * sizeof(float));
        }
        return 0;
    } catch (const std::exception &) {
        return FAILED;
    }
}

int32_t edgechat_target_layers(const llama_model * model, int32_t * layers, int32_t capacity) {
    const auto count = static_cast<int32_t>(llama_model_target_layer_ids_n(model));
    std::copy_n(llama_model_target_layer_ids(model), std::min(count, capacity), layers);
    return count;
}
