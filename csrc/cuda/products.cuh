// Inner products of some gradients over a chunk, all in one pass.
#pragma once

#include "../same_losses.h"
#include "elements.cuh"

namespace modgrad {

constexpr int kWarps = kThreads / 32;

// The thread's share of the products over [0, n), in float64, then its warp's sum to warps[slot].
template <int kRows, int kColumns, typename T>
__device__ __forceinline__ void multiply(const void* const* in, int columns, int64_t begin, int64_t n,
                                         double (*warps)[kWarps]) {
  constexpr int kGrads = kRows + kColumns, kWidth = kColumns > 0 ? kColumns : kRows;
  constexpr int kUnroll = kGrads < kInFlight ? kInFlight / kGrads : 1, kSize = Pack<T>::kSize;
  const int thread = static_cast<int>(threadIdx.x);
  const T* x[kGrads];
  bool alike = true;
#pragma unroll
  for (int g = 0; g < kGrads; ++g) {
    // a column that is not there: the first one again, for slots that nobody reads
    x[g] = static_cast<const T*>(in[g < kRows || g - kRows < columns ? g : kRows]) + begin;
    alike = alike && reinterpret_cast<uintptr_t>(x[g]) % 16 == reinterpret_cast<uintptr_t>(x[0]) % 16;
  }
  double sums[kRows][kWidth] = {};
  const auto add = [&](const double(&v)[kGrads]) {
#pragma unroll
    for (int r = 0; r < kRows; ++r)
#pragma unroll
      for (int c = kColumns > 0 ? 0 : r; c < kWidth; ++c)
        sums[r][c] = fma(v[r], v[kColumns > 0 ? kRows + c : c], sums[r][c]);
  };
  const auto add_packs = [&](const Pack<T>(&packs)[kGrads]) {
#pragma unroll
    for (int e = 0; e < kSize; ++e) {
      double v[kGrads];
#pragma unroll
      for (int g = 0; g < kGrads; ++g) v[g] = static_cast<double>(widen(packs[g].x[e]));
      add(v);
    }
  };
  const Split s = alike ? split(x[0], n) : Split{0, 0, n};
  int64_t i = thread;
#pragma unroll 1
  for (; i + (kUnroll - 1) * kThreads < s.packs; i += kUnroll * kThreads) {
    Pack<T> packs[kUnroll][kGrads];
#pragma unroll
    for (int u = 0; u < kUnroll; ++u)
#pragma unroll
      for (int g = 0; g < kGrads; ++g) packs[u][g] = load_pack(x[g] + s.head + (i + u * kThreads) * kSize);
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) add_packs(packs[u]);
  }
  if constexpr (kUnroll > 1) {
#pragma unroll 1
    for (; i < s.packs; i += kThreads) {
      Pack<T> packs[kGrads];
#pragma unroll
      for (int g = 0; g < kGrads; ++g) packs[g] = load_pack(x[g] + s.head + i * kSize);
      add_packs(packs);
    }
  }
#pragma unroll 2
  for (int64_t e = thread; e < s.head + s.tail; e += kThreads) {
    double v[kGrads];
#pragma unroll
    for (int g = 0; g < kGrads; ++g)
      v[g] = static_cast<double>(widen(x[g][e < s.head ? e : e + s.packs * kSize]));
    add(v);
  }
#pragma unroll
  for (int r = 0; r < kRows; ++r)
#pragma unroll
    for (int c = kColumns > 0 ? 0 : r; c < kWidth; ++c) {
      const double sum = reduce_lanes<32>(sums[r][c], Add());
      if (thread % 32 == 0) warps[kTile * r + c][thread / 32] = sum;
    }
}

// The block's products over [begin, begin + n) of one tile: the sum of slot s goes to partial[s * num_chunks].
template <bool kCross>
__device__ __forceinline__ void multiply_tile(Dtype dtype, const void* const* in, int rows, int columns, int64_t begin,
                                              int64_t n, double (*warps)[kWarps], double* partial,
                                              int64_t num_chunks) {
  static_assert(kTile == 4, "a case for each number of rows");
  with_type(dtype, [&](auto type) {
    using T = decltype(type);
    if constexpr (kCross) {
      multiply<4, 4, T>(in, columns, begin, n, warps);
    } else {
      switch (rows) {
        case 1: return multiply<1, 0, T>(in, 0, begin, n, warps);
        case 2: return multiply<2, 0, T>(in, 0, begin, n, warps);
        case 3: return multiply<3, 0, T>(in, 0, begin, n, warps);
        case 4: return multiply<4, 0, T>(in, 0, begin, n, warps);
      }
    }
  });
  __syncthreads();
  const int slot = static_cast<int>(threadIdx.x), row = slot / kTile, column = slot % kTile;
  if (row < rows && (kCross ? column < columns : row <= column && column < rows)) {
    double sum = 0;
    for (int w = 0; w < kWarps; ++w) sum += warps[slot][w];
    partial[slot * num_chunks] = sum;
  }
  __syncthreads();  // until the sums are read
}

}  // namespace modgrad
