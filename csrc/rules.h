// Balancing rules: from what was measured to weights, one modality's row at a time, in float64.
// modgrad/rules.py has the same formulas on tensors, and is their definition.
#pragma once

#include "math.h"

namespace modgrad {

enum class RuleName : int32_t { kOgm, kEqualNorms, kMMPareto, kPCGrad, kGradNorm };

constexpr int kRuleParameters = 2, kRuleStates = 2;

// A rule and what it reads. Shape letters: M modalities, K losses.
struct Rule {
  RuleName name;
  double parameters[kRuleParameters];
  int64_t num_modalities, num_losses;
  const float* scores;              // [M], for a rule of scores, whose K is 1
  const double* gram;               // [M, K, K], for the others
  const float* losses;              // [K], where there are states
  const float* states[kRuleStates]; // [K] each
};

constexpr double kLargestFloat = 3.4028234663852886e38;

MODGRAD_HD bool is_finite(double x) { return x - x == 0; }

// NaN stays NaN.
MODGRAD_HD double clipped(double x, double low, double high) { return x < low ? low : x > high ? high : x; }

MODGRAD_HD bool is_finite(const double* x, int64_t n) {
  for (int64_t i = 0; i < n; ++i)
    if (!is_finite(x[i])) return false;
  return true;
}

MODGRAD_HD double ogm_weight(const Rule& r, int64_t m) {
  double rho = 0;
  const double own = r.scores[m];
  for (int64_t n = 0; n < r.num_modalities; ++n)
    if (n != m) rho += own / r.scores[n];
  rho /= static_cast<double>(r.num_modalities - 1);
  if (!(rho > 1)) return 1;
  const double lead = r.parameters[1] != 0 ? rho - 1 : rho;
  return 1 - std::tanh(r.parameters[0] * (lead < kLargestFloat ? lead : kLargestFloat));
}

// The weight by a rule that reads scores.
MODGRAD_HD float scores_weight(const Rule& r, int64_t m) { return static_cast<float>(ogm_weight(r, m)); }

MODGRAD_HD double equal_norms_weight(const Rule& r, int64_t m) {
  if (!is_finite(r.gram, r.num_modalities) || !(r.gram[m] > 0)) return 1;
  double sum = 0, there = 0;
  for (int64_t n = 0; n < r.num_modalities; ++n) {
    sum += std::sqrt(r.gram[n]);
    there += r.gram[n] > 0;
  }
  const double cap = r.parameters[1];
  return clipped(std::pow(sum / there / std::sqrt(r.gram[m]), r.parameters[0]), 1 / cap, cap);
}

// The weight by a rule for one loss that reads squared norms.
MODGRAD_HD float norms_weight(const Rule& r, int64_t m) { return static_cast<float>(equal_norms_weight(r, m)); }

// |h|^2 / (|g|^2 + |u|^2) below which h is rounding
constexpr double kOpposed = 1e-8;

MODGRAD_HD void mmpareto_weights(const Rule& r, int64_t m, const double* gram, double* weights) {
  const int64_t K = r.num_losses, own = m + 1;
  const double gg = gram[0], gu = gram[own], uu = gram[own * K + own];
  const bool agree = gu > 0 || gg <= 0 || uu <= 0;
  const double k0 = agree ? 0.5 : clipped((uu - gu) / (gg - 2 * gu + uu), 0, 1), k1 = 1 - k0;
  const double h = 4 * (k0 * k0 * gg + 2 * k0 * k1 * gu + k1 * k1 * uu);
  const double ratio = h > kOpposed * (gg + uu) ? (gg + 2 * gu + uu) / h : 1.0;
  const double scale = 2 * r.parameters[0] * std::sqrt(ratio > 1 ? ratio : 1.0);
  for (int64_t k = 0; k < K; ++k) weights[k] = k == 0 ? scale * k0 : k == own ? scale * k1 : 1.0;
}

// projected: [K], scratch
MODGRAD_HD void pcgrad_weights(const Rule& r, const double* gram, double* projected, double* weights) {
  const int64_t K = r.num_losses;
  for (int64_t k = 0; k < K; ++k) weights[k] = 0;
  for (int64_t i = 0; i < K; ++i) {
    for (int64_t k = 0; k < K; ++k) projected[k] = k == i;
    for (int64_t j = 0; j < K; ++j) {
      double along = 0;
      for (int64_t k = 0; k < K; ++k) along += projected[k] * gram[k * K + j];
      const double sq_norm = gram[j * K + j];
      if (j != i && along < 0 && sq_norm > 0) projected[j] -= along / sq_norm;
    }
    for (int64_t k = 0; k < K; ++k) weights[k] += projected[k];
  }
}

constexpr double kSmallestWeight = 1e-3;

// norms, stepped: [K], scratch; next: [2, K]
MODGRAD_HD void gradnorm_states(const Rule& r, double* norms, double* stepped, float* next) {
  const int64_t K = r.num_losses;
  float* first = next + K;
  const float *w = r.states[0], *initial = r.states[1];
  double mean_G = 0, mean_ratio = 0;
  for (int64_t k = 0; k < K; ++k) {
    const float loss = r.losses[k];
    first[k] = initial[k] > 0 || !(is_finite(loss) && loss > 0) ? initial[k] : loss;
    norms[k] = 0;
    for (int64_t m = 0; m < r.num_modalities; ++m) norms[k] += r.gram[(m * K + k) * K + k];
    norms[k] = std::sqrt(norms[k]);
    mean_G += w[k] * norms[k];
    mean_ratio += static_cast<double>(loss) / first[k];
  }
  mean_G /= static_cast<double>(K);
  mean_ratio /= static_cast<double>(K);
  double sum = 0;
  bool usable = true;
  for (int64_t k = 0; k < K; ++k) {
    const double ratio = static_cast<double>(r.losses[k]) / first[k];
    const double target = mean_G * std::pow(ratio / mean_ratio, r.parameters[0]), G = w[k] * norms[k];
    const double sign = G > target ? 1 : G < target ? -1 : 0;
    stepped[k] = w[k] - r.parameters[1] * sign * norms[k];
    if (stepped[k] < kSmallestWeight) stepped[k] = kSmallestWeight;
    sum += stepped[k];
    usable = usable && is_finite(target);
  }
  for (int64_t k = 0; k < K; ++k) {
    stepped[k] *= static_cast<double>(K) / sum;
    usable = usable && is_finite(stepped[k]);
  }
  for (int64_t k = 0; k < K; ++k) next[k] = usable ? static_cast<float>(stepped[k]) : w[k];
}

// What a rule writes.
struct RuleOut {
  float* weights;   // [M, K]
  float* next;      // [number of states, K]
  double* scratch;  // [M, 2, K]
};

// Row m of the weights, and with m = 0 the next states.
MODGRAD_HD void decide(const Rule& r, int64_t m, const RuleOut& result) {
  const int64_t K = r.num_losses;
  double* row = result.scratch + 2 * K * m;
  float* out = result.weights + K * m;
  switch (r.name) {
    case RuleName::kOgm: out[0] = scores_weight(r, m); return;
    case RuleName::kEqualNorms: out[0] = norms_weight(r, m); return;
    case RuleName::kGradNorm:
      for (int64_t k = 0; k < K; ++k) out[k] = r.states[0][k];
      if (m == 0) gradnorm_states(r, row, row + K, result.next);
      return;
    case RuleName::kMMPareto: mmpareto_weights(r, m, r.gram + m * K * K, row); break;
    case RuleName::kPCGrad: pcgrad_weights(r, r.gram + m * K * K, row + K, row); break;
  }
  const bool usable = is_finite(r.gram + m * K * K, K * K);
  for (int64_t k = 0; k < K; ++k) out[k] = usable ? static_cast<float>(row[k]) : 1.0f;
}

}  // namespace modgrad
