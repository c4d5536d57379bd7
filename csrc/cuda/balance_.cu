// Squared norms, weights by a rule, and scaled gradients: in one launch with a barrier of all blocks, or in the
// launches of the three parts.
#include <cooperative_groups.h>

#include "../compact_list.h"
#include "balance_.cuh"
#include "cooperative.cuh"
#include "deciding.cuh"
#include "group_sq_norms.cuh"
#include "modulate_.cuh"
#include "rule_weights.cuh"
#include "scale.cuh"

namespace modgrad {
namespace {

// Tensors in one launch: those of small models in few arguments, and as many as the arguments hold.
constexpr int kSome = 512, kMany = 3920;
static_assert(kDtypes * kMostDecided == kMostKinds && static_cast<int>(Dtype::kBFloat16) < kDtypes,
              "kinds of all dtypes, in as many groups as a block decides for");
static_assert(sizeof(CompactList<kMany>) + sizeof(GroupList<kMostDecided>) + sizeof(Rule) + sizeof(RuleOut) +
                      2 * sizeof(double*) <=
                  32764,
              "list and further arguments pass the limit");

// Calls f(x, n, group) on the elements of chunk c.
template <int kCapacity, typename F>
__device__ __forceinline__ void with_chunk(const CompactList<kCapacity>& list, int c, F f) {
  const CompactChunk chunk = list.find_chunk(c);
  with_type(static_cast<Dtype>(chunk.kind % kDtypes), [&](auto type) {
    f(static_cast<decltype(type)*>(chunk.tensor) + chunk.begin, chunk.size, chunk.kind / kDtypes);
  });
}

// After the barrier every block adds the partial sums and decides for itself, which is sooner than to wait for
// one that does. A block takes its chunks in reverse then: those it had last are still in L2.
// Four blocks: 64 registers.
template <int kCapacity>
__global__ void __launch_bounds__(kThreads, 4)
    balance_kernel(const __grid_constant__ CompactList<kCapacity> list,
                   const __grid_constant__ GroupList<kMostDecided> groups, Rule rule, double* partial, double* gram,
                   const RuleOut out) {
  __shared__ double sums[kMostDecided];
  __shared__ float weights[kMostDecided];
  const int first = static_cast<int>(blockIdx.x), step = static_cast<int>(gridDim.x);
  int c = first;
  for (; c < list.num_chunks; c += step) {
    double sum = 0;
    with_chunk(list, c, [&](const auto* x, int64_t n, int) { sum = sum_of_squares(x, n); });
    sum = reduce<kThreads>(sum, Add());
    if (threadIdx.x == 0) partial[c] = sum;
  }
  cooperative_groups::this_grid().sync();
  rule.gram = sums;
  add_and_decide(groups, partial, nullptr, rule, sums, weights);
  __syncthreads();
  if (first == 0 && threadIdx.x < groups.size) {
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
bool is_for_one_launch(const std::vector<TensorRef>& grads, const Span& span, int64_t num_groups) {
  int64_t total = 0;
  for (const TensorRef& grad : grads) total += grad.numel;
  return num_groups <= kMostDecided && span.num_tensors <= kMany && span.fits &&
         takes_one_launch(total <= kMostAtOnce);
}

// Calls launch(list) for the smallest list that holds all tensors.
template <typename Launch>
cudaError_t with_list(const std::vector<TensorRef>& sorted, const Span& span, Launch launch) {
  if (span.num_tensors <= kFewTensors) return launch(CompactList<kFewTensors>(sorted, span));
  if (span.num_tensors <= kSome) return launch(CompactList<kSome>(sorted, span));
  return launch(CompactList<kMany>(sorted, span));
}

}  // namespace

cudaError_t launch_balance_(std::vector<TensorRef> grads, const Rule& rule, double* partial, double* gram,
                            const RuleOut& out, int32_t device, cudaStream_t stream) {
  sort_by_group(grads);
  const Span span = span_of(grads);
  if (is_for_one_launch(grads, span, rule.num_modalities)) {
    const auto groups = group_list<kMostDecided>(first_chunks(grads, rule.num_modalities), 0);
    const cudaError_t error = with_list(grads, span, [&](const auto& list) {
      const auto kernel = &balance_kernel<std::decay_t<decltype(list)>::kMost>;
      return launch_together(kernel, list.num_chunks, device, stream, list, groups, rule, partial, gram, out);
    });
    if (error != cudaErrorCooperativeLaunchTooLarge) return error;
  }
  return launch_in_parts(grads, rule, partial, gram, out, stream);
}

}  // namespace modgrad
