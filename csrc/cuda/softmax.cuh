// The softmax of a row, as far as one pass goes: its largest logit, and the sum of exponentials.
#pragma once

#include "cooperative.cuh"
#include "elements.cuh"

namespace modgrad {

// Threads of a row: one warp takes 512 float32 an iteration; past four of them a whole block is worth its
// barriers.
constexpr int kWarp = 32;
constexpr int64_t kMostClassesOfAWarp = 2048;

// Whether a block is to take each row, where else a warp does.
inline bool takes_blocks(const std::vector<TensorRef>& logits, int64_t num_rows) {
  return std::any_of(logits.begin(), logits.end(),
                     [&](const TensorRef& x) { return x.numel / num_rows > kMostClassesOfAWarp; });
}

// As many as give every row its threads.
inline int64_t blocks_of_rows(int64_t num_rows, bool wide) {
  return wide ? num_rows : (num_rows + kThreads / kWarp - 1) / (kThreads / kWarp);
}

// 16 MiB of float32: some 4 us at 4 TB/s, of which a launch more is a good part. Beyond, it is little, and blocks
// that wait in a queue spread the rows better than a loop does.
constexpr int64_t kMostLogitsAtOnce = int64_t{1} << 22;

// Whether rows and means are one launch: for a short list alone, as no model has 64 modalities.
inline bool is_for_one_launch(const std::vector<TensorRef>& logits) {
  int64_t total = 0;
  for (const TensorRef& x : logits) total += x.numel;
  return logits.size() <= kFewTensors && takes_one_launch(total <= kMostLogitsAtOnce);
}

// exp(a - b), and 1 for two equal infinities.
template <typename T>
__device__ __forceinline__ T exp_difference(T a, T b) {
  return a == b ? T(1) : std::exp(a - b);
}

// sum_c exp(x_c) = sum exp(largest).
template <typename T>
struct Exponentials {
  T largest, sum;
};

// By kRowThreads threads, all of which get it. The largest value so far skips NaN, the sum keeps it. Where the
// largest is infinite, the sum is NaN, as torch's softmax is.
template <int kRowThreads, typename T>
__device__ __forceinline__ Exponentials<wide_t<T>> exponentials(const T* x, int64_t num_classes, int thread) {
  using Value = wide_t<T>;
  Value largest = -INFINITY, sum = 0;  // sum of exp(value - largest)
  for_each_pack<kRowThreads>(x, num_classes, thread, [&](const auto& values, int) {
    Value larger = largest;
#pragma unroll
    for (const Value value : values) larger = value > larger ? value : larger;
    sum *= exp_difference(largest, larger);
    largest = larger;
#pragma unroll
    for (const Value value : values) sum += exp_difference(value, largest);
  });
  const Value row_largest = reduce<kRowThreads>(largest, Larger());
  sum = reduce<kRowThreads>(sum * exp_difference(largest, row_largest), Add());
  return {row_largest, sum + (row_largest - row_largest)};
}

}  // namespace modgrad
