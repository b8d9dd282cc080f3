// The clock of the chat library, which the build includes before every source file: llama.cpp's Jinja asks
// std::time(nullptr) for the time of `strftime_now`; it gets that of the request instead.
#pragma once

#include <ctime>

namespace edgechat {

// Time of the request that runs on this thread, in seconds since 1970.
extern thread_local std::time_t now_s;

}  // namespace edgechat

namespace std {

inline time_t edgechat_time(time_t *) {
    return ::edgechat::now_s;
}

}  // namespace std

#define time(result) edgechat_time(result)
