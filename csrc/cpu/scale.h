// out = weight * x, rounded once from float32 (float64 for float64).
#pragma once

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <cstdint>
#include <type_traits>

#include "parallel.h"

namespace modgrad {

template <typename T>
using wide_t = std::conditional_t<std::is_same_v<T, double>, double, float>;

template <typename T>
inline __attribute__((always_inline)) void scale_elements(const T* x, T* out, int64_t n, float weight) {
  const wide_t<T> w = weight;
  for (int64_t i = 0; i < n; ++i) out[i] = static_cast<T>(static_cast<wide_t<T>>(x[i]) * w);
}

void scale(const float* x, float* out, int64_t n, float weight);
void scale(const double* x, double* out, int64_t n, float weight);
void scale(const torch::headeronly::Half* x, torch::headeronly::Half* out, int64_t n, float weight);
void scale(const torch::headeronly::BFloat16* x, torch::headeronly::BFloat16* out, int64_t n, float weight);

}  // namespace modgrad
