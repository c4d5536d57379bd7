// Elements of any dtype in device code: conversion, 16-byte loads of memory that begins anywhere, reduction.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstring>

#include "tensor_list.cuh"

namespace modgrad {

constexpr int kThreads = 256;
constexpr int kInFlight = 4;  // independent 16-byte loads a thread; 64 KiB a multiprocessor at 4 blocks

// The type in which an element is computed: float64 for float64, else float32.
template <typename T>
struct Wide {
  using type = float;
};
template <>
struct Wide<double> {
  using type = double;
};
template <typename T>
using wide_t = typename Wide<T>::type;

__device__ __forceinline__ float widen(float x) { return x; }
__device__ __forceinline__ double widen(double x) { return x; }
__device__ __forceinline__ float widen(__half x) { return __half2float(x); }
__device__ __forceinline__ float widen(__nv_bfloat16 x) { return __bfloat162float(x); }

__device__ __forceinline__ void narrow(float x, float& out) { out = x; }
__device__ __forceinline__ void narrow(double x, double& out) { out = x; }
__device__ __forceinline__ void narrow(double x, float& out) { out = static_cast<float>(x); }
__device__ __forceinline__ void narrow(float x, __half& out) { out = __float2half_rn(x); }
__device__ __forceinline__ void narrow(float x, __nv_bfloat16& out) { out = __float2bfloat16_rn(x); }

// Calls f(T{}) with the element type of `dtype`.
template <typename F>
__device__ __forceinline__ void with_type(Dtype dtype, F f) {
  switch (dtype) {
    case Dtype::kFloat: return f(float{});
    case Dtype::kDouble: return f(double{});
    case Dtype::kHalf: return f(__half{});
    case Dtype::kBFloat16: return f(__nv_bfloat16{});
  }
}

// 16 bytes of elements.
template <typename T>
struct alignas(16) Pack {
  static constexpr int kSize = 16 / sizeof(T);
  T x[kSize];
};

template <typename T>
__device__ __forceinline__ Pack<T> load_pack(const T* aligned) {
  const uint4 raw = *reinterpret_cast<const uint4*>(aligned);
  Pack<T> pack;
  memcpy(&pack, &raw, sizeof(raw));
  return pack;
}

// In PTX, because the compiler splits an assignment of float32 into four stores.
template <typename T>
__device__ __forceinline__ void store_pack(T* aligned, const Pack<T>& pack) {
  uint4 raw;
  memcpy(&raw, &pack, sizeof(raw));
  asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};"
               :
               : "l"(aligned), "r"(raw.x), "r"(raw.y), "r"(raw.z), "r"(raw.w)
               : "memory");
}

// Elements before the first 16-byte boundary, whole packs, and elements after the last pack.
struct Split {
  int64_t head, packs, tail;
};

template <typename T>
MODGRAD_HD Split split(const T* x, int64_t n) {
  constexpr int64_t kSize = Pack<T>::kSize;
  const int64_t past = static_cast<int64_t>(reinterpret_cast<uintptr_t>(x) % 16 / sizeof(T));
  const int64_t to_boundary = (kSize - past) % kSize;
  const int64_t head = to_boundary < n ? to_boundary : n;
  return {head, (n - head) / kSize, (n - head) % kSize};
}

// Calls f(values, slot) on this thread's share of x[0, n), of kStride threads that do: values is an array of
// widened elements, slot the one of kInFlight independent sums to which they may go.
template <int kStride, typename T, typename F>
__device__ __forceinline__ void for_each_pack(const T* x, int64_t n, int thread, F f) {
  constexpr int kSize = Pack<T>::kSize;
  static_assert(kStride >= kSize, "one thread an element of head and tail");
  const auto single = [&](const T* element) {
    const wide_t<T> value[1] = {widen(*element)};
    f(value, 0);
  };
  const auto widened = [&](const Pack<T>& pack, int slot) {
    wide_t<T> values[kSize];
#pragma unroll
    for (int j = 0; j < kSize; ++j) values[j] = widen(pack.x[j]);
    f(values, slot);
  };
  const Split s = split(x, n);
  const T* body = x + s.head;
  if (thread < s.head) single(x + thread);
  int64_t i = thread;
#pragma unroll 1
  for (; i + (kInFlight - 1) * kStride < s.packs; i += kInFlight * kStride) {
    Pack<T> packs[kInFlight];
#pragma unroll
    for (int u = 0; u < kInFlight; ++u) packs[u] = load_pack(body + (i + u * kStride) * kSize);
#pragma unroll
    for (int u = 0; u < kInFlight; ++u) widened(packs[u], u);
  }
#pragma unroll 1
  for (; i < s.packs; i += kStride) widened(load_pack(body + i * kSize), 0);
  if (thread < s.tail) single(body + s.packs * kSize + thread);
}

// out[i] = f(i, in[i]) for this thread's share of [0, n), of kStride threads, rounded once; the two may be the
// same memory.
template <int kStride, typename T, typename F>
__device__ __forceinline__ void transform(const T* in, T* out, int64_t n, int thread, F f) {
  constexpr int kSize = Pack<T>::kSize;
  const auto single = [&](int64_t i) { narrow(f(i, widen(in[i])), out[i]); };
  if (reinterpret_cast<uintptr_t>(in) % 16 != reinterpret_cast<uintptr_t>(out) % 16) {
#pragma unroll 4
    for (int64_t i = thread; i < n; i += kStride) single(i);
    return;
  }
  const Split s = split(in, n);
  const int64_t tail = s.head + s.packs * kSize;
  const auto transformed = [&](int64_t pack, Pack<T> values) {
    const int64_t first = s.head + pack * kSize;
#pragma unroll
    for (int j = 0; j < kSize; ++j) narrow(f(first + j, widen(values.x[j])), values.x[j]);
    store_pack(out + first, values);
  };
  if (thread < s.head) single(thread);
  int64_t i = thread;
#pragma unroll 1
  for (; i + (kInFlight - 1) * kStride < s.packs; i += kInFlight * kStride) {
    Pack<T> packs[kInFlight];
#pragma unroll
    for (int u = 0; u < kInFlight; ++u) packs[u] = load_pack(in + s.head + (i + u * kStride) * kSize);
#pragma unroll
    for (int u = 0; u < kInFlight; ++u) transformed(i + u * kStride, packs[u]);
  }
#pragma unroll 1
  for (; i < s.packs; i += kStride) transformed(i, load_pack(in + s.head + i * kSize));
  if (thread < s.tail) single(tail + thread);
}

template <int kWidth, typename T, typename Op>
__device__ __forceinline__ T reduce_lanes(T value, Op op) {
#pragma unroll
  for (int offset = kWidth / 2; offset > 0; offset /= 2)
    value = op(value, __shfl_xor_sync(~0u, value, offset));
  return value;
}

// A commutative op over the values of a warp (kStride 32) or of the block (kThreads), always in the same
// order; all threads get the result, and all must call it.
template <int kStride, typename T, typename Op>
__device__ __forceinline__ T reduce(T value, Op op) {
  static_assert(kStride == 32 || kStride == kThreads, "a warp or the block");
  value = reduce_lanes<32>(value, op);
  if constexpr (kStride > 32) {
    constexpr int kWarps = kStride / 32;
    __shared__ T warps[kWarps];
    __syncthreads();  // until the threads that read the last result have it
    if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = value;
    __syncthreads();
    value = reduce_lanes<kWarps>(warps[threadIdx.x % kWarps], op);
  }
  return value;
}

struct Add {
  template <typename T>
  __device__ __forceinline__ T operator()(T a, T b) const {
    return a + b;
  }
};

struct Larger {
  template <typename T>
  __device__ __forceinline__ T operator()(T a, T b) const {
    return a > b ? a : b;
  }
};

}  // namespace modgrad
