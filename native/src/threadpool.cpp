// A persistent thread pool for decode steps, and greedy sampling.
#include "edgechat.h"

#include "ggml-backend.h"
#include "ggml-cpu.h"
#include "ggml.h"
#include "llama.h"

#include <algorithm>
#include <new>

// The pool's functions belong to the loaded CPU module and are looked up there.
struct edgechat_threadpool {
    ggml_threadpool * pool;
    void (*release)(ggml_threadpool *);
};

edgechat_threadpool * edgechat_threadpool_new(int n_threads) {
    ggml_backend_dev_t device = ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU);
    if (device == nullptr) {
        return nullptr;
    }
    ggml_backend_reg_t module = ggml_backend_dev_backend_reg(device);
    const auto         create = reinterpret_cast<decltype(&ggml_threadpool_new)>(
        ggml_backend_reg_get_proc_address(module, "ggml_threadpool_new"));
    const auto release = reinterpret_cast<decltype(&ggml_threadpool_free)>(
        ggml_backend_reg_get_proc_address(module, "ggml_threadpool_free"));
    if (create == nullptr || release == nullptr) {
        return nullptr;
    }
    ggml_threadpool_params params = ggml_threadpool_params_default(n_threads);
    ggml_threadpool *      pool   = create(&params);
    return pool == nullptr ? nullptr : new (std::nothrow) edgechat_threadpool{pool, release};
}

void edgechat_threadpool_attach(edgechat_threadpool * threadpool, llama_context * context) {
    llama_attach_threadpool(context, threadpool->pool, nullptr);
}

ggml_threadpool * edgechat_threadpool_raw(edgechat_threadpool * threadpool) {
    return threadpool->pool;
}

void edgechat_threadpool_free(edgechat_threadpool * threadpool) {
    if (threadpool != nullptr) {
        threadpool->release(threadpool->pool);
        delete threadpool;
    }
}

int32_t edgechat_argmax(const float * logits, int32_t count) {
    // Two passes: the first one carries no index, so the compiler vectorises it.
    float best[16];
    std::fill_n(best, 16, logits[0]);
    int32_t i = 0;
    for (; i + 16 <= count; i += 16) {
        for (int32_t lane = 0; lane < 16; lane++) {
            best[lane] = logits[i + lane] > best[lane] ? logits[i + lane] : best[lane];
        }
    }
    float largest = *std::max_element(best, best + 16);
    for (; i < count; i++) {
        largest = logits[i] > largest ? logits[i] : largest;
    }
    const float * found = std::find(logits, logits + count, largest);
    return found == logits + count ? 0 : static_cast<int32_t>(found - logits);
}
