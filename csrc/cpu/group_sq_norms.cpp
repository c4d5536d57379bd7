// Sums of squares per group: one pass, float64, one partial sum a chunk, added in the order of chunks.
#include "half.h"
#include "ops.h"
#include "parallel.h"
#include "squares.h"

namespace modgrad {
namespace {

// Independent sums, so that additions overlap and vectorise: 32 take 0.55 times as long as 16 in the cache.
constexpr int64_t kLanes = 32;

// Cache lines asked for ahead of their turn: reading from memory takes 0.83 times as long with 8 KiB of float32.
constexpr int64_t kAhead = 2048;

template <typename T>
inline __attribute__((always_inline)) double sum_of_squares(const T* x, int64_t n) {
  double lanes[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    for (int64_t j = 0; j < kLanes; j += kCacheLine / static_cast<int64_t>(sizeof(T))) prefetch(x + i + kAhead + j);
    for (int64_t j = 0; j < kLanes; ++j) {
      const double v = static_cast<double>(x[i + j]);
      lanes[j] += v * v;
    }
  }
  for (; i < n; ++i) lanes[i % kLanes] += static_cast<double>(x[i]) * static_cast<double>(x[i]);
  double sum = 0;
  for (const double lane : lanes) sum += lane;
  return sum;
}

}  // namespace

using torch::headeronly::BFloat16;
using torch::headeronly::Half;

MODGRAD_CLONES double squares(const float* x, int64_t n) { return sum_of_squares(x, n); }
MODGRAD_CLONES double squares(const double* x, int64_t n) { return sum_of_squares(x, n); }
MODGRAD_CLONES double squares(const BFloat16* x, int64_t n) { return sum_of_squares(x, n); }
double squares(const Half* x, int64_t n) {
  float block[kHalfBlock];
  double sum = 0;
  for (int64_t begin = 0; begin < n; begin += kHalfBlock) {
    const int64_t size = std::min(kHalfBlock, n - begin);
    widen(x + begin, block, size);
    sum += squares(block, size);
  }
  return sum;
}

Tensor group_sq_norms(const std::vector<Array>& arrays, const std::vector<int64_t>& group, int64_t num_groups) {
  check_group(group, arrays.size(), num_groups);
  const Plan plan = make_plan(sizes_of(arrays));
  std::vector<double> partial(plan.chunks.size());
  for_each_chunk(plan, [&](int64_t c, const Chunk& chunk) {
    const Array& array = arrays[chunk.tensor];
    MODGRAD_DISPATCH_FLOATS(array.dtype, "group_sq_norms", [&] {
      partial[c] = squares(static_cast<const scalar_t*>(array.data) + chunk.begin, chunk.size);
    });
  });
  Tensor out = torch::stable::empty({num_groups}, ScalarType::Double);
  double* sums = out.mutable_data_ptr<double>();
  std::fill(sums, sums + num_groups, 0.0);
  for (size_t c = 0; c < partial.size(); ++c) sums[group[plan.chunks[c].tensor]] += partial[c];
  return out;
}

namespace {

Tensor of_tensors(const HandleList& handles, const std::vector<int64_t>& group, int64_t num_groups) {
  const Handles tensors("tensors", handles);
  STD_TORCH_CHECK(tensors.size() > 0, "`tensors` is empty, allowed: at least one tensor");
  return group_sq_norms(dense_arrays(tensors), group, num_groups);
}

}  // namespace
}  // namespace modgrad

STABLE_TORCH_LIBRARY_IMPL(modgrad_native, CPU, m) {
  m.impl("group_sq_norms", TORCH_BOX(&modgrad::of_tensors));
}
