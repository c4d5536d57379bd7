// g <- w g in one pass, or w g + a std(g) z in two: the spread of each tensor, then the update.
#include "modulate_.cuh"
#include "scale.cuh"
#include "spread.cuh"

namespace modgrad {
namespace {

// w x + a z with every step rounded, as the reference does it: no fused multiply-add.
__device__ __forceinline__ float noisy(float x, float w, float a, float z) {
  return __fadd_rn(__fmul_rn(x, w), __fmul_rn(a, z));
}
__device__ __forceinline__ double noisy(double x, double w, double a, float z) {
  return __dadd_rn(__dmul_rn(x, w), __dmul_rn(a, z));
}

// The block's share of a chunk, in runs of whole quads that are at least 16 bytes.
template <typename T>
__device__ __forceinline__ void scale_and_add_noise(T* x, const TensorChunk& chunk, float weight,
                                                    double deviation, uint64_t seed, uint32_t tensor) {
  constexpr int kSize = Pack<T>::kSize, kRun = kSize < 4 ? 4 : kSize;
  const wide_t<T> w = weight, a = static_cast<wide_t<T>>(deviation);
  const bool aligned = reinterpret_cast<uintptr_t>(x) % 16 == 0;
  for (int64_t i = threadIdx.x * kRun; i < chunk.size; i += kThreads * kRun) {
    T* first = x + chunk.begin + i;
    const int64_t left = chunk.size - i;
    const bool whole = aligned && left >= kRun;
    Pack<T> run[kRun / kSize] = {};
#pragma unroll
    for (int p = 0; p < kRun / kSize; ++p) {
      if (whole) {
        run[p] = load_pack(first + p * kSize);
      } else {
#pragma unroll
        for (int j = 0; j < kSize; ++j)
          if (p * kSize + j < left) run[p].x[j] = first[p * kSize + j];
      }
    }
#pragma unroll
    for (int q = 0; q < kRun / 4; ++q) {
      const Normals4 n = normals(seed, tensor, static_cast<uint64_t>(chunk.begin + i) / 4 + q);
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        T& value = run[(4 * q + j) / kSize].x[(4 * q + j) % kSize];
        narrow(noisy(widen(value), w, a, n.z[j]), value);
      }
    }
#pragma unroll
    for (int p = 0; p < kRun / kSize; ++p) {
      if (whole) {
        store_pack(first + p * kSize, run[p]);
      } else {
#pragma unroll
        for (int j = 0; j < kSize; ++j)
          if (p * kSize + j < left) first[p * kSize + j] = run[p].x[j];
      }
    }
  }
}

// Four blocks: 64 registers. Left alone, ptxas takes 48 and spills.
template <bool kNoise, int kCapacity>
__global__ void __launch_bounds__(kThreads, 4)
    modulate_kernel(const __grid_constant__ TensorList<kCapacity> list, const float* weights,
                    const float* noise, const int64_t* seed, const double* deviation) {
  const int64_t end = list.first_chunk[list.size];
  for (int64_t c = list.first_chunk[0] + blockIdx.x; c < end; c += gridDim.x) {
    const TensorChunk chunk = find_chunk(list, c);
    const int32_t group = list.group[chunk.tensor];
    const float weight = weights[group];
    const bool noisy_group = kNoise && noise[group] != 0;
    if (!noisy_group && weight == 1) continue;  // the usual case of the modalities that lag
    with_type(list.dtype[chunk.tensor], [&](auto type) {
      using T = decltype(type);
      T* x = static_cast<T*>(list.out[chunk.tensor]);
      if constexpr (kNoise) {
        if (noisy_group) {
          const int64_t tensor = list.first_tensor + chunk.tensor;
          scale_and_add_noise(x, chunk, weight, noise[group] * deviation[tensor],
                              static_cast<uint64_t>(*seed), static_cast<uint32_t>(tensor));
          return;
        }
      }
      scale(x + chunk.begin, x + chunk.begin, chunk.size, weight);
    });
  }
}

}  // namespace

cudaError_t launch_modulate_(const std::vector<TensorRef>& grads, const float* weights, const float* noise,
                             const int64_t* seed, Spread* partial, double* deviation, cudaStream_t stream) {
  if (noise != nullptr) {
    const cudaError_t error = launch_deviations(grads, noise, partial, deviation, stream);
    if (error != cudaSuccess) return error;
  }
  return for_each_list(grads, [&](const auto& list) {
    if (list.num_chunks() == 0) return cudaSuccess;
    const unsigned blocks = num_blocks(list.num_chunks());
    if (noise == nullptr)
      modulate_kernel<false><<<blocks, kThreads, 0, stream>>>(list, weights, noise, seed, deviation);
    else
      modulate_kernel<true><<<blocks, kThreads, 0, stream>>>(list, weights, noise, seed, deviation);
    return cudaGetLastError();
  });
}

}  // namespace modgrad
