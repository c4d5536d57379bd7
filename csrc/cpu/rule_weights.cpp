// Weights by a rule, from scores or a gram that are there already.
#include "../rule_arguments.h"

namespace modgrad {
namespace {

std::tuple<Tensor, Tensor> rule_weights(const Tensor& statistic, const std::string& rule,
                                                     const std::vector<double>& parameters,
                                                     const std::optional<Tensor>& losses,
                                                     const std::vector<Tensor>& states) {
  const Rule r = rule_of(statistic, rule, parameters, losses, states);
  const RuleTensors tensors(r, states.size(), statistic);
  for (int64_t m = 0; m < r.num_modalities; ++m) decide(r, m, tensors.out());
  return {tensors.weights, tensors.next};
}

}  // namespace
}  // namespace modgrad

STABLE_TORCH_LIBRARY_IMPL(modgrad_native, CPU, m) { m.impl("rule_weights", TORCH_BOX(&modgrad::rule_weights)); }
