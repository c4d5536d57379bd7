// Sums of squares per group: one partial sum a chunk, then one block a group adds them in a fixed order.
#include "elements.cuh"
#include "group_list.cuh"
#include "group_sq_norms.cuh"

namespace modgrad {
namespace {

// Every square is computed and added in float64, so that none of a float32 overflows or vanishes. At 4 TB/s
// that is 1e12 squares a second where an H100 does 1.7e13; a card with 1/64 rate in float64 is bound by it.
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

template <int kCapacity>
__global__ void __launch_bounds__(kThreads)
    group_sq_norms_kernel(const __grid_constant__ TensorList<kCapacity> list, double* partial) {
  const int64_t end = list.first_chunk[list.size];
  for (int64_t c = list.first_chunk[0] + blockIdx.x; c < end; c += gridDim.x) {
    const TensorChunk chunk = find_chunk(list, c);
    double sum = 0;
    with_type(list.dtype[chunk.tensor], [&](auto type) {
      using T = decltype(type);
      sum = sum_of_squares(static_cast<const T*>(list.in[chunk.tensor]) + chunk.begin, chunk.size);
    });
    sum = reduce<kThreads>(sum, Add());
    if (threadIdx.x == 0) partial[c] = sum;
  }
}

template <int kCapacity>
__global__ void __launch_bounds__(kThreads)
    add_partials_kernel(const __grid_constant__ GroupList<kCapacity> list, const double* partial,
                        double* sums) {
  const int64_t end = list.first_chunk[blockIdx.x + 1];
  double sum = 0;
#pragma unroll 4
  for (int64_t c = list.first_chunk[blockIdx.x] + threadIdx.x; c < end; c += kThreads) sum += partial[c];
  sum = reduce<kThreads>(sum, Add());
  if (threadIdx.x == 0) sums[list.first_group + blockIdx.x] = sum;
}

}  // namespace

cudaError_t launch_group_sq_norms(std::vector<TensorRef> tensors, int64_t num_groups, double* partial,
                                  double* sums, cudaStream_t stream) {
  sort_by_group(tensors);  // so that the partial sums of one group stand side by side
  const cudaError_t error = for_each_list(tensors, [&](const auto& list) {
    if (list.num_chunks() == 0) return cudaSuccess;
    group_sq_norms_kernel<<<num_blocks(list.num_chunks()), kThreads, 0, stream>>>(list, partial);
    return cudaGetLastError();
  });
  if (error != cudaSuccess) return error;
  return for_each_group_list(tensors, num_groups, [&](const auto& list) {
    add_partials_kernel<<<list.size, kThreads, 0, stream>>>(list, partial, sums);
    return cudaGetLastError();
  });
}

}  // namespace modgrad
