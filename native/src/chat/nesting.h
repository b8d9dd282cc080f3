// Limits of nesting. llama.cpp processes parsers, templates and values recursively and without limits.
#pragma once

#include <cstddef>
#include <stdexcept>
#include <string>
#include <string_view>

// Stack of the threads that call the library: STACK_BYTES in edgechat/prompt/sandbox.py. Operator new refuses memory
// when an eighth of it is used: parsers and destructors that allocate nothing need the rest.
#ifdef __SANITIZE_ADDRESS__
constexpr size_t stack_bytes = size_t(512) << 20;  // with the sanitizer, the frames are several times as large
#else
constexpr size_t stack_bytes = size_t(64) << 20;
#endif
constexpr size_t max_stack_bytes = stack_bytes / 8;

// 4096 levels of brackets take 9 to 17 MB of stack, and 8192 blocks 4 to 8 MB. llama.cpp's 61 templates have at most
// 338 tags, and at most 293 characters outside of strings in a tag.
constexpr size_t max_open_brackets = 4096;
constexpr size_t max_tag_chars = 4096;
constexpr size_t max_tags = 8192;

// Checks that a JSON request has no long run of opening brackets. Brackets whose closing brackets are in strings are
// not counted; their nesting is limited by operator new, because every string is an allocation.
inline void check_brackets(std::string_view text) {
    size_t n_open = 0;
    for (const char c : text) {
        if (c == '[' || c == '{') {
            if (++n_open > max_open_brackets) {
                throw std::runtime_error("more than " + std::to_string(max_open_brackets) + " brackets are open");
            }
        } else if ((c == ']' || c == '}') && n_open > 0) {
            n_open--;
        }
    }
}

// Returns the number of characters outside of strings in the tag of a template at the beginning of `text`, and
// removes the tag from `text`.
inline size_t skip_tag(std::string_view & text) {
    const char end = text[1] == '{' ? '}' : text[1];
    size_t n_chars = 0;
    size_t pos = 2;
    for (; pos < text.size() && text.substr(pos, 2) != std::string({ end, '}' }); pos++) {
        const char quote = text[pos];
        n_chars++;
        if (quote == '"' || quote == '\'') {
            for (pos++; pos < text.size() && text[pos] != quote; pos++) {
                pos += text[pos] == '\\';
            }
        }
    }
    text.remove_prefix(pos < text.size() ? pos : text.size());
    return n_chars;
}

// Checks the number and the length of the tags of a template, which limit the nesting of its blocks and expressions.
inline void check_template(std::string_view text) {
    size_t n_tags = 0;
    for (size_t start; (start = text.find('{')) != std::string_view::npos && start + 1 < text.size();) {
        text.remove_prefix(start);
        const char kind = text[1];
        if (kind == '#') {
            const size_t end = text.find("#}", 2);
            text.remove_prefix(end == std::string_view::npos ? text.size() : end);
        } else if (kind == '%' || kind == '{') {
            if (skip_tag(text) > max_tag_chars) {
                throw std::runtime_error("a tag has more than " + std::to_string(max_tag_chars) + " characters");
            }
            if (++n_tags > max_tags) {
                throw std::runtime_error("it has more than " + std::to_string(max_tags) + " tags");
            }
        } else {
            text.remove_prefix(1);
        }
    }
}
