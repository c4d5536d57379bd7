// The fused updates: tensors to launchers.
#include "../update_list.h"
#include "arguments.h"
#include "modulated_adam_.cuh"
#include "modulated_sgd_.cuh"

namespace modgrad {
namespace {

using Stream = std::optional<std::vector<int64_t>>;

std::vector<UpdateRef> references(const std::vector<Update>& updates, const Stream& stream) {
  std::vector<UpdateRef> refs;
  refs.reserve(updates.size());
  for (size_t i = 0; i < updates.size(); ++i) {
    const Update& u = updates[i];
    refs.push_back({u.param, u.grad, {u.state[0], u.state[1], u.state[2]}, u.step, u.size,
                    static_cast<int32_t>(u.group), static_cast<uint32_t>(stream.has_value() ? (*stream)[i] : i),
                    dtype_of(u.dtype), dtype_of(u.state_dtype)});
  }
  return refs;
}

// What a launcher takes besides the parameters, and the scratch memory that this points to.
class Options {
 public:
  Options(const UpdateOptions& given, const Tensor& weights, double lr, const std::vector<UpdateRef>& refs)
      : device_(weights.get_device_index()) {
    given.check(weights, refs.size());
    device.weights = weights.const_data_ptr<float>();
    device.num_groups = weights.numel();
    device.lr = lr;
    device.maximize = given.maximize;
    device.scale_update = given.scale_update;
    device.lr_tensor = data<const float>("lr_tensor", given.lr_tensor);
    device.grad_scale = data<const float>("grad_scale", given.grad_scale);
    device.found_inf = data<const float>("found_inf", given.found_inf);
    device.noise = data<const float>("noise", given.noise);
    device.seed = data<const int64_t>("seed", given.seed);
    device.sq_norms = data<double>("sq_norms", given.sq_norms);
    if (given.noise.has_value()) {
      static_assert(sizeof(Spread) == 2 * sizeof(double));
      device.spread = static_cast<Spread*>(scratch(weights, 2 * count_chunks(refs)));
      device.deviation = static_cast<double*>(scratch(weights, static_cast<int64_t>(refs.size())));
    }
    if (given.sq_norms.has_value()) {
      static_assert(sizeof(Squares) == 2 * sizeof(double));
      device.squares = static_cast<Squares*>(scratch(weights, 2 * count_chunks(refs)));
    }
    if (given.rule.has_value()) {
      const int64_t num_groups = weights.numel();
      auto* partial = static_cast<double*>(scratch(weights, count_chunks(refs)));
      auto* sums = static_cast<double*>(scratch(weights, num_groups));
      auto* rows = static_cast<double*>(scratch(weights, 2 * num_groups));
      rule = {given.weights_rule(num_groups), partial, sums, {weights.mutable_data_ptr<float>(), nullptr, rows}};
    }
  }

  void* scratch(const Tensor& like, int64_t size) {
    scratch_.push_back(doubles(like, size));
    return scratch_.back().mutable_data_ptr();
  }

  DeviceOptions device = {};
  std::optional<WeightsRule> rule;

 private:
  template <typename T>
  T* data(const char* name, const std::optional<Tensor>& tensor) const {
    if (!tensor.has_value()) return nullptr;
    check_device(name, *tensor, device_);
    return static_cast<T*>(tensor->data_ptr());
  }

  int32_t device_;
  std::vector<Tensor> scratch_;  // its memory goes back in stream order
};

template <typename List>
void modulated_sgd_(const List& params, const HandleList& grads, const List& momentum_buffers,
                    const std::vector<int64_t>& group, const Tensor& weights, double lr, double momentum,
                    double dampening, double weight_decay, bool nesterov, bool is_first_step, bool maximize,
                    bool scale_update, const std::optional<Tensor>& lr_tensor, const std::optional<Tensor>& grad_scale,
                    const std::optional<Tensor>& found_inf, const std::optional<Tensor>& noise,
                    const std::optional<Tensor>& seed, const Stream& stream, const std::optional<Tensor>& sq_norms,
                    const std::optional<std::string>& rule, const std::optional<std::vector<double>>& parameters) {
  const Handles p("params", params), g("grads", grads), b("momentum_buffers", momentum_buffers);
  const int32_t device = weights.get_device_index();
  check_device("weights", weights, device);
  const bool has_momentum = b.size() > 0;
  UpdateLists lists{p, g, {}, nullptr, group, weights.numel(), Device::of(weights.get())};
  if (has_momentum) lists.states.push_back(&b);
  const auto refs = references(checked_updates(lists, kInOneThread), stream);
  const DeviceGuard guard(device);
  Options options({maximize, scale_update, lr_tensor, grad_scale, found_inf, noise, seed, stream, sq_norms, rule,
                   parameters},
                  weights, lr, refs);
  const SgdOptions sgd = {momentum, dampening, weight_decay, has_momentum, nesterov, is_first_step};
  STD_CUDA_CHECK(
      launch_modulated_sgd_(refs, options.device, options.rule, sgd, device, current_stream(device)));
}

template <typename List>
void modulated_adam_(const List& params, const HandleList& grads, const List& exp_avgs, const List& exp_avg_sqs,
                     const List& max_exp_avg_sqs, const List& state_steps, const std::vector<int64_t>& group,
                     const Tensor& weights, double lr, double beta1, double beta2, double eps, double weight_decay,
                     bool decoupled, bool maximize, bool scale_update, const std::optional<Tensor>& lr_tensor,
                     const std::optional<Tensor>& grad_scale, const std::optional<Tensor>& found_inf,
                     const std::optional<Tensor>& noise, const std::optional<Tensor>& seed, const Stream& stream,
                     const std::optional<Tensor>& sq_norms, const std::optional<std::string>& rule,
                     const std::optional<std::vector<double>>& parameters) {
  const Handles p("params", params), g("grads", grads), m("exp_avgs", exp_avgs), v("exp_avg_sqs", exp_avg_sqs),
      largest("max_exp_avg_sqs", max_exp_avg_sqs), steps("state_steps", state_steps);
  const int32_t device = weights.get_device_index();
  check_device("weights", weights, device);
  const bool amsgrad = largest.size() > 0;
  UpdateLists lists{p, g, {&m, &v}, &steps, group, weights.numel(), Device::of(weights.get())};
  if (amsgrad) lists.states.push_back(&largest);
  const auto refs = references(checked_updates(lists, kInOneThread), stream);
  const DeviceGuard guard(device);
  Options options({maximize, scale_update, lr_tensor, grad_scale, found_inf, noise, seed, stream, sq_norms, rule,
                   parameters},
                  weights, lr, refs);
  constexpr int64_t kDoubles = sizeof(AdamTensor) / sizeof(double);
  auto* tensors =
      static_cast<AdamTensor*>(options.scratch(weights, kDoubles * static_cast<int64_t>(refs.size())));
  const AdamOptions adam = {beta1, beta2, eps, weight_decay, decoupled, amsgrad};
  STD_CUDA_CHECK(
      launch_modulated_adam_(refs, options.device, options.rule, adam, tensors, device, current_stream(device)));
}

}  // namespace
}  // namespace modgrad

STABLE_TORCH_LIBRARY_IMPL(modgrad_native, CUDA, m) {
  m.impl("modulated_sgd_", TORCH_BOX(&modgrad::modulated_sgd_<modgrad::HandleList>));
  m.impl("modulated_sgd_retained_", TORCH_BOX(&modgrad::modulated_sgd_<modgrad::Tensor>));
  m.impl("modulated_adam_", TORCH_BOX(&modgrad::modulated_adam_<modgrad::HandleList>));
  m.impl("modulated_adam_retained_", TORCH_BOX(&modgrad::modulated_adam_<modgrad::Tensor>));
}
