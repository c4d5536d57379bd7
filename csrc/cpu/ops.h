// The ops that others are made of.
#pragma once

#include <optional>

#include "../handles.h"

namespace modgrad {

Tensor group_sq_norms(const std::vector<Array>& arrays, const std::vector<int64_t>& group, int64_t num_groups);
void modulate_(const std::vector<Tensor>& grads, const std::vector<int64_t>& group, const Tensor& weights,
               const std::optional<Tensor>& noise, const std::optional<Tensor>& seed);
Tensor group_gram(const std::vector<Tensor>& grads, const std::vector<int64_t>& tensor,
                  const std::vector<int64_t>& loss, const std::vector<int64_t>& group, int64_t num_groups,
                  int64_t num_losses);
void combine_(const std::vector<Tensor>& out, const std::vector<Tensor>& grads, const std::vector<int64_t>& tensor,
              const std::vector<int64_t>& loss, const std::vector<int64_t>& group, const Tensor& weights);

}  // namespace modgrad
