// out = weight * x, rounded once from float32 (float64 for float64).
#pragma once

#include "elements.cuh"

namespace modgrad {

// The block's share of out[0, n) = weight * in[0, n); the two may be the same memory.
template <typename T>
__device__ __forceinline__ void scale(const T* in, T* out, int64_t n, float weight) {
  const wide_t<T> w = weight;
  transform<kThreads>(in, out, n, static_cast<int>(threadIdx.x),
                      [w](int64_t, wide_t<T> value) { return value * w; });
}

}  // namespace modgrad
