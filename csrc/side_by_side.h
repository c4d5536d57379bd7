// Threads over checks, any of which may raise.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <atomic>
#include <cstdint>

namespace modgrad {

// Tensors, or parameters with their states, at which a thread looks: 20 to 100 us where they have left the cache.
constexpr int64_t kTensorsPerThread = 256;

// All of them in the thread that calls: beside a GPU, others may be loading data.
constexpr int64_t kInOneThread = int64_t{1} << 40;

// Calls f(i) for i in [0, size), `per_thread` or more of them in a thread. Where one throws, all are called again
// in order: parallel_for would lose what the first says, and forbids to copy what is to be copied on a write.
template <typename F>
void side_by_side(int64_t size, int64_t per_thread, const F& f) {
  std::atomic<bool> in_order = size <= per_thread;
  if (!in_order)
    torch::stable::parallel_for(0, size, per_thread, [&](int64_t begin, int64_t end) {
      try {
        for (int64_t i = begin; i < end; ++i) f(i);
      } catch (...) {
        in_order = true;
      }
    });
  if (in_order)
    for (int64_t i = 0; i < size; ++i) f(i);
}

}  // namespace modgrad
