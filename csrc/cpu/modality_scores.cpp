// Mean probability of the true class per modality: one call for all rows, which stay in L2 between their two passes.
#include "softmax.h"

namespace modgrad {

using torch::headeronly::BFloat16;
using torch::headeronly::Half;

// softmax(x)[target] of samples [first, end) of a modality.
template <typename T>
inline __attribute__((always_inline)) void probabilities_of(const T* x, int64_t n, const int64_t* targets,
                                                            int64_t first, int64_t end, double* p) {
  using Wide = wide_t<T>;
  Exponentials<Wide> e[kLanes];
  const bool lanes = end - first == kLanes;
  if (lanes) exponentials_of_lanes(x + first * n, n, e);
  for (int64_t b = first; b < end; ++b) {
    const T* row = x + b * n;
    const Exponentials<Wide> of_row = lanes ? e[b - first] : exponentials(row, n);
    p[b] = fast_exp(static_cast<Wide>(row[targets[b]]) - of_row.largest) / of_row.sum;
  }
}

#define MODGRAD_PROBABILITIES(T)                                                                              \
  MODGRAD_CLONES void probabilities(const T* x, int64_t n, const int64_t* targets, int64_t first, int64_t end, \
                                    double* p) {                                                              \
    probabilities_of(x, n, targets, first, end, p);                                                           \
  }
MODGRAD_PROBABILITIES(float)
MODGRAD_PROBABILITIES(double)
MODGRAD_PROBABILITIES(Half)
MODGRAD_PROBABILITIES(BFloat16)

namespace {

Tensor modality_scores(const std::vector<Tensor>& logits, const Tensor& targets) {
  const int64_t num_rows = targets.numel(), num_modalities = static_cast<int64_t>(logits.size());
  STD_TORCH_CHECK(num_rows > 0 && num_modalities > 0, "`logits` and `targets` must not be empty");
  check_vector("targets", targets, ScalarType::Long, num_rows);
  const int64_t* y = targets.const_data_ptr<int64_t>();
  for (int64_t m = 0; m < num_modalities; ++m) {
    const Tensor& x = logits[m];
    STD_TORCH_CHECK(x.dim() == 2 && x.size(0) == num_rows && x.is_contiguous(), "`logits[", m,
                    "]` must be contiguous, [", num_rows, ", C]");
    for (int64_t b = 0; b < num_rows; ++b)
      STD_TORCH_CHECK(y[b] >= 0 && y[b] < x.size(1), "`targets[", b, "]` is ", y[b], ", outside [0, ", x.size(1), ")");
  }
  const std::vector<Logits> all = logits_of(logits);
  std::vector<double> p(num_modalities * num_rows);
  for_each_group(all, num_rows, [&](int64_t m, int64_t first, int64_t end) {
    MODGRAD_DISPATCH_FLOATS(all[m].dtype, "modality_scores", [&] {
      probabilities(static_cast<const scalar_t*>(all[m].x), all[m].num_classes, y, first, end, &p[m * num_rows]);
    });
  });
  Tensor out = torch::stable::new_empty(targets, {num_modalities}, ScalarType::Float);
  for (int64_t m = 0; m < num_modalities; ++m) {
    double sum = 0;
    for (int64_t b = 0; b < num_rows; ++b) sum += p[m * num_rows + b];
    out.mutable_data_ptr<float>()[m] = static_cast<float>(sum / static_cast<double>(num_rows));
  }
  return out;
}

}  // namespace
}  // namespace modgrad

STABLE_TORCH_LIBRARY_IMPL(modgrad_native, CPU, m) { m.impl("modality_scores", TORCH_BOX(&modgrad::modality_scores)); }
