// out = sum over losses of w g: one pass, in wide sums of a block, rounded once.
#include "ops.h"
#include "scale.h"

namespace modgrad {
namespace {

using torch::headeronly::BFloat16;
using torch::headeronly::Half;

constexpr int64_t kBlock = 1024;  // two buffers of float64, 16 KiB, leave room for a gradient in the L1 cache

// sum = 0 + w x for the first gradient, sum + w x for the others
template <typename T>
inline __attribute__((always_inline)) void add_scaled(const T* x, wide_t<T>* sum, int64_t n, float weight,
                                                      bool first) {
  const wide_t<T> w = weight;
  if (first) {
    for (int64_t i = 0; i < n; ++i) sum[i] = 0 + static_cast<wide_t<T>>(x[i]) * w;
    return;
  }
  // Two loops, so that no compiler makes a fused multiply-add of them: the products are rounded as in the
  // reference, on a machine of any instruction set.
  alignas(64) wide_t<T> product[kBlock];
  for (int64_t i = 0; i < n; ++i) product[i] = static_cast<wide_t<T>>(x[i]) * w;
  for (int64_t i = 0; i < n; ++i) sum[i] += product[i];
}

template <typename T>
inline __attribute__((always_inline)) void round_to(const wide_t<T>* sum, T* out, int64_t n) {
  for (int64_t i = 0; i < n; ++i) out[i] = static_cast<T>(sum[i]);
}

MODGRAD_CLONES void add(const float* x, float* sum, int64_t n, float w, bool first) {
  add_scaled(x, sum, n, w, first);
}
MODGRAD_CLONES void add(const double* x, double* sum, int64_t n, float w, bool first) {
  add_scaled(x, sum, n, w, first);
}
MODGRAD_CLONES void add(const Half* x, float* sum, int64_t n, float w, bool first) {
  add_scaled(x, sum, n, w, first);
}
MODGRAD_CLONES void add(const BFloat16* x, float* sum, int64_t n, float w, bool first) {
  add_scaled(x, sum, n, w, first);
}

MODGRAD_CLONES void narrow(const float* sum, float* out, int64_t n) { round_to(sum, out, n); }
MODGRAD_CLONES void narrow(const double* sum, double* out, int64_t n) { round_to(sum, out, n); }
MODGRAD_CLONES void narrow(const float* sum, Half* out, int64_t n) { round_to(sum, out, n); }
MODGRAD_CLONES void narrow(const float* sum, BFloat16* out, int64_t n) { round_to(sum, out, n); }

}  // namespace

void combine_(const std::vector<Array>& out, const std::vector<Array>& grads, const ByParameter& by,
              const std::vector<int64_t>& loss, const std::vector<int64_t>& group, const Tensor& weights) {
  const int64_t num_losses = weights.size(1);
  const float* w = weights.const_data_ptr<float>();
  const Plan plan = make_plan(sizes_of(out), kChunkSize, kStreamingTask / num_losses);
  for_each_chunk(plan, [&](int64_t, const Chunk& chunk) {
    const Array& target = out[chunk.tensor];
    const int64_t* order = by.order.data() + by.first[chunk.tensor];
    const int64_t count = by.first[chunk.tensor + 1] - by.first[chunk.tensor];
    MODGRAD_DISPATCH_FLOATS(target.dtype, "combine_", [&] {
      scalar_t* y = static_cast<scalar_t*>(target.data);
      for (int64_t begin = chunk.begin; begin < chunk.begin + chunk.size; begin += kBlock) {
        const int64_t n = std::min(kBlock, chunk.begin + chunk.size - begin);
        alignas(64) wide_t<scalar_t> sum[kBlock];
        if (count == 0) std::fill_n(sum, n, wide_t<scalar_t>{});
        for (int64_t i = 0; i < count; ++i) {
          const int64_t e = order[i];
          const float weight = w[group[chunk.tensor] * num_losses + loss[e]];
          add(static_cast<const scalar_t*>(grads[e].data) + begin, sum, n, weight, i == 0);
        }
        narrow(sum, y + begin, n);
      }
    });
  });
}

namespace {

void of_tensors(const HandleList& out_handles, const HandleList& grad_handles,
                const std::vector<int64_t>& tensor, const std::vector<int64_t>& loss,
                const std::vector<int64_t>& group, const Tensor& weights) {
  const Handles out("out", out_handles), grads("grads", grad_handles);
  STD_TORCH_CHECK(weights.dim() == 2, "`weights` has ", weights.dim(), " dimensions, allowed: 2");
  const ByParameter by = checked_by_parameter(grads, tensor, loss, group, weights.size(0), weights.size(1));
  check_combination(out, grads, group, weights, by);
  combine_(dense_arrays(out), dense_arrays(grads), by, loss, group, weights);
}

}  // namespace
}  // namespace modgrad

STABLE_TORCH_LIBRARY_IMPL(modgrad_native, CPU, m) { m.impl("combine_", TORCH_BOX(&modgrad::of_tensors)); }
