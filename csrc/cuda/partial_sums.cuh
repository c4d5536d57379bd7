// Sums of squares: of a chunk, and of the partial sums of many, each always in the same order.
#pragma once

#include "elements.cuh"

namespace modgrad {

// The thread's share. Every square is computed and added in float64, so that none of a float32 overflows or
// vanishes. At 4 TB/s that is 1e12 squares a second where an H100 does 1.7e13; a card with 1/64 rate in
// float64 is bound by it.
template <typename T>
__device__ __forceinline__ double sum_of_squares(const T* x, int64_t n) {
  double sum[kInFlight] = {};
  for_each_pack<kThreads>(x, n, threadIdx.x, [&](const auto& values, int slot) {
#pragma unroll
    for (const auto value : values) {
      const double v = static_cast<double>(value);
      sum[slot] = fma(v, v, sum[slot]);
    }
  });
  return (sum[0] + sum[1]) + (sum[2] + sum[3]);
}
static_assert(kInFlight == 4, "sum_of_squares adds four sums");

// The sum over chunks [begin, end), of gradients that were multiplied by grad_scale where that is not null; all
// threads of the block get it.
__device__ __forceinline__ double add_partials(const double* partial, int64_t begin, int64_t end,
                                               const float* grad_scale = nullptr) {
  double sum = 0;
#pragma unroll 4
  for (int64_t c = begin + threadIdx.x; c < end; c += kThreads) sum += partial[c];
  const double scale = grad_scale != nullptr ? *grad_scale : 1;
  return reduce<kThreads>(sum, Add()) / (scale * scale);
}

}  // namespace modgrad
