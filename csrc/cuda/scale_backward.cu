// Gradients of the features, scaled into new tensors: one pass over all of them.
#include "scale.cuh"
#include "scale_backward.cuh"

namespace modgrad {
namespace {

template <int kCapacity>
__global__ void __launch_bounds__(kThreads)
    scale_backward_kernel(const __grid_constant__ TensorList<kCapacity> list, const float* weights) {
  const int64_t end = list.first_chunk[list.size];
  for (int64_t c = list.first_chunk[0] + blockIdx.x; c < end; c += gridDim.x) {
    const TensorChunk chunk = find_chunk(list, c);
    with_type(list.dtype[chunk.tensor], [&](auto type) {
      using T = decltype(type);
      scale(static_cast<const T*>(list.in[chunk.tensor]) + chunk.begin,
            static_cast<T*>(list.out[chunk.tensor]) + chunk.begin, chunk.size,
            weights[list.group[chunk.tensor]]);
    });
  }
}

}  // namespace

cudaError_t launch_scale_backward(const std::vector<TensorRef>& grads, const float* weights,
                                  cudaStream_t stream) {
  return for_each_list(grads, [&](const auto& list) {
    if (list.num_chunks() == 0) return cudaSuccess;
    scale_backward_kernel<<<num_blocks(list.num_chunks()), kThreads, 0, stream>>>(list, weights);
    return cudaGetLastError();
  });
}

}  // namespace modgrad
