// Launcher of modulate_.
#pragma once

#include "tensor_list.cuh"

namespace modgrad {

cudaError_t launch_modulate_(const std::vector<TensorRef>& grads,  // P, in place
                             const float* weights,                 // [M]
                             const float* noise,                   // [M], or null for none and for all below
                             const int64_t* seed,                  // [1]
                             Spread* partial,                      // [count_chunks(grads)], scratch
                             double* deviation,                    // [P], scratch
                             cudaStream_t stream);

}  // namespace modgrad
