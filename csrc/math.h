// Formulas that CPU and CUDA code share, so that tests on the CPU test what the GPU runs.
#pragma once

#include <cmath>
#include <cstdint>

#ifdef __CUDACC__
#define MODGRAD_HD __host__ __device__ __forceinline__
#else
#define MODGRAD_HD inline __attribute__((always_inline))
#endif

namespace modgrad {

struct Block4 {
  uint32_t x[4];
};

// Philox4x32-10. Salmon et al., Parallel Random Numbers: As Easy as 1, 2, 3, SC 2011.
MODGRAD_HD Block4 philox(Block4 c, uint64_t key) {
  uint32_t k0 = static_cast<uint32_t>(key), k1 = static_cast<uint32_t>(key >> 32);
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = uint64_t{0xD2511F53} * c.x[0];
    const uint64_t p1 = uint64_t{0xCD9E8D57} * c.x[2];
    c = {{static_cast<uint32_t>(p1 >> 32) ^ c.x[1] ^ k0, static_cast<uint32_t>(p1),
          static_cast<uint32_t>(p0 >> 32) ^ c.x[3] ^ k1, static_cast<uint32_t>(p0)}};
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return c;
}

// (x + 1/2) / 2^32, in (0, 1]: the logarithm of it is finite.
MODGRAD_HD float open_uniform(uint32_t x) {
  return static_cast<float>(x) * 0x1p-32f + 0x1p-33f;
}

struct Normals4 {
  float z[4];
};

// Standard normals of elements 4 * quad .. 4 * quad + 3 of tensor `tensor` (Box-Muller).
MODGRAD_HD Normals4 normals(uint64_t seed, uint32_t tensor, uint64_t quad) {
  const Block4 words =
      philox({{static_cast<uint32_t>(quad), static_cast<uint32_t>(quad >> 32), tensor, 0}}, seed);
  Normals4 out;
  for (int pair = 0; pair < 2; ++pair) {
    const float r = std::sqrt(-2.0f * std::log(open_uniform(words.x[2 * pair])));
    const float v = 6.283185307179586f * open_uniform(words.x[2 * pair + 1]);
    out.z[2 * pair] = r * std::cos(v);
    out.z[2 * pair + 1] = r * std::sin(v);
  }
  return out;
}

// The normal of one element alone.
MODGRAD_HD float normal(uint64_t seed, uint32_t tensor, uint64_t element) {
  const uint64_t quad = element / 4;
  const Block4 words =
      philox({{static_cast<uint32_t>(quad), static_cast<uint32_t>(quad >> 32), tensor, 0}}, seed);
  const bool second = element % 4 >= 2;
  const float r = std::sqrt(-2.0f * std::log(open_uniform(second ? words.x[2] : words.x[0])));
  const float v = 6.283185307179586f * open_uniform(second ? words.x[3] : words.x[1]);
  return r * (element % 2 == 0 ? std::cos(v) : std::sin(v));
}

// Sums over a tensor of its differences d to a shift, from which the spread follows in one pass.
// The shift (the tensor's first element) keeps the subtraction below from cancelling.
struct Spread {
  double sum = 0, squares = 0;
};

// Standard deviation with n - 1; a single element has none.
MODGRAD_HD double standard_deviation(Spread s, int64_t n) {
  if (n < 2) return 0;
  const double variance = (s.squares - s.sum * s.sum / static_cast<double>(n)) / static_cast<double>(n - 1);
  return std::sqrt(variance > 0 || variance != variance ? variance : 0.0);
}

}  // namespace modgrad
