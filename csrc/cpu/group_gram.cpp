// Inner products of the gradients of several losses per group: float64, one partial sum a chunk and pair of
// losses, added in the order of chunks. Memory is read once: the K gradients of a chunk are 64 KiB of float32
// each, and stay in the L2 cache until all pairs are done.
#include "ops.h"
#include "parallel.h"

namespace modgrad {
namespace {

using torch::headeronly::BFloat16;
using torch::headeronly::Half;

template <int64_t kLanes>
inline __attribute__((always_inline)) double add_lanes(const double (&lanes)[kLanes]) {
  double sum = 0;
  for (const double lane : lanes) sum += lane;
  return sum;
}

template <typename T>
inline __attribute__((always_inline)) double inner_product(const T* x, const T* y, int64_t n) {
  constexpr int64_t kLanes = 16;  // independent sums, so that additions overlap and vectorise
  double lanes[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes)
    for (int64_t j = 0; j < kLanes; ++j)
      lanes[j] += static_cast<double>(x[i + j]) * static_cast<double>(y[i + j]);
  for (; i < n; ++i) lanes[i % kLanes] += static_cast<double>(x[i]) * static_cast<double>(y[i]);
  return add_lanes(lanes);
}

struct PairProducts {
  double xx, xy, yy;
};

// All products of two gradients: each element is loaded and widened once, not twice. Lanes are those with
// which GCC 12 was fastest: 16 of float64 take 2.9 times as long as 8, 8 of float16 2.8 times as long as 16.
template <typename T>
inline __attribute__((always_inline)) PairProducts products_of_pair(const T* x, const T* y, int64_t n) {
  constexpr int64_t kLanes = sizeof(T) == 2 ? 16 : 8;
  double xx[kLanes] = {}, xy[kLanes] = {}, yy[kLanes] = {};
  const auto add = [&](int64_t i, int64_t lane) __attribute__((always_inline)) {
    const double u = static_cast<double>(x[i]), v = static_cast<double>(y[i]);
    xx[lane] += u * u;
    xy[lane] += u * v;
    yy[lane] += v * v;
  };
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes)
    for (int64_t j = 0; j < kLanes; ++j) add(i + j, j);
  for (; i < n; ++i) add(i, i % kLanes);
  return {add_lanes(xx), add_lanes(xy), add_lanes(yy)};
}

MODGRAD_CLONES double product(const float* x, const float* y, int64_t n) {
  return inner_product(x, y, n);
}
MODGRAD_CLONES double product(const double* x, const double* y, int64_t n) {
  return inner_product(x, y, n);
}
MODGRAD_CLONES double product(const Half* x, const Half* y, int64_t n) {
  return inner_product(x, y, n);
}
MODGRAD_CLONES double product(const BFloat16* x, const BFloat16* y, int64_t n) {
  return inner_product(x, y, n);
}

MODGRAD_CLONES PairProducts pair(const float* x, const float* y, int64_t n) {
  return products_of_pair(x, y, n);
}
MODGRAD_CLONES PairProducts pair(const double* x, const double* y, int64_t n) {
  return products_of_pair(x, y, n);
}
MODGRAD_CLONES PairProducts pair(const Half* x, const Half* y, int64_t n) {
  return products_of_pair(x, y, n);
}
MODGRAD_CLONES PairProducts pair(const BFloat16* x, const BFloat16* y, int64_t n) {
  return products_of_pair(x, y, n);
}

// <x(k), x(j)> for all k <= j < n, row by row, where x(k) is the chunk of the k-th gradient: losses two by
// two, so that two losses take one pass.
template <typename At>
void products(At x, int64_t n, int64_t size, double* out) {
  const auto row = [&](int64_t k) { return out + k * n - k * (k - 1) / 2 - k; };  // row(k)[j] is <x(k), x(j)>
  for (int64_t k = 0; k < n; k += 2) {
    if (k + 1 == n) {
      row(k)[k] = product(x(k), x(k), size);
      break;
    }
    const PairProducts both = pair(x(k), x(k + 1), size);
    row(k)[k] = both.xx;
    row(k)[k + 1] = both.xy;
    row(k + 1)[k + 1] = both.yy;
    for (int64_t j = k + 2; j < n; ++j) {
      row(k)[j] = product(x(k), x(j), size);
      row(k + 1)[j] = product(x(k + 1), x(j), size);
    }
  }
}

}  // namespace

Tensor group_gram(const std::vector<Array>& grads, const ByParameter& by, const std::vector<int64_t>& loss,
                  const std::vector<int64_t>& group, int64_t num_groups, int64_t num_losses) {
  const auto count = [&](int64_t p) { return by.first[p + 1] - by.first[p]; };
  std::vector<int64_t> sizes(group.size());
  for (size_t p = 0; p < sizes.size(); ++p)
    if (count(p) > 0) sizes[p] = grads[by.order[by.first[p]]].size;
  const Plan plan = make_plan(sizes, kChunkSize, kStreamingTask / num_losses);
  std::vector<int64_t> first(plan.chunks.size() + 1);  // the first product of each chunk
  for (size_t c = 0; c < plan.chunks.size(); ++c) {
    const int64_t n = count(plan.chunks[c].tensor);
    first[c + 1] = first[c] + n * (n + 1) / 2;
  }
  std::vector<double> partial(first.back());
  for_each_chunk(plan, [&](int64_t c, const Chunk& chunk) {
    const int64_t* order = by.order.data() + by.first[chunk.tensor];
    MODGRAD_DISPATCH_FLOATS(grads[order[0]].dtype, "group_gram", [&] {
      const auto x = [&](int64_t k) { return static_cast<const scalar_t*>(grads[order[k]].data) + chunk.begin; };
      products(x, count(chunk.tensor), chunk.size, partial.data() + first[c]);
    });
  });
  Tensor out = torch::stable::empty({num_groups, num_losses, num_losses}, ScalarType::Double);
  double* gram = out.mutable_data_ptr<double>();
  std::fill(gram, gram + out.numel(), 0.0);
  for (size_t c = 0; c < plan.chunks.size(); ++c) {
    const int64_t p = plan.chunks[c].tensor;
    double* matrix = gram + group[p] * num_losses * num_losses;
    const double* sum = partial.data() + first[c];
    for (int64_t k = by.first[p]; k < by.first[p + 1]; ++k)
      for (int64_t j = k; j < by.first[p + 1]; ++j, ++sum) {
        double& upper = matrix[loss[by.order[k]] * num_losses + loss[by.order[j]]];
        upper += *sum;
        matrix[loss[by.order[j]] * num_losses + loss[by.order[k]]] = upper;
      }
  }
  return out;
}

namespace {

Tensor of_tensors(const HandleList& handles, const std::vector<int64_t>& tensor,
                  const std::vector<int64_t>& loss, const std::vector<int64_t>& group, int64_t num_groups,
                  int64_t num_losses) {
  const Handles grads("grads", handles);
  const ByParameter by = checked_by_parameter(grads, tensor, loss, group, num_groups, num_losses);
  return group_gram(dense_arrays(grads), by, loss, group, num_groups, num_losses);
}

}  // namespace
}  // namespace modgrad

STABLE_TORCH_LIBRARY_IMPL(modgrad_native, CPU, m) { m.impl("group_gram", TORCH_BOX(&modgrad::of_tensors)); }
