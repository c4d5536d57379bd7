// The tensor lists of an optimizer update, read and checked once, into one record a parameter.
#pragma once

#include <optional>
#include <utility>

#include "handles.h"
#include "rule_arguments.h"
#include "side_by_side.h"

namespace modgrad {

constexpr int kMaxStates = 3;

struct Update {
  void* param;
  const void* grad;
  void* state[kMaxStates];
  float* step;
  int64_t size, group;  // group -1: shared
  ScalarType dtype, state_dtype;
};

// The lists of an update, which may be checked a parameter at a time.
struct UpdateLists {
  const Handles &params, &grads;
  std::vector<const Handles*> states;
  const Handles* steps;
  const std::vector<int64_t>& group;
  int64_t num_groups;
  Device device;

  void check_lengths() const {
    STD_TORCH_CHECK(params.size() > 0, "`params` is empty, allowed: at least one tensor");
    const auto check = [&](const char* name, size_t count) {
      STD_TORCH_CHECK(count == params.size(), "`", name, "` has ", count, " entries, allowed: ", params.size());
    };
    check("grads", grads.size());
    check("group", group.size());
    for (const Handles* list : states) check(list->name(), list->size());
    if (steps != nullptr) check(steps->name(), steps->size());
  }

  // The gradient is like its parameter, the states like it or in float32, the step one float32 element.
  Update checked(size_t i) const {
    Update update = {};
    for (const Handles* list : {&params, &grads}) check_device(*list, i);
    for (const Handles* list : states) check_device(*list, i);
    if (steps != nullptr) check_device(*steps, i);
    const View param(params[i]), grad(grads[i]);
    update.dtype = update.state_dtype = float_type("params", i, param.dtype);
    STD_TORCH_CHECK(is_dense(params[i], param), "`params[", i, "]` has gaps or overlaps in memory, allowed: dense");
    STD_TORCH_CHECK(param.dtype == grad.dtype && param.same_layout(grad), "`grads[", i,
                    "]` differs from its parameter, allowed: one dtype, shape and memory order");
    STD_TORCH_CHECK(group[i] >= -1 && group[i] < num_groups, "`group[", i, "]` is ", group[i], ", outside [-1, ",
                    num_groups, ")");
    update.group = group[i];
    update.size = numel_of(params[i]);
    update.param = data_of(params[i]);
    update.grad = data_of(grads[i]);
    int s = 0;
    for (const Handles* list : states) {
      const View state((*list)[i]);
      const ScalarType dtype = float_type(list->name(), i, state.dtype);
      const bool allowed = dtype == update.dtype || dtype == ScalarType::Float;
      STD_TORCH_CHECK(allowed && (s == 0 || dtype == update.state_dtype) && param.same_layout(state),
                      "`", list->name(), "[", i,
                      "]` differs from its parameter, allowed: its shape and memory order, its dtype or float32");
      update.state_dtype = dtype;
      update.state[s++] = data_of((*list)[i]);
    }
    if (steps != nullptr) {
      STD_TORCH_CHECK(numel_of((*steps)[i]) == 1 && View((*steps)[i]).dtype == aoti_torch_dtype_float32(), "`",
                      steps->name(), "[", i, "]` is not one float32 element");
      update.step = static_cast<float*>(data_of((*steps)[i]));
    }
    return update;
  }

 private:
  // The dispatcher looked at the devices of lists that it handed over, not of those that were retained.
  void check_device(const Handles& list, size_t i) const {
    STD_TORCH_CHECK(Device::of(list[i]) == device, "`", list.name(), "[", i, "]` is not on the device of `weights`");
  }
};

// All of them; `per_thread` or more go to a thread.
inline std::vector<Update> checked_updates(const UpdateLists& lists, int64_t per_thread) {
  lists.check_lengths();
  std::vector<Update> updates(lists.params.size());
  const auto size = static_cast<int64_t>(updates.size());
  side_by_side(size, per_thread, [&](int64_t i) { updates[i] = lists.checked(i); });
  return updates;
}

// The arguments in which both updates end.
struct UpdateOptions {
  bool maximize, scale_update;
  const std::optional<Tensor>&lr_tensor, &grad_scale, &found_inf, &noise, &seed;
  const std::optional<std::vector<int64_t>>& stream;
  const std::optional<Tensor>& sq_norms;
  const std::optional<std::string>& rule;
  const std::optional<std::vector<double>>& parameters;

  void check(const Tensor& weights, size_t num_params) const {
    const int64_t num_groups = weights.numel();
    const auto check_one = [](const char* name, const std::optional<Tensor>& tensor, ScalarType dtype, int64_t size) {
      if (tensor.has_value()) check_vector(name, *tensor, dtype, size);
    };
    check_vector("weights", weights, ScalarType::Float, num_groups);
    check_one("lr_tensor", lr_tensor, ScalarType::Float, 1);
    check_one("grad_scale", grad_scale, ScalarType::Float, 1);
    check_one("found_inf", found_inf, ScalarType::Float, 1);
    check_one("noise", noise, ScalarType::Float, num_groups);
    check_one("seed", seed, ScalarType::Long, 1);
    check_one("sq_norms", sq_norms, ScalarType::Double, 2 * num_groups);
    if (rule.has_value()) weights_rule(num_groups);
    STD_TORCH_CHECK(noise.has_value() == seed.has_value(), "`noise` and `seed` are given together or not at all");
    STD_TORCH_CHECK(!stream.has_value() || stream->size() == num_params, "`stream` has another length than `params`");
  }

  // The rule, if there is one, without what it reads.
  Rule weights_rule(int64_t num_groups) const {
    return checked_rule(*rule, parameters.value_or(std::vector<double>()), false, num_groups, 1);
  }
};

}  // namespace modgrad
