// An exponential that loops vectorise over; std::exp(float) is a call an element.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

namespace modgrad {

// 2^n for a normal float.
inline __attribute__((always_inline)) float power_of_two(int32_t n) {
  const uint32_t bits = static_cast<uint32_t>(n + 127) << 23;
  float out;
  std::memcpy(&out, &bits, 4);
  return out;
}

// exp(x) for x up to 80, to 2 units in the last place, with subnormals: 2^n e^r with n = round(x / ln 2).
inline __attribute__((always_inline)) float fast_exp(float x) {
  constexpr float kShift = 0x1.8p23f;  // adding it rounds to an integer, which stands in the low bits
  x = x < -105.0f ? -105.0f : x;       // there it is 0
  const float shifted = x * 0x1.715476p0f + kShift, n = shifted - kShift;
  // ln 2 in two parts; 16 bits of the first, so that n times it is exact
  const float r = (x - n * 0x1.62e4p-1f) - n * 0x1.7f7d1cp-20f;
  // Taylor: the next term is below 6e-9 for |r| <= ln 2 / 2. In pairs, which wait less for each other.
  const float r2 = r * r, low = (r + 1.0f) + r2 * (r * (1.0f / 6) + 0.5f);
  const float high = (r * (1.0f / 120) + 1.0f / 24) + r2 * (r * (1.0f / 5040) + 1.0f / 720);
  const float y = low + r2 * r2 * high;
  int32_t power, zero;
  std::memcpy(&power, &shifted, 4);
  std::memcpy(&zero, &kShift, 4);
  power -= zero;
  const int32_t half = power >> 1;  // two factors: 2^-150 is no float
  return y * power_of_two(half) * power_of_two(power - half);
}

inline __attribute__((always_inline)) double fast_exp(double x) { return std::exp(x); }

}  // namespace modgrad
