#include "edgechat.h"

#include <atomic>
#include <new>

struct edgechat_abort_flag {
    std::atomic<int> value{0};
};

edgechat_abort_flag * edgechat_abort_flag_new(void) {
    return new (std::nothrow) edgechat_abort_flag();
}

void edgechat_abort_flag_free(edgechat_abort_flag * flag) {
    delete flag;
}

void edgechat_abort_flag_set(edgechat_abort_flag * flag, int value) {
    flag->value.store(value, std::memory_order_relaxed);
}

bool edgechat_abort_callback(void * flag) {
    return static_cast<edgechat_abort_flag *>(flag)->value.load(std::memory_order_relaxed) != 0;
}
