// Launcher of modulated_sgd_.
#pragma once

#include "update_list.cuh"

namespace modgrad {

struct SgdOptions {
  double momentum, dampening, weight_decay;
  bool has_momentum;  // state 0 is the momentum buffer
  bool nesterov, is_first_step;
};

cudaError_t launch_modulated_sgd_(std::vector<UpdateRef> updates,  // P
                                  const DeviceOptions& options, const std::optional<WeightsRule>& rule,
                                  const SgdOptions& sgd, int32_t device, cudaStream_t stream);

}  // namespace modgrad
