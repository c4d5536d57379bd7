// Checked arguments of modality_cross_entropy and its backward, for the CPU kernels and the CUDA bindings.
#pragma once

#include <optional>

#include "targets.h"
#include "tensors.h"

namespace modgrad {

// What losses, probabilities and class weights are in: float64 where any logits are, else float32. Of the
// gradients a part may be asked for: there it is the dtype of the losses' own gradients.
inline ScalarType real_type(const std::vector<Tensor>& logits) {
  for (const Tensor& x : logits)
    if (x.scalar_type() == ScalarType::Double) return ScalarType::Double;
  return ScalarType::Float;
}

inline Reals checked_reals(const char* name, const Tensor& tensor, ScalarType dtype, int64_t size) {
  STD_TORCH_CHECK(tensor.scalar_type() == dtype && tensor.numel() == size && tensor.is_contiguous(), "`", name,
                  "` has ", tensor.numel(), " elements, allowed: ", size,
                  ", contiguous, float64 where any logits are, else float32");
  return {tensor.const_data_ptr(), dtype == ScalarType::Double};
}

// `dtype` is that of the losses.
inline Targets checked_targets(const std::vector<Tensor>& logits, ScalarType dtype, const Tensor& targets,
                               const std::optional<Tensor>& class_weights, int64_t ignore_index, double smoothing) {
  checked_sizes("logits", logits);
  STD_TORCH_CHECK(dtype == ScalarType::Float || dtype == ScalarType::Double,
                  "`grad_losses` is neither float32 nor float64");
  STD_TORCH_CHECK(targets.dim() >= 1 && targets.size(0) > 0, "`targets` must not be empty");
  const bool soft = targets.dim() == 2;
  STD_TORCH_CHECK(smoothing >= 0 && smoothing <= 1, "`label_smoothing` is ", smoothing, ", allowed: [0, 1]");
  STD_TORCH_CHECK(!soft || ignore_index < 0, "`ignore_index` is ", ignore_index, ", allowed with classes only");
  Targets out = {nullptr, {nullptr, false}, {nullptr, false}, targets.size(0), ignore_index, smoothing};
  for (size_t m = 0; m < logits.size(); ++m) {
    const Tensor& x = logits[m];
    STD_TORCH_CHECK(x.dim() == 2 && x.size(0) == out.num_rows && x.size(1) > 0 && x.is_contiguous(), "`logits[", m,
                    "]` must be contiguous, [", out.num_rows, ", C]");
    STD_TORCH_CHECK(x.size(1) == logits[0].size(1) || (!soft && !class_weights.has_value()), "`logits[", m,
                    "]` has ", x.size(1), " classes, allowed: ", logits[0].size(1));
  }
  const int64_t num_classes = logits[0].size(1);
  if (class_weights.has_value())
    out.class_weights = checked_reals("class_weights", *class_weights, dtype, num_classes);
  if (soft) {
    out.probabilities = checked_reals("targets", targets, dtype, out.num_rows * num_classes);
  } else {
    check_vector("targets", targets, ScalarType::Long, out.num_rows);
    out.classes = targets.const_data_ptr<int64_t>();
  }
  return out;
}

inline Upstream checked_upstream(const std::vector<int64_t>& loss, size_t num_logits, const Targets& targets, const Tensor& lse, const Tensor& mass,
                                 const Tensor& grad_losses, const std::optional<Tensor>& weights) {
  const int64_t num_losses = grad_losses.numel();
  check_group(loss, num_logits, num_losses);
  check_vector("lse", lse, ScalarType::Double, num_losses * targets.num_rows);
  check_vector("mass", mass, ScalarType::Double, targets.num_rows + 1);
  if (weights.has_value()) check_vector("weights", *weights, ScalarType::Float, num_losses);
  return {lse.const_data_ptr<double>(), mass.const_data_ptr<double>(),
          checked_reals("grad_losses", grad_losses, grad_losses.scalar_type(), num_losses),
          weights.has_value() ? weights->const_data_ptr<float>() : nullptr};
}

}  // namespace modgrad
