// Gradients of the features, scaled into new tensors: one pass over all of them.
#include "../tensors.h"
#include "scale.h"

namespace modgrad {

using torch::headeronly::BFloat16;
using torch::headeronly::Half;

MODGRAD_CLONES void scale(const float* x, float* out, int64_t n, float w) { scale_elements(x, out, n, w); }
MODGRAD_CLONES void scale(const double* x, double* out, int64_t n, float w) { scale_elements(x, out, n, w); }
MODGRAD_CLONES void scale(const Half* x, Half* out, int64_t n, float w) { scale_elements(x, out, n, w); }
MODGRAD_CLONES void scale(const BFloat16* x, BFloat16* out, int64_t n, float w) { scale_elements(x, out, n, w); }

namespace {

std::vector<Tensor> scale_backward(const std::vector<Tensor>& grads, const Tensor& weights) {
  const Plan plan = make_plan(checked_sizes("grads", grads));
  check_vector("weights", weights, ScalarType::Float, static_cast<int64_t>(grads.size()));
  const float* w = weights.const_data_ptr<float>();
  std::vector<Tensor> out;
  for (const Tensor& grad : grads) out.push_back(torch::stable::empty_like(grad));
  for_each_chunk(plan, [&](int64_t, const Chunk& chunk) {
    const Tensor& grad = grads[chunk.tensor];
    MODGRAD_DISPATCH_FLOATS(grad.scalar_type(), "scale_backward", [&] {
      scale(grad.const_data_ptr<scalar_t>() + chunk.begin,
            out[chunk.tensor].mutable_data_ptr<scalar_t>() + chunk.begin, chunk.size, w[chunk.tensor]);
    });
  });
  return out;
}

}  // namespace
}  // namespace modgrad

STABLE_TORCH_LIBRARY_IMPL(modgrad_native, CPU, m) { m.impl("scale_backward", TORCH_BOX(&modgrad::scale_backward)); }
