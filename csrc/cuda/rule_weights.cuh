// Launchers of rule_weights, and of a rule on sums that are yet to be added.
#pragma once

#include "../rules.h"
#include "tensor_list.cuh"

namespace modgrad {

// found_inf: [1], not 0: nothing is written; or null.
cudaError_t launch_rule_weights(const Rule& rule, const float* found_inf, const RuleOut& out, cudaStream_t stream);

// The sums of squares a group, and the weights of a rule for one loss that reads them.
cudaError_t launch_sums_and_rule(const std::vector<TensorRef>& sorted,  // as launch_squares takes them
                                 Rule rule,
                                 const double* partial,    // [count_chunks(sorted)]
                                 const float* grad_scale,  // [1], or null
                                 const float* found_inf,   // [1], not 0: no weights are written; or null
                                 double* sums,             // [rule.num_modalities]
                                 const RuleOut& out, cudaStream_t stream);

}  // namespace modgrad
