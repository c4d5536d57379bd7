// The chunk plan: a list of tensors cut into chunks, and chunks gathered into tasks of equal work.
// Sums are kept per chunk and added in the order of chunks, so no result depends on who ran what.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

namespace modgrad {

struct Chunk {
  int64_t tensor, begin, size;
};

struct Plan {
  std::vector<Chunk> chunks;
  std::vector<int64_t> tasks;  // task t is the chunks [tasks[t], tasks[t + 1])

  int64_t num_tasks() const { return static_cast<int64_t>(tasks.size()) - 1; }
};

// 16 Ki elements stay in a core's L2 cache between two passes. A streaming pass over 1 Mi elements takes
// 0.1 to 0.2 ms.
constexpr int64_t kChunkSize = 1 << 14, kStreamingTask = 1 << 20;

inline Plan make_plan(const std::vector<int64_t>& sizes, int64_t chunk_size = kChunkSize,
                      int64_t task_size = kStreamingTask) {
  Plan plan;
  plan.tasks.push_back(0);
  int64_t work = 0;
  for (size_t t = 0; t < sizes.size(); ++t) {
    for (int64_t begin = 0; begin < sizes[t]; begin += chunk_size) {
      const int64_t size = std::min(chunk_size, sizes[t] - begin);
      plan.chunks.push_back({static_cast<int64_t>(t), begin, size});
      work += size;
      if (work >= task_size) {
        plan.tasks.push_back(static_cast<int64_t>(plan.chunks.size()));
        work = 0;
      }
    }
  }
  if (work > 0) plan.tasks.push_back(static_cast<int64_t>(plan.chunks.size()));
  return plan;
}

}  // namespace modgrad
