// Threads over checks, any of which may raise.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <cstdint>
#include <exception>
#include <mutex>

namespace modgrad {

// Tensors, or parameters with their states, at which a thread looks: 20 to 100 us where they have left the cache.
constexpr int64_t kTensorsPerThread = 256;

// All of them in the thread that calls: beside a GPU, others may be loading data.
constexpr int64_t kInOneThread = int64_t{1} << 40;

// Calls f(i) for i in [0, size), `per_thread` or more of them in a thread. Of what they throw, it throws what
// the lowest i did: torch's parallel_for would lose what that says.
template <typename F>
void side_by_side(int64_t size, int64_t per_thread, const F& f) {
  std::mutex mutex;
  int64_t failed = size;
  std::exception_ptr error;
  torch::stable::parallel_for(0, size, per_thread, [&](int64_t begin, int64_t end) {
    int64_t i = begin;
    try {
      for (; i < end; ++i) f(i);
    } catch (...) {
      const std::lock_guard<std::mutex> lock(mutex);
      if (i < failed) failed = i, error = std::current_exception();
    }
  });
  if (error) std::rethrow_exception(error);
}

}  // namespace modgrad
