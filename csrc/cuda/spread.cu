// Standard deviations of the gradients that get noise: sums a chunk, then one block a tensor.
#include "elements.cuh"
#include "spread.cuh"

namespace modgrad {
namespace {

template <typename T>
__device__ __forceinline__ Spread spread(const T* x, int64_t n, double shift) {
  Spread s[kInFlight];
  for_each_pack<kThreads>(x, n, threadIdx.x, [&](const auto& values, int slot) {
#pragma unroll
    for (const auto value : values) {
      const double d = static_cast<double>(value) - shift;
      s[slot].sum += d;
      s[slot].squares = fma(d, d, s[slot].squares);
    }
  });
  return {(s[0].sum + s[1].sum) + (s[2].sum + s[3].sum),
          (s[0].squares + s[1].squares) + (s[2].squares + s[3].squares)};
}
static_assert(kInFlight == 4, "spread adds four sums");

// The noise of tensor t's group; none outside the groups.
template <int kCapacity>
__device__ __forceinline__ float amount(const ChunkList<kCapacity>& list, int t, const float* noise) {
  return list.group[t] < 0 ? 0 : noise[list.group[t]];
}

// Tensors without noise are not read, and their partials not written.
template <int kCapacity>
__global__ void __launch_bounds__(kThreads)
    spread_kernel(const __grid_constant__ TensorList<kCapacity> list, const float* noise, Spread* partial) {
  const int64_t end = list.first_chunk[list.size];
  for (int64_t c = list.first_chunk[0] + blockIdx.x; c < end; c += gridDim.x) {
    const TensorChunk chunk = find_chunk(list, c);
    if (amount(list, chunk.tensor, noise) == 0) continue;
    Spread s;
    with_type(list.dtype[chunk.tensor], [&](auto type) {
      using T = decltype(type);
      const T* x = static_cast<const T*>(list.in[chunk.tensor]);
      s = spread(x + chunk.begin, chunk.size, static_cast<double>(widen(x[0])));
    });
    s.sum = reduce<kThreads>(s.sum, Add());
    s.squares = reduce<kThreads>(s.squares, Add());
    if (threadIdx.x == 0) partial[c] = s;
  }
}

// One block a tensor.
template <int kCapacity>
__global__ void __launch_bounds__(kThreads)
    deviation_kernel(const __grid_constant__ TensorList<kCapacity> list, const float* noise,
                     const Spread* partial, double* deviation) {
  const int t = static_cast<int>(blockIdx.x);
  if (amount(list, t, noise) == 0) return;
  Spread s;
  for (int64_t c = list.first_chunk[t] + threadIdx.x; c < list.first_chunk[t + 1]; c += kThreads) {
    s.sum += partial[c].sum;
    s.squares += partial[c].squares;
  }
  s.sum = reduce<kThreads>(s.sum, Add());
  s.squares = reduce<kThreads>(s.squares, Add());
  if (threadIdx.x == 0) deviation[list.first_tensor + t] = standard_deviation(s, list.numel[t]);
}

}  // namespace

cudaError_t launch_deviations(const std::vector<TensorRef>& grads, const float* noise, Spread* partial,
                              double* deviation, cudaStream_t stream) {
  return for_each_list(grads, [&](const auto& list) {
    if (list.num_chunks() == 0) return cudaSuccess;
    spread_kernel<<<num_blocks(list.num_chunks()), kThreads, 0, stream>>>(list, noise, partial);
    if (const cudaError_t error = cudaGetLastError(); error != cudaSuccess) return error;
    deviation_kernel<<<list.size, kThreads, 0, stream>>>(list, noise, partial, deviation);
    return cudaGetLastError();
  });
}

}  // namespace modgrad
