// Cross entropy and score of every modality: one call for all rows, which stay in L2 between their two passes.
#include "../rule_arguments.h"
#include "cross_entropy.h"

namespace modgrad {

using torch::headeronly::BFloat16;
using torch::headeronly::Half;

// One sample of one modality: the log-sum-exp of its logits, its part of loss and score, and the sum of q.
struct Row {
  double lse = 0, loss = 0, score = 0, mass = 0;
};

template <typename T>
inline __attribute__((always_inline)) Row measure_row(const T* x, int64_t n, const Targets& targets, int64_t b,
                                                     const Exponentials<wide_t<T>>& e) {
  using Wide = wide_t<T>;
  const double lse = static_cast<double>(e.largest) + std::log(static_cast<double>(e.sum));
  double dot = 0, mass = 0, score = 0;  // dot: sum of q x, where a class without mass adds nothing
  if (targets.is_spread()) {
    const bool soft = targets.classes == nullptr;
    const Wide high = static_cast<Wide>(lse), low = static_cast<Wide>(lse - high);
    double dots[kLanes] = {}, masses[kLanes] = {}, scores[kLanes] = {};
    for_each_block(x, n, [&](const Wide* v, int64_t i, int64_t count) {
      for (int64_t j = 0; j < count; ++j) {
        const Wide q = targets.spread<Wide>(b, i + j, n);
        dots[j] += q == 0 ? 0.0 : static_cast<double>(q) * static_cast<double>(v[j]);
        masses[j] += q;
        if (soft) scores[j] += targets.probabilities.at<Wide>(b * n + i + j) * fast_exp((v[j] - high) - low);
      }
    });
    const auto add = [](double a, double b) { return a + b; };
    dot = fold(dots, add), mass = fold(masses, add), score = fold(scores, add);
  }
  if (targets.classes != nullptr) {
    const double x_true = static_cast<double>(x[targets.classes[b]]), peak = targets.peak<double>(b);
    dot += peak == 0 ? 0.0 : peak * x_true;
    mass += peak;
    score = fast_exp(static_cast<Wide>(x[targets.classes[b]]) - e.largest) / e.sum;
  }
  return {lse, mass * lse - dot, score, mass};
}

// Samples [first, end) of a modality; rows of samples left out stay as they are.
template <typename T>
inline __attribute__((always_inline)) void measure_rows(const T* x, int64_t n, const Targets& targets, int64_t first,
                                                        int64_t end, Row* rows) {
  Exponentials<wide_t<T>> e[kLanes];
  const bool lanes = end - first == kLanes;
  if (lanes) exponentials_of_lanes(x + first * n, n, e);
  for (int64_t b = first; b < end; ++b)
    if (targets.counts(b))
      rows[b] = measure_row(x + b * n, n, targets, b, lanes ? e[b - first] : exponentials(x + b * n, n));
}

#define MODGRAD_MEASURE(T)                                                                                     \
  MODGRAD_CLONES void measure(const T* x, int64_t n, const Targets& targets, int64_t first, int64_t end, Row* rows) { \
    measure_rows(x, n, targets, first, end, rows);                                                             \
  }
MODGRAD_MEASURE(float)
MODGRAD_MEASURE(double)
MODGRAD_MEASURE(Half)
MODGRAD_MEASURE(BFloat16)

namespace {

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> modality_cross_entropy(
    const std::vector<Tensor>& logits, const Tensor& targets, const std::optional<Tensor>& class_weights,
    int64_t ignore_index, double smoothing, const std::optional<std::string>& rule,
    const std::optional<std::vector<double>>& parameters, int64_t num_joint) {
  const Targets t = checked_targets(logits, real_type(logits), targets, class_weights, ignore_index, smoothing);
  const int64_t num_rows = t.num_rows, num_modalities = static_cast<int64_t>(logits.size());
  std::optional<Rule> scores_rule = rule_of_scores(rule, parameters, num_modalities, num_joint);
  const std::vector<Logits> all = logits_of(logits);
  check_classes(t, all);
  const Tensor lse = torch::stable::new_empty(logits[0], {num_modalities, num_rows}, ScalarType::Double);
  const Tensor mass = torch::stable::new_empty(logits[0], {num_rows + 1}, ScalarType::Double);
  const Tensor losses = torch::stable::new_empty(logits[0], {num_modalities}, real_type(logits));
  const Tensor scores = torch::stable::new_empty(logits[0], {num_modalities}, ScalarType::Float);
  double* lses = lse.mutable_data_ptr<double>();
  double* masses = mass.mutable_data_ptr<double>();
  std::vector<Row> rows(num_modalities * num_rows);
  for_each_group(all, num_rows, [&](int64_t m, int64_t first, int64_t end) {
    const Logits& x = all[m];
    MODGRAD_DISPATCH_FLOATS(x.dtype, "modality_cross_entropy", [&] {
      measure(static_cast<const scalar_t*>(x.x), x.num_classes, t, first, end, &rows[m * num_rows]);
    });
    for (int64_t b = first; b < end; ++b) {
      lses[m * num_rows + b] = rows[m * num_rows + b].lse;
      if (m == 0) masses[b] = rows[b].mass;
    }
  });
  double count = 0, total = 0;
  for (int64_t b = 0; b < num_rows; ++b) {
    if (!t.counts(b)) continue;
    count += 1;
    total += t.classes == nullptr ? 1 : t.class_weight<double>(t.classes[b]);
  }
  masses[num_rows] = total;
  for (int64_t m = 0; m < num_modalities; ++m) {
    double loss = 0, score = 0;
    for (int64_t b = 0; b < num_rows; ++b) {
      loss += rows[m * num_rows + b].loss;
      score += rows[m * num_rows + b].score;
    }
    MODGRAD_DISPATCH_FLOATS(losses.scalar_type(), "modality_cross_entropy", [&] {
      losses.mutable_data_ptr<scalar_t>()[m] = static_cast<scalar_t>(loss / total);
    });
    scores.mutable_data_ptr<float>()[m] = static_cast<float>(score / count);
  }
  const Tensor weights =
      torch::stable::new_empty(logits[0], {rule.has_value() ? num_modalities : 0}, ScalarType::Float);
  if (rule.has_value()) {
    float* w = weights.mutable_data_ptr<float>();
    std::fill_n(w, num_joint, 1.0f);
    scores_rule->scores = scores.const_data_ptr<float>() + num_joint;
    for (int64_t m = 0; m < scores_rule->num_modalities; ++m) decide(*scores_rule, m, {w + num_joint, nullptr, nullptr});
  }
  return {losses, scores, lse, mass, weights};
}

}  // namespace
}  // namespace modgrad

STABLE_TORCH_LIBRARY_IMPL(modgrad_native, CPU, m) {
  m.impl("modality_cross_entropy", TORCH_BOX(&modgrad::modality_cross_entropy));
}
