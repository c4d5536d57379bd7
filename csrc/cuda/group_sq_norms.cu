// Sums of squares per group: one partial sum a chunk, then one block a group adds them in a fixed order.
#include "group_list.cuh"
#include "group_sq_norms.cuh"
#include "partial_sums.cuh"

namespace modgrad {
namespace {

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
                        const float* grad_scale, double* sums) {
  const int64_t begin = list.first_chunk[blockIdx.x], end = list.first_chunk[blockIdx.x + 1];
  const double sum = add_partials(partial, begin, end, grad_scale);
  if (threadIdx.x == 0) sums[list.first_group + blockIdx.x] = sum;
}

}  // namespace

cudaError_t launch_squares(const std::vector<TensorRef>& sorted, double* partial, cudaStream_t stream) {
  return for_each_list(sorted, [&](const auto& list) {
    if (list.num_chunks() == 0) return cudaSuccess;
    group_sq_norms_kernel<<<num_blocks(list.num_chunks()), kThreads, 0, stream>>>(list, partial);
    return cudaGetLastError();
  });
}

cudaError_t launch_sums(const std::vector<TensorRef>& sorted, int64_t num_groups, const double* partial,
                        const float* grad_scale, double* sums, cudaStream_t stream) {
  return for_each_group_list(sorted, num_groups, [&](const auto& list) {
    add_partials_kernel<<<list.size, kThreads, 0, stream>>>(list, partial, grad_scale, sums);
    return cudaGetLastError();
  });
}

cudaError_t launch_group_sq_norms(std::vector<TensorRef> tensors, int64_t num_groups, double* partial,
                                  double* sums, cudaStream_t stream) {
  sort_by_group(tensors);
  const cudaError_t error = launch_squares(tensors, partial, stream);
  return error != cudaSuccess ? error : launch_sums(tensors, num_groups, partial, nullptr, sums, stream);
}

}  // namespace modgrad
