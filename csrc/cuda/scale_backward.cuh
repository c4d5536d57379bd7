// Launcher of scale_backward.
#pragma once

#include "tensor_list.cuh"

namespace modgrad {

cudaError_t launch_scale_backward(const std::vector<TensorRef>& grads,  // M, group: the modality
                                  const float* weights,                 // [M]
                                  cudaStream_t stream);

}  // namespace modgrad
