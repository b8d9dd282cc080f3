// Shared by the two halves of the self test.
#pragma once

#include "ggml-backend.h"

#include <string>

// Writes the lines described at edgechat_selftest and counts them.
class Report {
  public:
    explicit Report(int fd) : fd_(fd) {}

    void stage(const std::string & words);
    void fail(const std::string & words);
    void done();

    int failures() const { return failures_; }

  private:
    void line(const char * kind, const std::string & words);

    int fd_;
    int checks_   = 0;
    int failures_ = 0;
};

// Decodes eight tokens of a tiny random model on `device`, at once and one by one, and compares the logits.
void selftest_decode(ggml_backend_dev_t device, int n_threads, Report & report);
