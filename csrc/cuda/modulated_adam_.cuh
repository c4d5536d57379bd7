// Launcher of modulated_adam_.
#pragma once

#include "../updates.h"
#include "update_list.cuh"

namespace modgrad {

struct AdamOptions {
  double beta1, beta2, eps, weight_decay;
  bool decoupled;
  bool amsgrad;  // state 2 is the largest second moment; states 0 and 1 are the moments
};

// What the update of one tensor takes: two powers and some divisions in float64, once instead of in every thread.
struct AdamTensor {
  double gradient, noise;
  Adam<double> adam;
};

cudaError_t launch_modulated_adam_(std::vector<UpdateRef> updates,  // P
                                   const DeviceOptions& options, const std::optional<WeightsRule>& rule,
                                   const AdamOptions& adam,
                                   AdamTensor* tensors,  // [P], scratch
                                   int32_t device, cudaStream_t stream);

}  // namespace modgrad
