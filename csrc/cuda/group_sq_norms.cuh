// Launcher of group_sq_norms.
#pragma once

#include "tensor_list.cuh"

namespace modgrad {

cudaError_t launch_group_sq_norms(std::vector<TensorRef> tensors,  // P
                                  int64_t num_groups,
                                  double* partial,  // [count_chunks(tensors)], scratch
                                  double* sums,     // [num_groups]
                                  cudaStream_t stream);

}  // namespace modgrad
