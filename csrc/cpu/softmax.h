// Rows of logits: their blocks of lanes, the sums of exponentials of a softmax, and threads over all of them.
#pragma once

#include <cmath>
#include <vector>

#include "../tensors.h"
#include "exp.h"
#include "scale.h"

namespace modgrad {

constexpr int64_t kLanes = 16;  // one vector of AVX-512, two of AVX2

// Calls f(values, i, count) for the blocks [i, i + count) of x[0, n): kLanes widened values, -inf past the end.
template <typename T, typename F>
inline __attribute__((always_inline)) void for_each_block(const T* x, int64_t n, const F& f) {
  wide_t<T> values[kLanes];
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    for (int64_t j = 0; j < kLanes; ++j) values[j] = static_cast<wide_t<T>>(x[i + j]);
    f(values, i, kLanes);
  }
  if (i == n) return;
  for (int64_t j = 0; j < kLanes; ++j) values[j] = j < n - i ? static_cast<wide_t<T>>(x[i + j]) : -INFINITY;
  f(values, i, n - i);
}

// A commutative op over the lanes, pair by pair: 4 steps where one lane after another takes 16.
template <int64_t kWidth = kLanes, typename T, typename Op>
inline __attribute__((always_inline)) T fold(const T* lanes, const Op& op) {
  constexpr int64_t kHalf = kWidth / 2;
  T pairs[kHalf];
  for (int64_t j = 0; j < kHalf; ++j) pairs[j] = op(lanes[j], lanes[j + kHalf]);
  if constexpr (kHalf == 1)
    return pairs[0];
  else
    return fold<kHalf>(pairs, op);
}

// sum_c exp(x_c) = sum exp(largest); NaN where torch's softmax is, because the largest is infinite.
template <typename Wide>
struct Exponentials {
  Wide largest, sum;
};

template <typename T>
inline __attribute__((always_inline)) Exponentials<wide_t<T>> exponentials(const T* x, int64_t n) {
  using Wide = wide_t<T>;
  Wide largest[kLanes], sums[kLanes] = {};
  for (Wide& lane : largest) lane = -INFINITY;
  for_each_block(x, n, [&](const Wide* v, int64_t, int64_t) {
    for (int64_t j = 0; j < kLanes; ++j) largest[j] = v[j] > largest[j] ? v[j] : largest[j];
  });
  const Wide top = fold(largest, [](Wide a, Wide b) { return a > b ? a : b; });
  for_each_block(x, n, [&](const Wide* v, int64_t, int64_t) {
    for (int64_t j = 0; j < kLanes; ++j) sums[j] += fast_exp(v[j] - top);
  });
  return {top, fold(sums, [](Wide a, Wide b) { return a + b; })};
}

// The same for kLanes rows of few classes, a lane a row: nothing is folded.
template <typename T>
inline __attribute__((always_inline)) void exponentials_of_lanes(const T* x, int64_t n, Exponentials<wide_t<T>>* out) {
  using Wide = wide_t<T>;
  Wide largest[kLanes], sums[kLanes] = {};
  for (Wide& lane : largest) lane = -INFINITY;
  for (int64_t c = 0; c < n; ++c)
    for (int64_t j = 0; j < kLanes; ++j) {
      const Wide v = static_cast<Wide>(x[j * n + c]);
      largest[j] = v > largest[j] ? v : largest[j];
    }
  for (int64_t c = 0; c < n; ++c)
    for (int64_t j = 0; j < kLanes; ++j) sums[j] += fast_exp(static_cast<Wide>(x[j * n + c]) - largest[j]);
  for (int64_t j = 0; j < kLanes; ++j) out[j] = {largest[j], sums[j]};
}

// The logits of one modality, and where their gradient goes.
struct Logits {
  const void* x;
  void* grad;
  int64_t num_classes;
  ScalarType dtype;
};

inline std::vector<Logits> logits_of(const std::vector<Tensor>& logits) {
  std::vector<Logits> out;
  for (const Tensor& x : logits) out.push_back({x.const_data_ptr(), nullptr, x.size(1), x.scalar_type()});
  return out;
}

// Calls f(m, first, end) for all samples [first, end) of all modalities, spread over threads. With few classes
// the samples come kLanes at a time, wherever a thread begins. A thread for 64 Ki elements, some 50 us.
template <typename F>
void for_each_group(const std::vector<Logits>& logits, int64_t num_rows, const F& f) {
  int64_t widest = 1;
  for (const Logits& x : logits) widest = std::max(widest, x.num_classes);
  const int64_t group = widest <= kLanes ? kLanes : 1, groups = (num_rows + group - 1) / group;
  const int64_t all = static_cast<int64_t>(logits.size()) * groups;
  torch::stable::parallel_for(0, all, std::max<int64_t>(1, 65536 / (widest * group)), [&](int64_t i, int64_t end) {
    for (; i < end; ++i) f(i / groups, i % groups * group, std::min(num_rows, (i % groups + 1) * group));
  });
}

}  // namespace modgrad
