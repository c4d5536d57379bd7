// The Python module modgrad._C_cuda: tensors to launchers. Importing it registers the CUDA kernels.
#include <Python.h>

#include <optional>

#include "../cross_entropy.h"
#include "../rule_arguments.h"
#include "arguments.h"
#include "combine_.cuh"
#include "group_gram.cuh"
#include "group_sq_norms.cuh"
#include "modality_cross_entropy.cuh"
#include "modality_cross_entropy_backward.cuh"
#include "modality_scores.cuh"
#include "modulate_.cuh"
#include "ops.h"
#include "scale_backward.cuh"

namespace modgrad {
namespace {

Tensor group_sq_norms(const HandleList& handles, const std::vector<int64_t>& group, int64_t num_groups) {
  const Handles tensors("tensors", handles);
  check_group(group, tensors.size(), num_groups);
  const Tensor first = first_of(tensors);
  const std::vector<TensorRef> refs = references(checked_arrays(tensors, first), group);
  const int32_t device = first.get_device_index();
  const DeviceGuard guard(device);
  const Tensor sums = doubles(first, num_groups), partial = doubles(first, count_chunks(refs));
  STD_CUDA_CHECK(launch_group_sq_norms(refs, num_groups, partial.mutable_data_ptr<double>(),
                                       sums.mutable_data_ptr<double>(), current_stream(device)));
  return sums;
}

void modulate_(const HandleList& handles, const std::vector<int64_t>& group, const Tensor& weights,
               const std::optional<Tensor>& noise, const std::optional<Tensor>& seed) {
  const Handles grads("grads", handles);
  const int64_t num_groups = weights.numel();
  check_group(group, grads.size(), num_groups);
  const Tensor first = first_of(grads);
  const std::vector<TensorRef> refs = references_in_place(checked_arrays(grads, first), group);
  const int32_t device = first.get_device_index();
  check_vector("weights", weights, ScalarType::Float, num_groups);
  check_device("weights", weights, device);
  const float* w = weights.const_data_ptr<float>();
  STD_TORCH_CHECK(noise.has_value() == seed.has_value(),
                  "`noise` and `seed` are given together or not at all");
  const DeviceGuard guard(device);
  const cudaStream_t stream = current_stream(device);
  if (!noise.has_value()) {
    STD_CUDA_CHECK(launch_modulate_(refs, w, nullptr, nullptr, nullptr, nullptr, stream));
    return;
  }
  check_vector("noise", *noise, ScalarType::Float, num_groups);
  check_device("noise", *noise, device);
  check_vector("seed", *seed, ScalarType::Long, 1);
  check_device("seed", *seed, device);
  static_assert(sizeof(Spread) == 2 * sizeof(double), "a Spread is two elements of the scratch tensor");
  const Tensor partial = doubles(first, 2 * count_chunks(refs));
  const Tensor deviation = doubles(first, static_cast<int64_t>(grads.size()));
  STD_CUDA_CHECK(launch_modulate_(refs, w, noise->const_data_ptr<float>(), seed->const_data_ptr<int64_t>(),
                                  static_cast<Spread*>(partial.mutable_data_ptr()),
                                  deviation.mutable_data_ptr<double>(), stream));
}

Tensor modality_scores(const std::vector<Tensor>& logits, const Tensor& targets) {
  const std::vector<TensorRef> refs = references("logits", logits, one_group_each(logits.size()));
  const int64_t num_rows = targets.numel(), num_modalities = static_cast<int64_t>(logits.size());
  const int32_t device = logits[0].get_device_index();
  STD_TORCH_CHECK(num_rows > 0, "`targets` must not be empty");
  check_vector("targets", targets, ScalarType::Long, num_rows);
  check_device("targets", targets, device);
  for (size_t m = 0; m < logits.size(); ++m)
    STD_TORCH_CHECK(logits[m].dim() == 2 && logits[m].size(0) == num_rows && logits[m].is_contiguous(),
                    "`logits[", m, "]` must be contiguous, [", num_rows, ", C]");
  const DeviceGuard guard(device);
  const Tensor scores = torch::stable::new_empty(targets, {num_modalities}, ScalarType::Float);
  const Tensor probabilities = doubles(targets, num_modalities * num_rows);
  STD_CUDA_CHECK(launch_modality_scores(refs, targets.const_data_ptr<int64_t>(), num_rows,
                                        probabilities.mutable_data_ptr<double>(),
                                        scores.mutable_data_ptr<float>(), device, current_stream(device)));
  return scores;
}

void check_devices(const Tensor& targets, const std::optional<Tensor>& class_weights, int32_t device) {
  check_device("targets", targets, device);
  if (class_weights.has_value()) check_device("class_weights", *class_weights, device);
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> modality_cross_entropy(
    const std::vector<Tensor>& logits, const Tensor& targets, const std::optional<Tensor>& class_weights,
    int64_t ignore_index, double smoothing, const std::optional<std::string>& rule,
    const std::optional<std::vector<double>>& parameters, int64_t num_joint) {
  const ScalarType dtype = real_type(logits);
  const Targets t = checked_targets(logits, dtype, targets, class_weights, ignore_index, smoothing);
  const std::vector<TensorRef> refs = references("logits", logits, one_group_each(logits.size()));
  const int64_t num_modalities = static_cast<int64_t>(logits.size());
  const auto scores_rule = rule_of_scores(rule, parameters, num_modalities, num_joint);
  const int32_t device = logits[0].get_device_index();
  check_devices(targets, class_weights, device);
  const DeviceGuard guard(device);
  const Tensor losses = torch::stable::new_empty(logits[0], {num_modalities}, dtype);
  const Tensor scores = torch::stable::new_empty(logits[0], {num_modalities}, ScalarType::Float);
  const Tensor lse = torch::stable::new_empty(logits[0], {num_modalities, t.num_rows}, ScalarType::Double);
  const Tensor mass = doubles(logits[0], t.num_rows + 1);
  const Tensor rows = doubles(logits[0], 2 * num_modalities * t.num_rows);
  const Tensor weights =
      torch::stable::new_empty(logits[0], {rule.has_value() ? num_modalities : 0}, ScalarType::Float);
  STD_CUDA_CHECK(launch_modality_cross_entropy(
      refs, t, rows.mutable_data_ptr<double>(), lse.mutable_data_ptr<double>(), mass.mutable_data_ptr<double>(),
      losses.mutable_data_ptr(), scores.mutable_data_ptr<float>(), scores_rule,
      weights.mutable_data_ptr<float>(), device, current_stream(device)));
  return {losses, scores, lse, mass, weights};
}

std::vector<Tensor> modality_cross_entropy_backward(const std::vector<Tensor>& logits,
                                                    const std::vector<int64_t>& loss, const Tensor& targets,
                                                    const std::optional<Tensor>& class_weights,
                                                    int64_t ignore_index, double smoothing, const Tensor& lse,
                                                    const Tensor& mass, const Tensor& grad_losses,
                                                    const std::optional<Tensor>& weights) {
  const Targets t =
      checked_targets(logits, grad_losses.scalar_type(), targets, class_weights, ignore_index, smoothing);
  const Upstream upstream = checked_upstream(loss, logits.size(), t, lse, mass, grad_losses, weights);
  std::vector<TensorRef> refs = references("logits", logits, loss);
  const int32_t device = logits[0].get_device_index();
  check_devices(targets, class_weights, device);
  check_device("lse", lse, device);
  check_device("mass", mass, device);
  check_device("grad_losses", grad_losses, device);
  if (weights.has_value()) check_device("weights", *weights, device);
  const DeviceGuard guard(device);
  std::vector<Tensor> grads;
  grads.reserve(logits.size());
  for (size_t i = 0; i < logits.size(); ++i) {
    grads.push_back(torch::stable::empty_like(logits[i]));
    refs[i].out = grads[i].mutable_data_ptr();
  }
  STD_CUDA_CHECK(launch_modality_cross_entropy_backward(refs, t, upstream, current_stream(device)));
  return grads;
}

std::vector<Tensor> scale_backward(const std::vector<Tensor>& grads, const Tensor& weights) {
  std::vector<TensorRef> refs = references("grads", grads, one_group_each(grads.size()));
  const int32_t device = grads[0].get_device_index();
  check_vector("weights", weights, ScalarType::Float, static_cast<int64_t>(grads.size()));
  check_device("weights", weights, device);
  const DeviceGuard guard(device);
  std::vector<Tensor> scaled;
  scaled.reserve(grads.size());
  for (size_t m = 0; m < grads.size(); ++m) {
    scaled.push_back(torch::stable::empty_like(grads[m]));
    refs[m].out = scaled[m].mutable_data_ptr();
  }
  STD_CUDA_CHECK(launch_scale_backward(refs, weights.const_data_ptr<float>(), current_stream(device)));
  return scaled;
}

}  // namespace

Tensor group_gram(const LossRefs& losses, int64_t num_groups, int64_t num_losses, const Tensor& like) {
  const std::vector<Tile> tiles = make_tiles(losses);
  const Tensor gram = torch::stable::new_empty(like, {num_groups, num_losses, num_losses}, ScalarType::Double);
  const Tensor partial = doubles(like, kSlots * count_chunks(tiles));
  STD_CUDA_CHECK(launch_group_gram(tiles, num_groups, num_losses, partial.mutable_data_ptr<double>(),
                                   gram.mutable_data_ptr<double>(), current_stream(like.get_device_index())));
  return gram;
}

void combine_(std::vector<TensorRef> out, const LossRefs& losses, const Tensor& weights, const Tensor& like) {
  std::vector<Tensor> wide;  // kept until everything is launched; its memory goes back in stream order
  for (size_t p = 0; p < out.size(); ++p) {
    out[p].in = nullptr;
    if (losses.first[p + 1] - losses.first[p] <= kMostGrads) continue;
    const ScalarType type = out[p].dtype == Dtype::kDouble ? ScalarType::Double : ScalarType::Float;
    wide.push_back(torch::stable::new_empty(like, {out[p].numel}, type));
    out[p].in = wide.back().mutable_data_ptr();
  }
  STD_CUDA_CHECK(launch_combine_(out, losses, weights.const_data_ptr<float>(), weights.size(1),
                                 current_stream(like.get_device_index())));
}

namespace {

Tensor group_gram_of_tensors(const HandleList& handles, const std::vector<int64_t>& tensor,
                             const std::vector<int64_t>& loss, const std::vector<int64_t>& group, int64_t num_groups,
                             int64_t num_losses) {
  const Handles grads("grads", handles);
  const Tensor first = first_of(grads);
  const std::vector<Array> arrays = checked_arrays(grads, first);
  const ByParameter by = checked_by_parameter(grads, tensor, loss, group, num_groups, num_losses);
  const LossRefs losses = loss_references(arrays, by, tensor, loss, group);
  const int32_t device = first.get_device_index();
  const DeviceGuard guard(device);
  return group_gram(losses, num_groups, num_losses, first);
}

void combine_tensors_(const HandleList& out_handles, const HandleList& grad_handles, const std::vector<int64_t>& tensor,
                      const std::vector<int64_t>& loss, const std::vector<int64_t>& group, const Tensor& weights) {
  const Handles out("out", out_handles), grads("grads", grad_handles);
  STD_TORCH_CHECK(weights.dim() == 2, "`weights` has ", weights.dim(), " dimensions, allowed: 2");
  const Tensor first = first_of(out);
  const int32_t device = first.get_device_index();
  check_device("weights", weights, device);
  const std::vector<Array> targets = checked_arrays(out, first), sources = checked_arrays(grads, first);
  const ByParameter by = checked_by_parameter(grads, tensor, loss, group, weights.size(0), weights.size(1));
  check_combination(out, grads, group, weights, by);
  const LossRefs losses = loss_references(sources, by, tensor, loss, group);
  const DeviceGuard guard(device);
  combine_(references_in_place(targets, group), losses, weights, first);
}

}  // namespace
}  // namespace modgrad

STABLE_TORCH_LIBRARY_IMPL(modgrad_native, CUDA, m) {
  m.impl("group_sq_norms", TORCH_BOX(&modgrad::group_sq_norms));
  m.impl("modulate_", TORCH_BOX(&modgrad::modulate_));
  m.impl("modality_scores", TORCH_BOX(&modgrad::modality_scores));
  m.impl("scale_backward", TORCH_BOX(&modgrad::scale_backward));
  m.impl("group_gram", TORCH_BOX(&modgrad::group_gram_of_tensors));
  m.impl("combine_", TORCH_BOX(&modgrad::combine_tensors_));
  m.impl("modality_cross_entropy", TORCH_BOX(&modgrad::modality_cross_entropy));
  m.impl("modality_cross_entropy_backward", TORCH_BOX(&modgrad::modality_cross_entropy_backward));
}

extern "C" PyMODINIT_FUNC PyInit__C_cuda(void) {
  static PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_C_cuda", nullptr, -1, nullptr};
  return PyModule_Create(&definition);
}
