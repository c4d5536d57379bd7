// Measure the gradients, decide by a rule, and apply the weights: in place with one loss, to `out` with several.
#include "../rule_arguments.h"
#include "ops.h"

namespace modgrad {
namespace {

std::tuple<Tensor, Tensor, Tensor> balance_(
    const HandleList& out_handles, const HandleList& grad_handles,
    const std::vector<int64_t>& tensor, const std::vector<int64_t>& loss, const std::vector<int64_t>& group,
    int64_t num_groups, int64_t num_losses, const std::string& name, const std::vector<double>& parameters,
    const std::optional<Tensor>& losses, const std::vector<Tensor>& states) {
  const Handles out("out", out_handles), grads("grads", grad_handles);
  const bool in_place = grads.size() == 0;
  Rule rule = checked_balance(out.size(), grads.size(), name, parameters, losses, states, num_groups, num_losses);
  const std::vector<Array> targets = dense_arrays(out), sources = dense_arrays(grads);
  ByParameter by;
  if (!in_place) by = checked_by_parameter(grads, tensor, loss, group, num_groups, num_losses);
  Tensor gram = in_place ? group_sq_norms(targets, group, num_groups)
                         : group_gram(sources, by, loss, group, num_groups, num_losses);
  rule.gram = gram.const_data_ptr<double>();
  const RuleTensors tensors(rule, states.size(), gram);
  if (!in_place) check_combination(out, grads, group, tensors.weights, by);
  for (int64_t m = 0; m < num_groups; ++m) decide(rule, m, tensors.out());
  if (in_place) {
    modulate_(targets, group, tensors.weights, std::nullopt, std::nullopt);
    gram = torch::stable::view(gram, {num_groups, 1, 1});
  } else {
    combine_(targets, sources, by, loss, group, tensors.weights);
  }
  return {gram, tensors.weights, tensors.next};
}

}  // namespace
}  // namespace modgrad

STABLE_TORCH_LIBRARY_IMPL(modgrad_native, CPU, m) { m.impl("balance_", TORCH_BOX(&modgrad::balance_)); }
