// The ops that others are made of.
#pragma once

#include "../handles.h"

namespace modgrad {

Tensor group_gram(const Handles& grads, const std::vector<int64_t>& tensor, const std::vector<int64_t>& loss,
                  const std::vector<int64_t>& group, int64_t num_groups, int64_t num_losses);
void combine_(const Handles& out, const Handles& grads, const std::vector<int64_t>& tensor,
              const std::vector<int64_t>& loss, const std::vector<int64_t>& group, const Tensor& weights);

}  // namespace modgrad
