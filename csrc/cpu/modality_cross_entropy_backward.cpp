// Gradients of all modalities' logits, each with its own coefficient: one pass.
#include "cross_entropy.h"

namespace modgrad {

using torch::headeronly::BFloat16;
using torch::headeronly::Half;

// coefficient (mass softmax(x) - q) of sample b.
template <typename T>
inline __attribute__((always_inline)) void gradient_row(const T* x, T* out, int64_t n, const Targets& targets,
                                                        int64_t b, double lse, double mass, double coefficient) {
  using Wide = wide_t<T>;
  const Wide high = static_cast<Wide>(lse), low = static_cast<Wide>(lse - high);
  const Wide scale = static_cast<Wide>(coefficient * mass), c = static_cast<Wide>(coefficient);
  const bool is_spread = targets.is_spread();
  for_each_block(x, n, [&](const Wide* v, int64_t i, int64_t count) {
    Wide g[kLanes];
    for (int64_t j = 0; j < kLanes; ++j) g[j] = scale * fast_exp((v[j] - high) - low);
    if (is_spread)
      for (int64_t j = 0; j < count; ++j) g[j] -= c * targets.spread<Wide>(b, i + j, n);
    if (count == kLanes)
      for (int64_t j = 0; j < kLanes; ++j) out[i + j] = static_cast<T>(g[j]);
    else
      for (int64_t j = 0; j < count; ++j) out[i + j] = static_cast<T>(g[j]);
  });
  if (targets.classes == nullptr) return;
  const int64_t y = targets.classes[b];
  Wide q = targets.peak<Wide>(b);
  if (is_spread) q += targets.spread<Wide>(b, y, n);
  out[y] = static_cast<T>(scale * fast_exp((static_cast<Wide>(x[y]) - high) - low) - c * q);
}

#define MODGRAD_GRADIENT(T)                                                                               \
  MODGRAD_CLONES void gradient(const T* x, T* out, int64_t n, const Targets& targets, int64_t b, double lse, \
                               double mass, double coefficient) {                                         \
    gradient_row(x, out, n, targets, b, lse, mass, coefficient);                                          \
  }
MODGRAD_GRADIENT(float)
MODGRAD_GRADIENT(double)
MODGRAD_GRADIENT(Half)
MODGRAD_GRADIENT(BFloat16)

namespace {

std::vector<Tensor> modality_cross_entropy_backward(const std::vector<Tensor>& logits,
                                                    const std::vector<int64_t>& loss, const Tensor& targets,
                                                    const std::optional<Tensor>& class_weights,
                                                    int64_t ignore_index, double smoothing, const Tensor& lse,
                                                    const Tensor& mass, const Tensor& grad_losses,
                                                    const std::optional<Tensor>& weights) {
  const Targets t = checked_targets(logits, grad_losses.scalar_type(), targets, class_weights, ignore_index, smoothing);
  const Upstream upstream = checked_upstream(loss, logits.size(), t, lse, mass, grad_losses, weights);
  std::vector<Logits> all = logits_of(logits);
  check_classes(t, all);
  std::vector<Tensor> grads;
  for (size_t i = 0; i < all.size(); ++i) {
    grads.push_back(torch::stable::empty_like(logits[i]));
    all[i].grad = grads[i].mutable_data_ptr();
  }
  for_each_row(all, t.num_rows, [&](int64_t i, int64_t b) {
    const Logits& x = all[i];
    MODGRAD_DISPATCH_FLOATS(x.dtype, "modality_cross_entropy_backward", [&] {
      scalar_t* grad = static_cast<scalar_t*>(x.grad) + b * x.num_classes;
      if (!t.counts(b))
        std::fill(grad, grad + x.num_classes, static_cast<scalar_t>(0));
      else
        gradient(static_cast<const scalar_t*>(x.x) + b * x.num_classes, grad, x.num_classes, t, b,
                 upstream.lse[loss[i] * t.num_rows + b], upstream.mass[b],
                 upstream.coefficient(loss[i], t.num_rows));
    });
  });
  return grads;
}

}  // namespace
}  // namespace modgrad

STABLE_TORCH_LIBRARY_IMPL(modgrad_native, CPU, m) {
  m.impl("modality_cross_entropy_backward", TORCH_BOX(&modgrad::modality_cross_entropy_backward));
}
