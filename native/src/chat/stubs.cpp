// Replacements for the few functions outside llama.cpp's chat code that the chat code calls, so that the library needs
// neither libllama nor the rest of llama.cpp's common code.

#include "chat.h"
#include "common.h"
#include "log.h"

#include <cstdarg>
#include <cstdio>
#include <stdexcept>
#include <string>
#include <vector>

std::string string_join(const std::vector<std::string> & values, const std::string & separator) {
    std::string joined;
    for (size_t i = 0; i < values.size(); i++) {
        joined += i > 0 ? separator + values[i] : values[i];
    }
    return joined;
}

std::vector<std::string> string_split(const std::string & text, const std::string & delimiter) {
    std::vector<std::string> parts;
    size_t start = 0;
    for (size_t end; (end = text.find(delimiter, start)) != std::string::npos; start = end + delimiter.size()) {
        parts.push_back(text.substr(start, end - start));
    }
    parts.push_back(text.substr(start));
    return parts;
}

std::string string_repeat(const std::string & text, size_t count) {
    std::string repeated;
    repeated.reserve(text.size() * count);
    for (size_t i = 0; i < count; i++) {
        repeated += text;
    }
    return repeated;
}

void string_replace_all(std::string & text, const std::string & search, const std::string & replacement) {
    if (search.empty()) {
        return;
    }
    for (size_t start = 0; (start = text.find(search, start)) != std::string::npos; start += replacement.size()) {
        text.replace(start, search.size(), replacement);
    }
}

// Logging: warnings and errors go to standard error, which is the log of the render process.

int common_log_get_verbosity_thold() {
    return LOG_LEVEL_WARN;
}

struct common_log * common_log_main() {
    return nullptr;
}

void common_log_add(struct common_log *, enum ggml_log_level, const char * format, ...) {
    va_list arguments;
    va_start(arguments, format);
    std::vfprintf(stderr, format, arguments);
    va_end(arguments);
}

// Functions that need a model. The chat code calls them only if a model was given, which never happens here.

[[noreturn]] static void fail_without_model() {
    throw std::logic_error("the chat library has no model");
}

std::vector<llama_token> common_tokenize(const struct llama_vocab *, const std::string &, bool, bool) {
    fail_without_model();
}

std::string common_token_to_piece(const struct llama_vocab *, llama_token, bool) {
    fail_without_model();
}

extern "C" {

const char * llama_model_chat_template(const struct llama_model *, const char *) {
    fail_without_model();
}

const struct llama_vocab * llama_model_get_vocab(const struct llama_model *) {
    fail_without_model();
}

llama_token llama_vocab_bos(const struct llama_vocab *) {
    fail_without_model();
}

llama_token llama_vocab_eos(const struct llama_vocab *) {
    fail_without_model();
}

bool llama_vocab_get_add_bos(const struct llama_vocab *) {
    fail_without_model();
}

bool llama_vocab_get_add_eos(const struct llama_vocab *) {
    fail_without_model();
}

int32_t llama_chat_apply_template(const char *, const struct llama_chat_message *, size_t, bool, char *, int32_t) {
    fail_without_model();
}

// A failed assertion becomes an exception, because a bad template or output must not end the process.
void ggml_abort(const char * file, int line, const char * format, ...) {
    char message[512];
    va_list arguments;
    va_start(arguments, format);
    std::vsnprintf(message, sizeof(message), format, arguments);
    va_end(arguments);
    throw std::logic_error(std::string(file) + ":" + std::to_string(line) + ": " + message);
}

}  // extern "C"
