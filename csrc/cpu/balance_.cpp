// Measure the gradients, decide by a rule, and apply the weights: in place with one loss, to `out` with several.
#include "../rule_arguments.h"
#include "ops.h"

namespace modgrad {
namespace {

std::vector<Array> arrays(const std::vector<Tensor>& grads) {
  const std::vector<int64_t> sizes = checked_sizes("grads", grads);
  std::vector<Array> out;
  out.reserve(grads.size());
  for (size_t i = 0; i < grads.size(); ++i)
    out.push_back({grads[i].mutable_data_ptr(), sizes[i], grads[i].scalar_type()});
  return out;
}

std::tuple<Tensor, Tensor, Tensor> balance_(
    const std::vector<Tensor>& out, const std::vector<Tensor>& grads, const std::vector<int64_t>& tensor,
    const std::vector<int64_t>& loss, const std::vector<int64_t>& group, int64_t num_groups, int64_t num_losses,
    const std::string& rule, const std::vector<double>& parameters, const std::optional<Tensor>& losses,
    const std::vector<Tensor>& states) {
  Rule r = checked_balance(out, grads, rule, parameters, losses, states, num_groups, num_losses);
  Tensor gram = grads.empty() ? group_sq_norms(arrays(out), group, num_groups)
                              : group_gram(grads, tensor, loss, group, num_groups, num_losses);
  r.gram = gram.const_data_ptr<double>();
  const RuleTensors tensors(r, states.size(), gram);
  for (int64_t m = 0; m < num_groups; ++m) decide(r, m, tensors.out());
  if (grads.empty()) {
    modulate_(out, group, tensors.weights, std::nullopt, std::nullopt);
    gram = torch::stable::view(gram, {num_groups, 1, 1});
  } else {
    combine_(out, grads, tensor, loss, group, tensors.weights);
  }
  return {gram, tensors.weights, tensors.next};
}

}  // namespace
}  // namespace modgrad

STABLE_TORCH_LIBRARY_IMPL(modgrad_native, CPU, m) { m.impl("balance_", TORCH_BOX(&modgrad::balance_)); }
