// Shared by the two halves of the self-test.
#pragma once

#include "weights.h"

#include "ggml-backend.h"

#include <cstdint>
#include <string>
#include <vector>

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

// Measures products of `types` on the device and then on the CPU with n_threads threads, and writes the "speed" lines of
// edgechat_speeds; the buffer type tells the two apart. A line "copy" has the bytes per second that are copied to the
// device.
void selftest_speeds(const Opened & opened, const std::vector<ggml_type> & types, int n_threads, int fd);

// Decodes eight tokens of a tiny random model on `device` in one batch and one by one, and compares the logits.
void selftest_decode(ggml_backend_dev_t device, int n_threads, Report & report);
