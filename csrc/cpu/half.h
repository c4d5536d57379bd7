// float16 to float32 and back. GCC vectorises no conversion of float16, x86-64-v3 has an instruction for 8 at
// once: where loops over float16 do little else, they go by blocks of float32 in the L1 cache.
#pragma once

#include <torch/headeronly/util/Half.h>

#include <algorithm>
#include <cstdint>

namespace modgrad {

constexpr int64_t kHalfBlock = 1024;

void widen(const torch::headeronly::Half* x, float* out, int64_t n);
void narrow(const float* x, torch::headeronly::Half* out, int64_t n);

inline void widen(const float* x, float* out, int64_t n) { std::copy(x, x + n, out); }
inline void narrow(const float* x, float* out, int64_t n) { std::copy(x, x + n, out); }

}  // namespace modgrad
