// Launcher of combine_.
#pragma once

#include "tensor_list.cuh"

namespace modgrad {

// Gradients of one parameter that a launch takes. Where there are more, the sum waits for the next launch in
// wide elements, so that it is rounded once.
constexpr int kMostGrads = 580;

// `in` of an output with more than kMostGrads gradients is scratch of numel wide elements.
cudaError_t launch_combine_(const std::vector<TensorRef>& out,  // P
                            const LossRefs& refs,
                            const float* weights,  // [M, num_losses]
                            int64_t num_losses, cudaStream_t stream);

}  // namespace modgrad
