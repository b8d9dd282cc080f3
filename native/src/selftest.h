// Shared by the two halves of the self-test.
#pragma once

#include "ggml-backend.h"

#include <cstdint>
#include <string>

// Writes the report lines of edgechat_selftest and counts checks and failures.
class Report {
  public:
    explicit Report(int fd) : fd_(fd) {}

    void stage(const std::string & message);
    void fail(const std::string & message);
    void device(int n_devices, ggml_backend_dev_t device);
    void memory(uint64_t n_bytes);
    void type(int number);
    void done();

    int failures() const { return failures_; }

  private:
    void line(const char * kind, const std::string & message);

    int fd_;
    int checks_   = 0;
    int failures_ = 0;
};

// Decodes eight tokens of a tiny random model on `device` in one batch and one by one, and compares the logits.
void selftest_decode(ggml_backend_dev_t device, int n_threads, Report & report);
