// Chains of the most likely tokens of a draft model or of prediction heads, without samplers.
#include "edgechat.h"

#include "llama-ext.h"
#include "llama.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <exception>
#include <functional>
#include <memory>
#include <vector>

namespace {

constexpr int     N_TOP         = 10;
constexpr int32_t FAILED        = -100;  // not a code of llama_decode
constexpr int32_t INVALID_INPUT = -101;

struct Choice {
    llama_token token       = -1;
    float       probability = 0.0f;
};

// Returns the most likely token (the first of equal ones) and its probability among the largest logits; token -1 if no
// logit is a finite number.
Choice choose(const float * logits, int32_t n_vocab) {
    float       top[N_TOP];
    llama_token best = -1;
    std::fill_n(top, N_TOP, -INFINITY);
    for (int32_t i = 0; i < n_vocab; i++) {
        const float logit = logits[i];
        if (logit > top[N_TOP - 1]) {
            if (logit > top[0]) {
                best = i;
            }
            float * const place = std::upper_bound(top, top + N_TOP, logit, std::greater<float>());
            std::copy_backward(place, top + N_TOP - 1, top + N_TOP);
            *place = logit;
        }
    }
    if (best < 0 || !std::isfinite(top[0])) {
        return {};
    }
    float sum = 0.0f;
    for (const float logit : top) {
        sum += std::exp(logit - top[0]);
    }
    return {best, 1.0f / sum};
}

struct Free {
    void operator()(llama_batch_ext * batch) const { llama_batch_ext_free(batch); }
};

class Drafting {
  public:
    Drafting(llama_context * context, const edgechat_draft_layout & layout, edgechat_draft * drafts, int32_t count) :
        context_(context),
        memory_(llama_get_memory(context)),
        vocab_(llama_model_get_vocab(llama_get_model(context))),
        n_vocab_(std::min(layout.n_vocab, llama_vocab_n_tokens(vocab_))),
        layout_(layout),
        drafts_(drafts),
        count_(count),
        outputs_(static_cast<size_t>(count)),
        is_active_(static_cast<size_t>(count)),
        chain_rows_(static_cast<size_t>(count)),
        batch_(llama_batch_ext_init(context)) {}

    int32_t run() {
        for (int32_t i = 0; i < count_; i++) {
            drafts_[i].n_tokens = 0;
            if (drafts_[i].n_pending < 1 || (layout_.n_row > 0) != (drafts_[i].rows != nullptr)) {
                return INVALID_INPUT;
            }
            is_active_[i] = drafts_[i].max_tokens > 0;
        }
        if (const int32_t code = compute_pending()) {
            return code;
        }
        for (int32_t i = 0; i < count_; i++) {
            edgechat_draft & draft = drafts_[i];
            if (draft.chain_seq != draft.seq) {
                llama_memory_seq_rm(memory_, draft.chain_seq, -1, -1);
                llama_memory_seq_cp(memory_, draft.seq, draft.chain_seq, -1, -1);
            }
        }
        for (int32_t step = 1;; step++) {
            if (!extend()) {
                return INVALID_INPUT;
            }
            if (is_empty_) {
                return 0;
            }
            if (is_chained()) {
                use_head(std::min(step, layout_.n_heads - 1));
            }
            if (const int32_t code = decode()) {
                return code;
            }
        }
    }

    ~Drafting() {
        if (is_chained()) {
            llama_set_nextn_layer_offset(context_, 0);
        }
    }

    Drafting(const Drafting &)             = delete;
    Drafting & operator=(const Drafting &) = delete;

  private:
    struct Entry {
        int32_t draft;
        int32_t index;
    };

    bool is_chained() const { return layout_.n_heads > 1; }

    static int32_t last_position(const edgechat_draft & draft) { return draft.position + draft.n_pending - 1; }

    int32_t compute_pending() {
        std::vector<Entry> earlier, last;
        for (int32_t i = 0; i < count_; i++) {
            for (int32_t k = 0; k + 1 < drafts_[i].n_pending; k++) {
                earlier.push_back({i, k});
            }
            last.push_back({i, drafts_[i].n_pending - 1});
        }
        if (is_chained()) {
            // Each head has a layer of its own, so that each must compute all tokens.
            for (int32_t head = 0; head < layout_.n_heads; head++) {
                for (int32_t i = 0; i < count_; i++) {
                    llama_memory_seq_rm(memory_, drafts_[i].seq, drafts_[i].position, -1);
                }
                llama_set_nextn_layer_offset(context_, head);
                if (const int32_t code = compute(earlier, 0)) {
                    return code;
                }
            }
            llama_set_nextn_layer_offset(context_, 0);
            earlier.clear();
        }
        if (layout_.has_separate_outputs != 0) {
            if (const int32_t code = compute(earlier, 0)) {
                return code;
            }
            earlier.clear();
        }
        earlier.insert(earlier.end(), last.begin(), last.end());
        return compute(earlier, count_);
    }

    // Computes pending tokens in batches; the last `n_outputs` of them have outputs and are in the last batch.
    int32_t compute(const std::vector<Entry> & entries, int32_t n_outputs) {
        const size_t n_batch = llama_n_batch(context_), size = entries.size();
        const size_t n_plain = size - static_cast<size_t>(n_outputs);
        if (static_cast<size_t>(n_outputs) > n_batch) {
            return INVALID_INPUT;
        }
        for (size_t start = 0; start < size;) {
            const size_t end = size - start <= n_batch ? size : std::min(start + n_batch, n_plain);
            llama_batch_ext_clear(batch_.get());
            for (size_t i = start; i < end; i++) {
                const auto [i_draft, k]      = entries[i];
                const edgechat_draft & draft = drafts_[i_draft];
                const float * const    row   = draft.rows == nullptr ? nullptr : draft.rows + row_offset(k);
                const bool             is_output = i >= n_plain;
                const int32_t          index = add(draft.seq, draft.pending[k], draft.position + k, row, is_output);
                if (index < 0) {
                    return INVALID_INPUT;
                }
                if (is_output) {
                    outputs_[i_draft] = index;
                    if (is_chained()) {
                        chain_rows_[i_draft].assign(row, row + layout_.n_row);
                    }
                }
            }
            if (const int32_t code = decode()) {
                return code;
            }
            start = end;
        }
        return 0;
    }

    size_t row_offset(int32_t index) const { return static_cast<size_t>(index) * static_cast<size_t>(layout_.n_row); }

    // Appends the most likely token to each draft and fills the next batch. Returns false for an invalid token.
    bool extend() {
        llama_batch_ext_clear(batch_.get());
        is_empty_ = true;
        // The rows are copied before `add`, because they belong to the last batch.
        for (int32_t i = 0; i < count_; i++) {
            if (!is_active_[i]) {
                continue;
            }
            edgechat_draft & draft  = drafts_[i];
            const float *    logits = llama_get_logits_ith(context_, outputs_[i]);
            const Choice     choice = logits == nullptr ? Choice() : choose(logits, n_vocab_);
            is_active_[i]           = choice.token >= 0 && choice.probability >= draft.min_probability &&
                            (draft.ends_at_eog == 0 || !llama_vocab_is_eog(vocab_, choice.token));
            if (!is_active_[i]) {
                continue;
            }
            draft.tokens[draft.n_tokens]        = choice.token;
            draft.probabilities[draft.n_tokens] = choice.probability;
            draft.n_tokens++;
            const int32_t max_tokens = is_chained() ? std::min(draft.max_tokens, layout_.n_heads) : draft.max_tokens;
            if (draft.n_tokens >= max_tokens) {
                is_active_[i] = false;
                continue;
            }
            const float * row = nullptr;
            if (layout_.n_row > 0) {
                row = llama_get_embeddings_nextn_ith(context_, outputs_[i]);
                if (row == nullptr) {
                    return false;
                }
            }
            if (!(is_chained() ? add_prefix(i, row) : add_token(i, row))) {
                return false;
            }
            is_empty_ = false;
        }
        return true;
    }

    bool add_token(int32_t i, const float * row) {
        const edgechat_draft & draft    = drafts_[i];
        const int32_t          distance = layout_.has_fixed_position != 0 ? 0 : draft.n_tokens;
        const llama_token      token    = draft.tokens[draft.n_tokens - 1];
        outputs_[i] = add(draft.chain_seq, token, last_position(draft) + distance, row, true);
        return outputs_[i] >= 0;
    }

    // Adds the last pending token and the draft, because the next head has not seen them.
    bool add_prefix(int32_t i, const float * row) {
        const edgechat_draft & draft = drafts_[i];
        std::vector<float> &   rows  = chain_rows_[i];
        rows.insert(rows.end(), row, row + layout_.n_row);
        for (int32_t k = 0; k <= draft.n_tokens; k++) {
            const llama_token token = k == 0 ? draft.pending[draft.n_pending - 1] : draft.tokens[k - 1];
            const bool        is_output = k == draft.n_tokens || layout_.has_separate_outputs != 0;
            outputs_[i] = add(draft.seq, token, last_position(draft) + k, rows.data() + row_offset(k), is_output);
            if (outputs_[i] < 0) {
                return false;
            }
        }
        return true;
    }

    void use_head(int32_t head) {
        for (int32_t i = 0; i < count_; i++) {
            if (is_active_[i]) {
                llama_memory_seq_rm(memory_, drafts_[i].seq, last_position(drafts_[i]), -1);
            }
        }
        llama_set_nextn_layer_offset(context_, head);
    }

    int32_t add(llama_seq_id seq, llama_token token, llama_pos position, const float * row, bool is_output) {
        const int32_t index = llama_batch_ext_add_token(batch_.get(), seq, token);
        if (index < 0) {
            return index;
        }
        llama_batch_ext_set_pos(batch_.get(), index, &position);
        llama_batch_ext_set_output_logits(batch_.get(), index, is_output);
        const llama_embd embedding = {const_cast<float *>(row), 1, static_cast<size_t>(layout_.n_row)};
        return row == nullptr || llama_batch_ext_set_embd_token(batch_.get(), index, embedding) ? index : -1;
    }

    int32_t decode() { return llama_process(context_, LLAMA_PROCESS_TYPE_DECODE, batch_.get()); }

    llama_context *                        context_;
    llama_memory_t                         memory_;
    const llama_vocab *                    vocab_;
    int32_t                                n_vocab_;
    const edgechat_draft_layout &          layout_;
    edgechat_draft *                       drafts_;
    int32_t                                count_;
    std::vector<int32_t>                   outputs_;  // index of the newest output in the last batch, by draft
    std::vector<bool>                      is_active_;
    std::vector<std::vector<float>>        chain_rows_;  // rows of the last pending token and the draft, by draft
    std::unique_ptr<llama_batch_ext, Free> batch_;
    bool                                   is_empty_ = true;
};

}  // namespace

int32_t edgechat_draft_tokens(
    llama_context * context, const edgechat_draft_layout * layout, edgechat_draft * drafts, int32_t count) {
    try {
        return Drafting(context, *layout, drafts, count).run();
    } catch (const std::exception &) {
        return FAILED;
    }
}
