// Launcher of modality_cross_entropy.
#pragma once

#include <optional>

#include "../rules.h"
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
                                          // of the last scores, without what it reads
                                          std::optional<Rule> rule,
                                          float* weights,  // [M] where there is a rule: 1 before the last
                                          int32_t device, cudaStream_t stream);

}  // namespace modgrad
