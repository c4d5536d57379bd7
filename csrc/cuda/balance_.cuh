// Launcher of balance_ for one loss; with several it is group_gram, rule_weights and combine_.
#pragma once

#include "../rules.h"
#include "tensor_list.cuh"

namespace modgrad {

cudaError_t launch_balance_(std::vector<TensorRef> grads,  // P, in place
                            const Rule& rule,              // without what it reads
                            double* partial,               // [count_chunks(grads)], scratch
                            double* gram,                  // [rule.num_modalities]
                            const RuleOut& out, int32_t device, cudaStream_t stream);

}  // namespace modgrad
