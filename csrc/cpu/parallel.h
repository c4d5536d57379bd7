// Threads over the tasks of a plan, code for more than one instruction set, and prefetching.
#pragma once

#include <torch/csrc/stable/ops.h>

#include "../plan.h"

// One wheel for every x86-64: the variant is chosen when the module is loaded.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define MODGRAD_CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define MODGRAD_CLONES
#endif

namespace modgrad {

constexpr int64_t kCacheLine = 64;

inline __attribute__((always_inline)) void prefetch(const void* address) { __builtin_prefetch(address); }

// Another thread for every 4 tasks: for less, some 0.5 ms, it gains little, and where another program has
// the core, waiting for it costs milliseconds.
constexpr int64_t kTasksPerThread = 4;

// Calls f(chunk index, chunk) for every chunk, tasks spread over torch's threads.
template <typename F>
void for_each_chunk(const Plan& plan, const F& f) {
  torch::stable::parallel_for(0, plan.num_tasks(), kTasksPerThread, [&](int64_t begin, int64_t end) {
    for (int64_t c = plan.tasks[begin]; c < plan.tasks[end]; ++c) f(c, plan.chunks[c]);
  });
}

}  // namespace modgrad
