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

// Samples [first, end) of the logits of loss m.
template <typename T>
inline __attribute__((always_inline)) void gradient_rows(const Logits& logits, const Targets& targets,
                                                         const Upstream& upstream, int64_t m, int64_t first,
                                                         int64_t end) {
  const int64_t n = logits.num_classes;
  const double coefficient = upstream.coefficient(m, targets.num_rows);
  for (int64_t b = first; b < end; ++b) {
    const T* x = static_cast<const T*>(logits.x) + b * n;
    T* out = static_cast<T*>(logits.grad) + b * n;
    if (targets.counts(b))
      gradient_row(x, out, n, targets, b, upstream.lse[m * targets.num_rows + b], upstream.mass[b], coefficient);
    else
      std::fill(out, out + n, static_cast<T>(0));
  }
}

#define MODGRAD_GRADIENT(T)                                                                                \
  MODGRAD_CLONES void gradient(T, const Logits& logits, const Targets& targets, const Upstream& upstream,  \
                               int64_t m, int64_t first, int64_t end) {                                    \
    gradient_rows<T>(logits, targets, upstream, m, first, end);                                            \
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
  for_each_group(all, t.num_rows, [&](int64_t i, int64_t first, int64_t end) {
    MODGRAD_DISPATCH_FLOATS(all[i].dtype, "modality_cross_entropy_backward",
                            [&] { gradient(scalar_t{}, all[i], t, upstream, loss[i], first, end); });
  });
  return grads;
}

}  // namespace
}  // namespace modgrad

STABLE_TORCH_LIBRARY_IMPL(modgrad_native, CPU, m) {
  m.impl("modality_cross_entropy_backward", TORCH_BOX(&modgrad::modality_cross_entropy_backward));
}
