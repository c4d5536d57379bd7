// Launcher of balance_ for several losses, in one launch.
#pragma once

#include "../rules.h"
#include "tensor_list.cuh"

namespace modgrad {

// cudaErrorCooperativeLaunchTooLarge where one launch cannot do it, or is not worth it; nothing is done then, and
// group_gram, rule_weights and combine_ do the same.
cudaError_t launch_balance_losses(const std::vector<TensorRef>& out,  // P
                                  const LossRefs& losses,
                                  const Rule& rule,  // without what it reads
                                  double* partial,   // [kSlots, count_chunks(out)], scratch
                                  double* gram,      // [rule.num_modalities, rule.num_losses, rule.num_losses]
                                  const RuleOut& result, int32_t device, cudaStream_t stream);

}  // namespace modgrad
