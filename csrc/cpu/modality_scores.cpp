// Mean probability of the true class per modality: one pass over the logits, rows spread over threads.
#include "../tensors.h"
#include "scale.h"

namespace modgrad {
namespace {

// softmax(x)[target]; NaN and infinities come out as torch's softmax gives them.
template <typename T>
double probability(const T* x, int64_t num_classes, int64_t target) {
  using Wide = wide_t<T>;
  Wide largest = static_cast<Wide>(x[0]);
  for (int64_t c = 1; c < num_classes; ++c) largest = std::max(largest, static_cast<Wide>(x[c]));
  Wide sum = 0;
  for (int64_t c = 0; c < num_classes; ++c) sum += std::exp(static_cast<Wide>(x[c]) - largest);
  return static_cast<double>(std::exp(static_cast<Wide>(x[target]) - largest) / sum);
}

Tensor modality_scores(const std::vector<Tensor>& logits, const Tensor& targets) {
  const int64_t num_rows = targets.numel(), num_modalities = static_cast<int64_t>(logits.size());
  STD_TORCH_CHECK(num_rows > 0 && num_modalities > 0, "`logits` and `targets` must not be empty");
  check_vector("targets", targets, ScalarType::Long, num_rows);
  const int64_t* y = targets.const_data_ptr<int64_t>();
  int64_t widest = 1;
  for (int64_t m = 0; m < num_modalities; ++m) {
    const Tensor& x = logits[m];
    STD_TORCH_CHECK(x.dim() == 2 && x.size(0) == num_rows && x.is_contiguous(), "`logits[", m,
                    "]` must be contiguous, [", num_rows, ", C]");
    for (int64_t b = 0; b < num_rows; ++b)
      STD_TORCH_CHECK(y[b] >= 0 && y[b] < x.size(1), "`targets[", b, "]` is ", y[b], ", outside [0, ", x.size(1), ")");
    widest = std::max(widest, x.size(1));
  }
  std::vector<double> p(num_modalities * num_rows);
  const int64_t grain = std::max<int64_t>(1, 16384 / widest);  // rows worth waking a thread for
  torch::stable::parallel_for(0, num_modalities * num_rows, grain, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      const Tensor& x = logits[r / num_rows];
      const int64_t num_classes = x.size(1), b = r % num_rows;
      MODGRAD_DISPATCH_FLOATS(x.scalar_type(), "modality_scores", [&] {
        p[r] = probability(x.const_data_ptr<scalar_t>() + b * num_classes, num_classes, y[b]);
      });
    }
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
