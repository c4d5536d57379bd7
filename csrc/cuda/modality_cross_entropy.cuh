// Launcher of modality_cross_entropy.
#pragma once

#include "../targets.h"
#include "tensor_list.cuh"

namespace modgrad {

cudaError_t launch_modality_cross_entropy(const std::vector<TensorRef>& logits,  // M contiguous [B, C_m]
                                          const Targets& targets,
                                          double* rows,    // [2, M, B], scratch
                                          double* lse,     // [M, B]
                                          double* mass,    // [B + 1]
                                          void* losses,    // [M], float64 where any logits are, else float32
                                          float* scores,   // [M]
                                          cudaStream_t stream);

}  // namespace modgrad
