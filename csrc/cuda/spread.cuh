// Standard deviations of tensors, for the noise of modulate_ and of the updates.
#pragma once

#include "tensor_list.cuh"

namespace modgrad {

// Of tensors in a group without noise, or in group -1, nothing is read or written.
cudaError_t launch_deviations(const std::vector<TensorRef>& grads,  // P
                              const float* noise,                   // [M]
                              Spread* partial,                      // [count_chunks(grads)], scratch
                              double* deviation,                    // [P]
                              cudaStream_t stream);

}  // namespace modgrad
