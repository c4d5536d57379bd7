// Squared norms, weights by a rule, and scaled gradients: in one launch with a barrier of all blocks, or in the
// launches of the three parts.
#include <cooperative_groups.h>

#include <limits>

#include "balance_.cuh"
#include "cooperative.cuh"
#include "deciding.cuh"
#include "group_sq_norms.cuh"
#include "modulate_.cuh"
#include "rule_weights.cuh"
#include "scale.cuh"

namespace modgrad {
namespace {

// Tensors sorted by group, 17 bytes each: more of them in one launch than a TensorList has.
template <int kCapacity>
struct BalanceList {
  static constexpr int kMost = kCapacity;
  void* x[kCapacity];
  uint32_t numel[kCapacity];
  int32_t first_chunk[kCapacity + 1];
  int32_t size;
  uint8_t group_and_dtype[kCapacity];
  GroupList<kMostDecided> groups;

  explicit BalanceList(const std::vector<TensorRef>& sorted, int64_t num_groups)
      : size(static_cast<int32_t>(sorted.size())),
        groups(group_list<kMostDecided>(first_chunks(sorted, num_groups), 0)) {
    first_chunk[0] = 0;
    for (int t = 0; t < size; ++t) {
      x[t] = sorted[t].out;
      numel[t] = static_cast<uint32_t>(sorted[t].numel);
      first_chunk[t + 1] = first_chunk[t] + static_cast<int32_t>(count_chunks(sorted[t].numel));
      group_and_dtype[t] = static_cast<uint8_t>(4 * sorted[t].group + static_cast<int>(sorted[t].dtype));
    }
  }

  MODGRAD_HD int num_chunks() const { return first_chunk[size]; }
};
constexpr int kMany = 1850;
static_assert(4 * kMostDecided <= 256, "group and dtype in a byte");
static_assert(sizeof(BalanceList<kMany>) + sizeof(Rule) + sizeof(RuleOut) + 64 <= 32764,
              "list and further arguments pass the limit");

// Calls f(x, n, group) on the elements of chunk c.
template <int kCapacity, typename F>
__device__ __forceinline__ void with_chunk(const BalanceList<kCapacity>& list, int c, F f) {
  const int t = find_tensor(list.first_chunk, list.size, c), packed = list.group_and_dtype[t];
  const int64_t begin = (c - list.first_chunk[t]) * kChunkElements, left = list.numel[t] - begin;
  with_type(static_cast<Dtype>(packed % 4), [&](auto type) {
    f(static_cast<decltype(type)*>(list.x[t]) + begin, left < kChunkElements ? left : kChunkElements, packed / 4);
  });
}

// After the barrier every block adds the partial sums and decides for itself, which is sooner than to wait for
// one that does. A block takes its chunks in reverse then: those it had last are still in L2.
// Four blocks: 64 registers.
template <int kCapacity>
__global__ void __launch_bounds__(kThreads, 4)
    balance_kernel(const __grid_constant__ BalanceList<kCapacity> list, Rule rule, double* partial, double* gram,
                   const RuleOut out) {
  __shared__ double sums[kMostDecided];
  __shared__ float weights[kMostDecided];
  const int first = static_cast<int>(blockIdx.x), step = static_cast<int>(gridDim.x);
  int c = first;
  for (; c < list.num_chunks(); c += step) {
    double sum = 0;
    with_chunk(list, c, [&](const auto* x, int64_t n, int) { sum = sum_of_squares(x, n); });
    sum = reduce<kThreads>(sum, Add());
    if (threadIdx.x == 0) partial[c] = sum;
  }
  cooperative_groups::this_grid().sync();
  rule.gram = sums;
  add_and_decide(list.groups, partial, nullptr, rule, sums, weights);
  __syncthreads();
  if (first == 0 && threadIdx.x < list.groups.size) {
    gram[threadIdx.x] = sums[threadIdx.x];
    out.weights[threadIdx.x] = weights[threadIdx.x];
  }
  for (c -= step; c >= 0; c -= step)
    with_chunk(list, c, [&](auto* x, int64_t n, int group) {
      if (weights[group] != 1) scale(x, x, n, weights[group]);
    });
}

cudaError_t launch_in_parts(const std::vector<TensorRef>& sorted, const Rule& rule, double* partial, double* gram,
                            const RuleOut& out, cudaStream_t stream) {
  cudaError_t error = launch_squares(sorted, partial, stream);
  if (error == cudaSuccess) error = launch_sums_and_rule(sorted, rule, partial, nullptr, nullptr, gram, out, stream);
  if (error != cudaSuccess) return error;
  return launch_modulate_(sorted, out.weights, nullptr, nullptr, nullptr, nullptr, stream);
}

// Whether one launch can hold the list, and is worth it.
bool is_for_one_launch(const std::vector<TensorRef>& grads, int64_t num_groups) {
  int64_t total = 0;
  for (const TensorRef& grad : grads) total += grad.numel;
  return num_groups <= kMostDecided && grads.size() <= kMany && total <= std::numeric_limits<uint32_t>::max() &&
         takes_one_launch(total <= kMostAtOnce);
}

}  // namespace

cudaError_t launch_balance_(std::vector<TensorRef> grads, const Rule& rule, double* partial, double* gram,
                            const RuleOut& out, int32_t device, cudaStream_t stream) {
  sort_by_group(grads);
  if (is_for_one_launch(grads, rule.num_modalities)) {
    const auto launch = [&](auto list) {
      const auto kernel = &balance_kernel<decltype(list)::kMost>;
      return launch_together(kernel, list.num_chunks(), device, stream, list, rule, partial, gram, out);
    };
    const cudaError_t error = grads.size() <= kFewTensors
                                  ? launch(BalanceList<kFewTensors>(grads, rule.num_modalities))
                                  : launch(BalanceList<kMany>(grads, rule.num_modalities));
    if (error != cudaErrorCooperativeLaunchTooLarge) return error;
  }
  return launch_in_parts(grads, rule, partial, gram, out, stream);
}

}  // namespace modgrad
