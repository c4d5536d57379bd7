// A weighted sum of gradients over a chunk: read once each, written once.
#pragma once

#include "elements.cuh"

namespace modgrad {

// sum + w x with both steps rounded, as the reference does it: no fused multiply-add.
__device__ __forceinline__ float add_scaled(float sum, float x, float w) {
  return __fadd_rn(sum, __fmul_rn(x, w));
}
__device__ __forceinline__ double add_scaled(double sum, double x, double w) {
  return __dadd_rn(sum, __dmul_rn(x, w));
}

// kPacks packs of the thread, kThreads apart, from element i on. `inputs` are the gradients: how many there are in
// `count`, where the chunk begins in each, and its weight.
template <int kPacks, typename T, typename Inputs>
__device__ __forceinline__ void combine_packs(const Inputs& inputs, T* out, int64_t i) {
  constexpr int kSize = Pack<T>::kSize;
  wide_t<T> sum[kPacks][kSize] = {};
#pragma unroll 1
  for (int g = 0; g < inputs.count; ++g) {
    const T* x = inputs.template in<T>(g) + i;
    const wide_t<T> w = inputs.weight(g);
    Pack<T> packs[kPacks];
#pragma unroll
    for (int u = 0; u < kPacks; ++u) packs[u] = load_pack(x + u * kThreads * kSize);
#pragma unroll
    for (int u = 0; u < kPacks; ++u)
#pragma unroll
      for (int e = 0; e < kSize; ++e) sum[u][e] = add_scaled(sum[u][e], widen(packs[u].x[e]), w);
  }
#pragma unroll
  for (int u = 0; u < kPacks; ++u) {
    Pack<T> pack;
#pragma unroll
    for (int e = 0; e < kSize; ++e) narrow(sum[u][e], pack.x[e]);
    store_pack(out + i + u * kThreads * kSize, pack);
  }
}

// The thread's share of the chunk out[0, n). A sum that resumes begins in wide[0, n), one that waits ends there.
template <typename T, typename Inputs>
__device__ __forceinline__ void combine(const Inputs& inputs, T* out, int64_t n, wide_t<T>* wide = nullptr,
                                        bool resumes = false, bool waits = false) {
  constexpr int kSize = Pack<T>::kSize;
  const int thread = static_cast<int>(threadIdx.x);
  bool alike = !resumes && !waits;
  for (int g = 0; g < inputs.count; ++g)
    alike = alike &&
            reinterpret_cast<uintptr_t>(inputs.template in<T>(g)) % 16 == reinterpret_cast<uintptr_t>(out) % 16;
  const Split s = alike ? split(out, n) : Split{0, 0, n};
  int64_t i = thread;
#pragma unroll 1
  for (; i + (kInFlight - 1) * kThreads < s.packs; i += kInFlight * kThreads)
    combine_packs<kInFlight>(inputs, out, s.head + i * kSize);
#pragma unroll 1
  for (; i < s.packs; i += kThreads) combine_packs<1>(inputs, out, s.head + i * kSize);
#pragma unroll 4
  for (int64_t r = thread; r < s.head + s.tail; r += kThreads) {
    const int64_t e = r < s.head ? r : r + s.packs * kSize;
    wide_t<T> sum = resumes ? wide[e] : wide_t<T>{0};
#pragma unroll 1
    for (int g = 0; g < inputs.count; ++g)
      sum = add_scaled(sum, widen(inputs.template in<T>(g)[e]), inputs.weight(g));
    if (waits)
      wide[e] = sum;
    else
      narrow(sum, out[e]);
  }
}

}  // namespace modgrad
