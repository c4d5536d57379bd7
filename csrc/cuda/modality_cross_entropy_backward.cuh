// Launcher of modality_cross_entropy_backward.
#pragma once

#include "../targets.h"
#include "tensor_list.cuh"

namespace modgrad {

cudaError_t launch_modality_cross_entropy_backward(const std::vector<TensorRef>& logits,  // group: the loss
                                                   const Targets& targets, const Upstream& upstream,
                                                   cudaStream_t stream);

}  // namespace modgrad
