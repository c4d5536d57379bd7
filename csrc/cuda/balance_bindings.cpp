// Rules, alone and between measuring and applying: tensors to launchers.
#include "../rule_arguments.h"
#include "arguments.h"
#include "balance_.cuh"
#include "ops.h"
#include "rule_weights.cuh"

namespace modgrad {
namespace {

// What the rule reads besides its statistic.
void check_devices(const std::optional<Tensor>& losses, const std::vector<Tensor>& states, int32_t device) {
  if (losses.has_value()) check_device("losses", *losses, device);
  for (const Tensor& state : states) check_device("states", state, device);
}

std::tuple<Tensor, Tensor> rule_weights(const Tensor& statistic, const std::string& rule,
                                        const std::vector<double>& parameters, const std::optional<Tensor>& losses,
                                        const std::vector<Tensor>& states) {
  const Rule r = rule_of(statistic, rule, parameters, losses, states);
  const int32_t device = statistic.get_device_index();
  check_devices(losses, states, device);
  const DeviceGuard guard(device);
  const RuleTensors tensors(r, states.size(), statistic);
  STD_CUDA_CHECK(launch_rule_weights(r, nullptr, tensors.out(), current_stream(device)));
  return {tensors.weights, tensors.next};
}

std::tuple<Tensor, Tensor, Tensor> balance_(
    const std::vector<Tensor>& out, const std::vector<Tensor>& grads, const std::vector<int64_t>& tensor,
    const std::vector<int64_t>& loss, const std::vector<int64_t>& group, int64_t num_groups, int64_t num_losses,
    const std::string& rule, const std::vector<double>& parameters, const std::optional<Tensor>& losses,
    const std::vector<Tensor>& states) {
  Rule r = checked_balance(out.size(), grads.size(), rule, parameters, losses, states, num_groups, num_losses);
  const int32_t device = out[0].get_device_index();
  check_devices(losses, states, device);
  const DeviceGuard guard(device);
  const cudaStream_t stream = current_stream(device);
  const RuleTensors tensors(r, states.size(), out[0]);
  if (!grads.empty()) {
    const Tensor gram = group_gram(grads, tensor, loss, group, num_groups, num_losses);
    r.gram = gram.const_data_ptr<double>();
    STD_CUDA_CHECK(launch_rule_weights(r, nullptr, tensors.out(), stream));
    combine_(out, grads, tensor, loss, group, tensors.weights);
    return {gram, tensors.weights, tensors.next};
  }
  check_group(group, out.size(), num_groups);
  std::vector<TensorRef> refs = references("out", out, group);
  for (size_t t = 0; t < out.size(); ++t) refs[t].out = out[t].mutable_data_ptr();
  const Tensor gram = torch::stable::new_empty(out[0], {num_groups, 1, 1}, ScalarType::Double);
  const Tensor partial = doubles(out[0], count_chunks(refs));
  STD_CUDA_CHECK(launch_balance_(refs, r, partial.mutable_data_ptr<double>(), gram.mutable_data_ptr<double>(),
                                 tensors.out(), device, stream));
  return {gram, tensors.weights, tensors.next};
}

}  // namespace
}  // namespace modgrad

STABLE_TORCH_LIBRARY_IMPL(modgrad_native, CUDA, m) {
  m.impl("rule_weights", TORCH_BOX(&modgrad::rule_weights));
  m.impl("balance_", TORCH_BOX(&modgrad::balance_));
}
