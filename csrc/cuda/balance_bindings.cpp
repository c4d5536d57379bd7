// Rules, alone and between measuring and applying: tensors to launchers.
#include "../rule_arguments.h"
#include "../same_losses.h"
#include "arguments.h"
#include "balance_.cuh"
#include "balance_losses.cuh"
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

// Of several losses: the gram, and the combination in `out`.
Tensor balance_losses(const std::vector<TensorRef>& out, const LossRefs& losses, Rule rule, const RuleTensors& result,
                      const Tensor& like) {
  const int32_t device = like.get_device_index();
  const int64_t K = rule.num_losses;
  Tensor gram = torch::stable::new_empty(like, {rule.num_modalities, K, K}, ScalarType::Double);
  const Tensor partial = doubles(like, kSlots * count_chunks(out));
  const cudaError_t error = launch_balance_losses(out, losses, rule, partial.mutable_data_ptr<double>(),
                                                  gram.mutable_data_ptr<double>(), result.out(), device,
                                                  current_stream(device));
  if (error != cudaErrorCooperativeLaunchTooLarge) {
    STD_CUDA_CHECK(error);
    return gram;
  }
  gram = group_gram(losses, rule.num_modalities, K, like);
  rule.gram = gram.const_data_ptr<double>();
  STD_CUDA_CHECK(launch_rule_weights(rule, nullptr, result.out(), current_stream(device)));
  combine_(out, losses, result.weights, like);
  return gram;
}

std::tuple<Tensor, Tensor, Tensor> balance_(
    const HandleList& out_handles, const HandleList& grad_handles, const std::vector<int64_t>& tensor,
    const std::vector<int64_t>& loss, const std::vector<int64_t>& group, int64_t num_groups, int64_t num_losses,
    const std::string& rule, const std::vector<double>& parameters, const std::optional<Tensor>& losses,
    const std::vector<Tensor>& states) {
  const Handles out("out", out_handles), grads("grads", grad_handles);
  const Rule r = checked_balance(out.size(), grads.size(), rule, parameters, losses, states, num_groups, num_losses);
  const Tensor first = first_of(out);
  const int32_t device = first.get_device_index();
  check_devices(losses, states, device);
  check_group(group, out.size(), num_groups);
  const std::vector<TensorRef> refs = references_in_place(checked_arrays(out, first), group);
  const DeviceGuard guard(device);
  const RuleTensors tensors(r, states.size(), first);
  if (grads.size() > 0) {
    const std::vector<Array> arrays = checked_arrays(grads, first);
    const ByParameter by = checked_by_parameter(grads, tensor, loss, group, num_groups, num_losses);
    check_combination(out, grads, group, tensors.weights, by);
    const Tensor gram = balance_losses(refs, loss_references(arrays, by, tensor, loss, group), r, tensors, first);
    return {gram, tensors.weights, tensors.next};
  }
  const Tensor gram = torch::stable::new_empty(first, {num_groups, 1, 1}, ScalarType::Double);
  const Tensor partial = doubles(first, count_chunks(refs));
  STD_CUDA_CHECK(launch_balance_(refs, r, partial.mutable_data_ptr<double>(), gram.mutable_data_ptr<double>(),
                                 tensors.out(), device, current_stream(device)));
  return {gram, tensors.weights, tensors.next};
}

}  // namespace
}  // namespace modgrad

STABLE_TORCH_LIBRARY_IMPL(modgrad_native, CUDA, m) {
  m.impl("rule_weights", TORCH_BOX(&modgrad::rule_weights));
  m.impl("balance_", TORCH_BOX(&modgrad::balance_));
}
