// The type of each tensor after quantisation with a preset, by llama.cpp's own rules, without loading the model.
#include "edgechat.h"

#include "ggml-cpp.h"
#include "ggml.h"
#include "llama-ext.h"

#include <exception>
#include <memory>
#include <vector>

namespace {

struct ModelFree {
    void operator()(llama_model * model) const { llama_model_free(model); }
};

struct QuantFree {
    void operator()(quantize_state_impl * state) const { llama_quant_free(state); }
};

int fill_types(const edgechat_quant_model * model, const edgechat_quant_tensor * tensors, int count, int preset,
               int32_t * types) {
    const llama_quant_model_desc desc{model->architecture, model->n_embd,    model->n_ff,
                                      model->n_layer,      model->n_head,    model->n_head_kv,
                                      model->n_expert,     model->key_length, model->value_length};
    const std::unique_ptr<llama_model, ModelFree> mock(llama_quant_model_from_metadata(&desc));
    if (!mock) {
        return -1;
    }
    const llama_ftype           ftype  = static_cast<llama_ftype>(preset);
    llama_model_quantize_params params = llama_model_quantize_default_params();
    params.ftype                       = ftype;
    params.allow_requantize            = true;
    const std::unique_ptr<quantize_state_impl, QuantFree> state(llama_quant_init(mock.get(), &params));

    const ggml_context_ptr context(
        ggml_init({ggml_tensor_overhead() * static_cast<size_t>(count + 1), nullptr, true}));
    std::vector<ggml_tensor *> chosen;
    std::vector<int>           places;
    for (int i = 0; i < count; i++) {
        const edgechat_quant_tensor & given  = tensors[i];
        ggml_tensor *                 tensor = ggml_new_tensor(
            context.get(), static_cast<ggml_type>(given.type), given.n_dims, given.shape);
        ggml_set_name(tensor, given.name);
        types[i] = given.type;
        if (llama_quant_tensor_allows_quantization(state.get(), tensor)) {
            chosen.push_back(tensor);
            places.push_back(i);
        }
    }
    std::vector<ggml_type> results(chosen.size());
    llama_quant_compute_types(state.get(), ftype, chosen.data(), results.data(), chosen.size());
    for (size_t i = 0; i < places.size(); i++) {
        types[places[i]] = results[i];
    }
    return 0;
}

}  // namespace

int edgechat_quant_types(const edgechat_quant_model * model, const edgechat_quant_tensor * tensors, int count,
                         int preset, int32_t * types) {
    try {
        return fill_types(model, tensors, count, preset, types);
    } catch (const std::exception &) {
        return -1;
    }
}
