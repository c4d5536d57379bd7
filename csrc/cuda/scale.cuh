// out = weight * x, rounded once from float32 (float64 for float64).
#pragma once

#include "elements.cuh"

namespace modgrad {

// The block's share of out[0, n) = weight * in[0, n); the two may be the same memory.
template <typename T>
__device__ __forceinline__ void scale(const T* in, T* out, int64_t n, float weight) {
  constexpr int kSize = Pack<T>::kSize;
  const wide_t<T> w = weight;
  const int thread = static_cast<int>(threadIdx.x);
  const auto single = [&](int64_t i) { narrow(widen(in[i]) * w, out[i]); };
  if (reinterpret_cast<uintptr_t>(in) % 16 != reinterpret_cast<uintptr_t>(out) % 16) {
#pragma unroll 4
    for (int64_t i = thread; i < n; i += kThreads) single(i);
    return;
  }
  const auto scaled = [&](Pack<T> pack) {
#pragma unroll
    for (int j = 0; j < kSize; ++j) narrow(widen(pack.x[j]) * w, pack.x[j]);
    return pack;
  };
  const Split s = split(in, n);
  const int64_t tail = s.head + s.packs * kSize;
  if (thread < s.head) single(thread);
  int64_t i = thread;
#pragma unroll 1
  for (; i + (kInFlight - 1) * kThreads < s.packs; i += kInFlight * kThreads) {
    Pack<T> packs[kInFlight];
#pragma unroll
    for (int u = 0; u < kInFlight; ++u) packs[u] = load_pack(in + s.head + (i + u * kThreads) * kSize);
#pragma unroll
    for (int u = 0; u < kInFlight; ++u)
      store_pack(out + s.head + (i + u * kThreads) * kSize, scaled(packs[u]));
  }
#pragma unroll 1
  for (; i < s.packs; i += kThreads)
    store_pack(out + s.head + i * kSize, scaled(load_pack(in + s.head + i * kSize)));
  if (thread < s.tail) single(tail + thread);
}

}  // namespace modgrad
