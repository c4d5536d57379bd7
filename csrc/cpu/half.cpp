#include "half.h"

#include "parallel.h"

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define MODGRAD_F16C 1
#include <immintrin.h>
#endif

namespace modgrad {
namespace {

using torch::headeronly::Half;

void widen_each(const Half* x, float* out, int64_t n) {
  for (int64_t i = 0; i < n; ++i) out[i] = static_cast<float>(x[i]);
}

void narrow_each(const float* x, Half* out, int64_t n) {
  for (int64_t i = 0; i < n; ++i) out[i] = static_cast<Half>(x[i]);
}

#ifdef MODGRAD_F16C
#define MODGRAD_V3 __attribute__((target("arch=x86-64-v3")))

const bool kHasF16c = __builtin_cpu_supports("x86-64-v3");

MODGRAD_V3 void widen_v3(const Half* x, float* out, int64_t n) {
  int64_t i = 0;
  for (; i + 32 <= n; i += 32) {
    prefetch(x + i + kHalfBlock);  // of the next block: what follows works on the cache alone
    for (int64_t j = i; j < i + 32; j += 8)
      _mm256_storeu_ps(out + j, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(x + j))));
  }
  widen_each(x + i, out + i, n - i);
}

MODGRAD_V3 void narrow_v3(const float* x, Half* out, int64_t n) {
  int64_t i = 0;
  for (; i + 8 <= n; i += 8)
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out + i),
                     _mm256_cvtps_ph(_mm256_loadu_ps(x + i), _MM_FROUND_TO_NEAREST_INT));
  narrow_each(x + i, out + i, n - i);
}
#endif

}  // namespace

#ifdef MODGRAD_F16C
void widen(const Half* x, float* out, int64_t n) { (kHasF16c ? widen_v3 : widen_each)(x, out, n); }
void narrow(const float* x, Half* out, int64_t n) { (kHasF16c ? narrow_v3 : narrow_each)(x, out, n); }
#else
void widen(const Half* x, float* out, int64_t n) { widen_each(x, out, n); }
void narrow(const float* x, Half* out, int64_t n) { narrow_each(x, out, n); }
#endif

}  // namespace modgrad
