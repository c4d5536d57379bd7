// The ops that others are made of.
#pragma once

#include "../tensors.h"

namespace modgrad {

Tensor group_gram(const std::vector<Tensor>& grads, const std::vector<int64_t>& tensor,
                  const std::vector<int64_t>& loss, const std::vector<int64_t>& group, int64_t num_groups,
                  int64_t num_losses);
void combine_(const std::vector<Tensor>& out, const std::vector<Tensor>& grads, const std::vector<int64_t>& tensor,
              const std::vector<int64_t>& loss, const std::vector<int64_t>& group, const Tensor& weights);

}  // namespace modgrad
