// The walk of an update over its elements, each array by 16 bytes a thread where it is aligned.
#pragma once

#include "../updates.h"
#include "elements.cuh"
#include "update_list.cuh"

namespace modgrad {

// kSize elements that stand side by side: one, 8 bytes or packs.
template <typename T, int kSize>
struct Run {
  T x[kSize];
};

template <int kSize, typename T>
__device__ __forceinline__ Run<T, kSize> load_run(const T* from) {
  constexpr int kPack = Pack<T>::kSize;
  Run<T, kSize> run;
  if constexpr (kSize == 1) {
    run.x[0] = *from;
  } else if constexpr (kSize < kPack) {
    static_assert(kSize * sizeof(T) == 8, "half a pack");
    const uint2 raw = *reinterpret_cast<const uint2*>(from);
    memcpy(run.x, &raw, sizeof(raw));
  } else {
#pragma unroll
    for (int i = 0; i < kSize; i += kPack) {
      const Pack<T> pack = load_pack(from + i);
      memcpy(run.x + i, &pack, sizeof(pack));
    }
  }
  return run;
}

template <int kSize, typename T>
__device__ __forceinline__ void store_run(T* to, const Run<T, kSize>& run) {
  constexpr int kPack = Pack<T>::kSize;
  if constexpr (kSize == 1) {
    *to = run.x[0];
  } else if constexpr (kSize < kPack) {
    uint2 raw;
    memcpy(&raw, run.x, sizeof(raw));
    asm volatile("st.global.v2.u32 [%0], {%1, %2};" : : "l"(to), "r"(raw.x), "r"(raw.y) : "memory");
  } else {
#pragma unroll
    for (int i = 0; i < kSize; i += kPack) {
      Pack<T> pack;
      memcpy(&pack, run.x + i, sizeof(pack));
      store_pack(to + i, pack);
    }
  }
}

__device__ __forceinline__ bool is_skipped(const DeviceOptions& options) {
  return options.found_inf != nullptr && *options.found_inf != 0;
}

// How the weight of a group acts on tensor `index` of the whole list.
__device__ __forceinline__ Weighted weighted(const DeviceOptions& options, int32_t group, int64_t index) {
  const float weight = group < 0 ? 1 : options.weights[group];
  const float noise = group < 0 || options.noise == nullptr ? 0 : options.noise[group];
  return weighted(options.lr_tensor != nullptr ? *options.lr_tensor : options.lr, weight, noise,
                  noise == 0 ? 0 : options.deviation[index],
                  options.grad_scale != nullptr ? *options.grad_scale : 1, options.scale_update, options.maximize);
}

template <typename T>
constexpr Dtype kDtype = Dtype::kFloat;
template <>
constexpr Dtype kDtype<double> = Dtype::kDouble;
template <>
constexpr Dtype kDtype<__half> = Dtype::kHalf;
template <>
constexpr Dtype kDtype<__nv_bfloat16> = Dtype::kBFloat16;

// Whether tensor t is a T with states of S.
template <typename T, typename S, typename List>
MODGRAD_HD bool has_types(const List& list, int t) {
  return list.dtype[t] == kDtype<T> && list.state_dtype[t] == kDtype<S>;
}

// Calls launch(T{}, S{}) for each pair of types in the list; most lists have one. A kernel for all of them
// would need the registers of all, and spill.
template <typename List, typename Launch>
cudaError_t for_each_types(const List& list, const Launch& launch) {
  cudaError_t error = cudaSuccess;
  const auto visit = [&](auto type, auto state) {
    if (error != cudaSuccess) return;
    for (int t = 0; t < list.size; ++t)
      if (has_types<decltype(type), decltype(state)>(list, t)) {
        error = launch(type, state);
        return;
      }
  };
  visit(float{}, float{});
  visit(__nv_bfloat16{}, __nv_bfloat16{});
  visit(__nv_bfloat16{}, float{});
  visit(__half{}, __half{});
  visit(__half{}, float{});
  visit(double{}, double{});
  visit(double{}, float{});
  return error;
}

// Calls f(chunk, c) on those of the block's chunks that are of T with states of S: c counts over the whole list.
template <typename T, typename S, int kCapacity, typename F>
__device__ __forceinline__ void for_each_chunk(const UpdateList<kCapacity>& list, const F& f) {
  const int chunks = static_cast<int>(list.num_chunks());
  for (int i = blockIdx.x; i < chunks; i += gridDim.x) {
    const int64_t c = list.first_chunk[0] + i;
    const TensorChunk chunk = find_chunk(list, c);
    if (has_types<T, S>(list, chunk.tensor)) f(chunk, c);
  }
}

// What the gradient of a tensor becomes before the optimizer sees it: weight * gradient + noise * normals.
template <typename W>
struct Modulation {
  W weight, noise;
  uint64_t seed;
  uint32_t stream;
};

template <typename W, typename List>
__device__ __forceinline__ Modulation<W> modulation(const List& list, int t, const DeviceOptions& options,
                                                    double gradient, double noise) {
  return {static_cast<W>(gradient), static_cast<W>(noise), noise != 0 ? static_cast<uint64_t>(*options.seed) : 0,
          list.stream[t]};
}

// x[j] += noise * z[i + j], of whole quads or of one element.
template <int kSize, typename W>
__device__ __forceinline__ void add_noise(const Modulation<W>& m, int64_t i, W (&x)[kSize]) {
  if constexpr (kSize == 1) {
    x[0] += m.noise * normal(m.seed, m.stream, static_cast<uint64_t>(i));
  } else {
    static_assert(kSize % 4 == 0, "whole quads");
#pragma unroll
    for (int q = 0; q < kSize; q += 4) {
      const Normals4 n = normals(m.seed, m.stream, static_cast<uint64_t>(i + q) / 4);
#pragma unroll
      for (int j = 0; j < 4; ++j) x[q + j] += m.noise * n.z[j];
    }
  }
}

// One chunk of a parameter with its gradient and kUsed states.
template <bool kNoise, typename T, typename S, int kUsed>
struct ChunkUpdate {
  using W = wide_t<T>;
  // Elements at a time: 16 bytes, and 8 of the smaller of two types; one of float64. 64 registers hold no more.
  static constexpr int kShorter = Pack<T>::kSize < Pack<S>::kSize ? Pack<T>::kSize : Pack<S>::kSize;
  static constexpr int kRun = sizeof(W) == sizeof(double) ? 1 : kShorter;
  static constexpr int kLength = kUsed > 0 ? kUsed : 1;

  Modulation<W> m;
  T* param;
  const T* grad;
  S* state[kLength];
  int64_t begin;
  int size;
  bool reads_states, measured;

  template <typename List>
  __device__ __forceinline__ ChunkUpdate(const List& list, const TensorChunk& chunk, const Modulation<W>& m,
                                         bool reads_states, bool measured)
      : m(m),
        param(static_cast<T*>(list.param[chunk.tensor]) + chunk.begin),
        grad(static_cast<const T*>(list.grad[chunk.tensor]) + chunk.begin),
        begin(chunk.begin),
        size(static_cast<int>(chunk.size)),
        reads_states(reads_states),
        measured(measured) {
#pragma unroll
    for (int k = 0; k < kUsed; ++k) state[k] = static_cast<S*>(list.state[k][chunk.tensor]) + chunk.begin;
  }

  __device__ __forceinline__ bool is_aligned() const {
    uintptr_t bits = reinterpret_cast<uintptr_t>(param) | reinterpret_cast<uintptr_t>(grad);
#pragma unroll
    for (int k = 0; k < kUsed; ++k) bits |= reinterpret_cast<uintptr_t>(state[k]);
    return bits % 16 == 0;
  }

  // Calls f(x, p, states) on kSize elements: x is the gradient that the optimizer sees; p and states change.
  template <int kSize, typename F>
  __device__ __forceinline__ void step(int i, Squares& squares, const F& f) const {
    const auto g = load_run<kSize>(grad + i);
    W x[kSize];
    if constexpr (kNoise) {
#pragma unroll
      for (int e = 0; e < kSize; ++e) x[e] = m.weight * widen(g.x[e]);
      if (m.noise != 0) add_noise(m, begin + i, x);
    }
    auto p = load_run<kSize>(param + i);
    Run<S, kSize> s[kLength] = {};
#pragma unroll
    for (int k = 0; k < kUsed; ++k)
      if (reads_states) s[k] = load_run<kSize>(state[k] + i);
    if (measured) {
#pragma unroll
      for (int e = 0; e < kSize; ++e) {
        const double a = widen(g.x[e]), b = widen(p.x[e]);
        squares.grad = fma(a, a, squares.grad);
        squares.param = fma(b, b, squares.param);
      }
    }
#pragma unroll
    for (int e = 0; e < kSize; ++e) {
      if constexpr (!kNoise) x[e] = m.weight * widen(g.x[e]);
      W value = widen(p.x[e]), states[kLength];
#pragma unroll
      for (int k = 0; k < kUsed; ++k) states[k] = widen(s[k].x[e]);
      f(x[e], value, states);
      narrow(value, p.x[e]);
#pragma unroll
      for (int k = 0; k < kUsed; ++k) narrow(states[k], s[k].x[e]);
    }
    store_run(param + i, p);
#pragma unroll
    for (int k = 0; k < kUsed; ++k) store_run(state[k] + i, s[k]);
  }

  // The thread's share; returns its sums of squares where they are wanted.
  template <typename F>
  __device__ __forceinline__ Squares operator()(const F& f) const {
    Squares squares;
    const int thread = static_cast<int>(threadIdx.x), whole = kRun > 1 && is_aligned() ? size / kRun * kRun : 0;
    if constexpr (kRun > 1) {
#pragma unroll 1
      for (int i = thread * kRun; i < whole; i += kThreads * kRun) step<kRun>(i, squares, f);
    }
#pragma unroll 1
    for (int i = whole + thread; i < size; i += kThreads) step<1>(i, squares, f);
    return squares;
  }
};

// The chunk's squares, from those of the block's threads.
__device__ __forceinline__ void store_squares(const DeviceOptions& options, int64_t chunk, Squares squares) {
  squares.grad = reduce<kThreads>(squares.grad, Add());
  squares.param = reduce<kThreads>(squares.param, Add());
  if (threadIdx.x == 0) options.squares[chunk] = squares;
}

}  // namespace modgrad
