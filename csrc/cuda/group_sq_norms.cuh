// Launchers of group_sq_norms, and of its two halves.
#pragma once

#include "tensor_list.cuh"

namespace modgrad {

cudaError_t launch_group_sq_norms(std::vector<TensorRef> tensors,  // P
                                  int64_t num_groups,
                                  double* partial,  // [count_chunks(tensors)], scratch
                                  double* sums,     // [num_groups]
                                  cudaStream_t stream);

// One partial sum a chunk. Sorted by group, those of one group stand side by side.
cudaError_t launch_squares(const std::vector<TensorRef>& sorted, double* partial, cudaStream_t stream);

// Adds them, and divides by the square of grad_scale [1] where that is not null.
cudaError_t launch_sums(const std::vector<TensorRef>& sorted, int64_t num_groups, const double* partial,
                        const float* grad_scale, double* sums, cudaStream_t stream);

}  // namespace modgrad
