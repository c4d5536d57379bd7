// Standard deviations of tensors in one pass over them: sums per chunk, added in the order of chunks.
#pragma once

#include <cstdint>
#include <vector>

#include "../math.h"
#include "parallel.h"

namespace modgrad {

template <typename T>
Spread spread(const T* x, int64_t n, double shift) {
  Spread s;
  for (int64_t i = 0; i < n; ++i) {
    const double d = static_cast<double>(x[i]) - shift;
    s.sum += d;
    s.squares += d * d;
  }
  return s;
}

// `chunk_spread(chunk)` is the spread of one chunk; a tensor without chunks in the plan has deviation 0.
template <typename F>
std::vector<double> standard_deviations(const Plan& plan, const std::vector<int64_t>& sizes, const F& chunk_spread) {
  std::vector<Spread> partial(plan.chunks.size());
  for_each_chunk(plan, [&](int64_t c, const Chunk& chunk) { partial[c] = chunk_spread(chunk); });
  std::vector<Spread> total(sizes.size());
  for (size_t c = 0; c < partial.size(); ++c) {
    total[plan.chunks[c].tensor].sum += partial[c].sum;
    total[plan.chunks[c].tensor].squares += partial[c].squares;
  }
  std::vector<double> std(sizes.size());
  for (size_t t = 0; t < sizes.size(); ++t) std[t] = standard_deviation(total[t], sizes[t]);
  return std;
}

}  // namespace modgrad
