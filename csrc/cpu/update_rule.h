// The weights of an update by a rule, from the squared norms of its gradients.
#pragma once

#include "update.h"

namespace modgrad {

// Nothing is written where the step is skipped, or without a rule.
inline void decide_weights(const std::vector<Update>& updates, const UpdateOptions& options, const Tensor& weights) {
  const auto value = [](const std::optional<Tensor>& one, float otherwise) {
    return one.has_value() ? one->const_data_ptr<float>()[0] : otherwise;
  };
  if (!options.rule.has_value() || value(options.found_inf, 0) != 0) return;
  std::vector<int64_t> sizes(updates.size());
  for (size_t i = 0; i < updates.size(); ++i) sizes[i] = updates[i].group >= 0 ? updates[i].size : 0;
  const Plan plan = make_plan(sizes);
  std::vector<double> partial(plan.chunks.size());
  for_each_chunk(plan, [&](int64_t c, const Chunk& chunk) {
    const Update& u = updates[chunk.tensor];
    with_types(u, [&](auto* t, auto*) {
      using T = std::remove_pointer_t<decltype(t)>;
      partial[c] = squares(static_cast<const T*>(u.grad) + chunk.begin, chunk.size);
    });
  });
  const int64_t num_groups = weights.numel();
  const double scale = value(options.grad_scale, 1);
  std::vector<double> sums(num_groups), scratch(2 * num_groups);
  for (size_t c = 0; c < plan.chunks.size(); ++c) sums[updates[plan.chunks[c].tensor].group] += partial[c];
  for (double& sum : sums) sum /= scale * scale;
  Rule rule = options.weights_rule(num_groups);
  rule.gram = sums.data();
  for (int64_t m = 0; m < num_groups; ++m)
    decide(rule, m, {weights.mutable_data_ptr<float>(), nullptr, scratch.data()});
}

}  // namespace modgrad
