// Launcher of modality_scores.
#pragma once

#include "tensor_list.cuh"

namespace modgrad {

cudaError_t launch_modality_scores(const std::vector<TensorRef>& logits,  // M contiguous [B, C_m]
                                   const int64_t* targets,                // [B]
                                   int64_t num_rows,                      // B
                                   double* probabilities,                 // [M, B], scratch
                                   float* scores,                         // [M]
                                   int32_t device, cudaStream_t stream);

}  // namespace modgrad
