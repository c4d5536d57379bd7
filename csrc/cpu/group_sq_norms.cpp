// Sums of squares per group: one pass, float64, one partial sum a chunk, added in the order of chunks.
#include "ops.h"
#include "parallel.h"
#include "squares.h"

namespace modgrad {
namespace {

template <typename T>
inline __attribute__((always_inline)) double sum_of_squares(const T* x, int64_t n) {
  constexpr int64_t kLanes = 16;  // independent sums, so that additions overlap and vectorise
  double lanes[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes)
    for (int64_t j = 0; j < kLanes; ++j) {
      const double v = static_cast<double>(x[i + j]);
      lanes[j] += v * v;
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
MODGRAD_CLONES double squares(const Half* x, int64_t n) { return sum_of_squares(x, n); }
MODGRAD_CLONES double squares(const BFloat16* x, int64_t n) { return sum_of_squares(x, n); }

Tensor group_sq_norms(const std::vector<Tensor>& tensors, const std::vector<int64_t>& group, int64_t num_groups) {
  const Plan plan = make_plan(checked_sizes("tensors", tensors));
  check_group(group, tensors.size(), num_groups);
  std::vector<double> partial(plan.chunks.size());
  for_each_chunk(plan, [&](int64_t c, const Chunk& chunk) {
    const Tensor& tensor = tensors[chunk.tensor];
    MODGRAD_DISPATCH_FLOATS(tensor.scalar_type(), "group_sq_norms", [&] {
      partial[c] = squares(tensor.const_data_ptr<scalar_t>() + chunk.begin, chunk.size);
    });
  });
  Tensor out = torch::stable::new_empty(tensors[0], {num_groups}, ScalarType::Double);
  double* sums = out.mutable_data_ptr<double>();
  std::fill(sums, sums + num_groups, 0.0);
  for (size_t c = 0; c < partial.size(); ++c) sums[group[plan.chunks[c].tensor]] += partial[c];
  return out;
}

}  // namespace modgrad

STABLE_TORCH_LIBRARY_IMPL(modgrad_native, CPU, m) {
  m.impl("group_sq_norms", TORCH_BOX(&modgrad::group_sq_norms));
}
