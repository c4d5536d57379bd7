// Sums of squares in float64.
#pragma once

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <cstdint>

namespace modgrad {

double squares(const float* x, int64_t n);
double squares(const double* x, int64_t n);
double squares(const torch::headeronly::Half* x, int64_t n);
double squares(const torch::headeronly::BFloat16* x, int64_t n);

}  // namespace modgrad
