// What the ops do with lists that are checked: for ops that are made of others.
#pragma once

#include <optional>

#include "../handles.h"

namespace modgrad {

Tensor group_sq_norms(const std::vector<Array>& arrays, const std::vector<int64_t>& group, int64_t num_groups);
void modulate_(const std::vector<Array>& grads, const std::vector<int64_t>& group, const Tensor& weights,
               const std::optional<Tensor>& noise, const std::optional<Tensor>& seed);
Tensor group_gram(const std::vector<Array>& grads, const ByParameter& by, const std::vector<int64_t>& loss,
                  const std::vector<int64_t>& group, int64_t num_groups, int64_t num_losses);
void combine_(const std::vector<Array>& out, const std::vector<Array>& grads, const ByParameter& by,
              const std::vector<int64_t>& loss, const std::vector<int64_t>& group, const Tensor& weights);

}  // namespace modgrad
