// Products of the gradients of several losses, weights by a rule, and weighted sums: in one launch with barriers of all
// blocks.
#include <cooperative_groups.h>

#include "../compact_losses.h"
#include "balance_losses.cuh"
#include "combining.cuh"
#include "cooperative.cuh"
#include "deciding.cuh"
#include "product_sums.cuh"
#include "products.cuh"

namespace modgrad {
namespace {

// Tensors in one launch, parameters and gradients: those of small models in few arguments, and as many as they hold.
constexpr int kSome = 512, kMany = 4992;
// A block decides for all groups, in shared memory.
constexpr int kMostLosses = 8;
static_assert(sizeof(CompactLosses<kMany>) + sizeof(Rule) + sizeof(RuleOut) + 2 * sizeof(double*) <= 32764,
              "list and further arguments pass the limit");

// The gradients of one parameter, from the first element of a chunk on.
template <int kCapacity>
struct Inputs {
  const CompactLosses<kCapacity>& list;
  const LossChunk& chunk;
  const float* weights;  // of the parameter's group
  int count;

  template <typename T>
  __device__ __forceinline__ const T* in(int g) const {
    return static_cast<const T*>(list.tensor(chunk.place + 1 + g)) + chunk.begin;
  }
  __device__ __forceinline__ float weight(int g) const { return weights[list.kinds.loss[chunk.kind][g]]; }
};

// The sums of the products are spread over the blocks; then every block decides for itself. A block takes its chunks
// in reverse in the end: those it had last are still in L2. Two blocks: the rules take 124 registers.
template <int kCapacity>
__global__ void __launch_bounds__(kThreads, 2)
    balance_losses_kernel(const __grid_constant__ CompactLosses<kCapacity> list, Rule rule, double* partial,
                          double* gram, const RuleOut result) {
  __shared__ double warps[kSlots][kWarps];
  __shared__ double scratch[2 * kMostDecided * kMostLosses];
  __shared__ float weights[kMostDecided * kMostLosses], next[kRuleStates * kMostLosses];
  const int first = static_cast<int>(blockIdx.x), step = static_cast<int>(gridDim.x);
  const int thread = static_cast<int>(threadIdx.x);
  int c = first;
  for (; c < list.num_chunks; c += step) {
    const LossChunk chunk = list.find_chunk(c);
    const int count = list.num_losses[chunk.kind];
    const void* in[kTile] = {};
#pragma unroll
    for (int g = 0; g < kTile; ++g)
      if (g < count) in[g] = list.tensor(chunk.place + 1 + g);
    multiply_tile<false>(static_cast<Dtype>(list.dtype[chunk.kind]), in, count, 0, chunk.begin, chunk.size, warps,
                         partial + c, list.num_chunks);
  }
  cooperative_groups::this_grid().sync();
  add_products(list.kinds, true, rule.num_modalities, rule.num_losses, list.num_chunks, partial, gram);
  cooperative_groups::this_grid().sync();
  rule.gram = gram;
  if (thread < rule.num_modalities) decide(rule, thread, {weights, next, scratch});
  __syncthreads();
  if (first == 0) {
    if (thread < rule.num_modalities * rule.num_losses) result.weights[thread] = weights[thread];
    if (rule.states[0] != nullptr && thread < kRuleStates * rule.num_losses) result.next[thread] = next[thread];
  }
  for (c -= step; c >= 0; c -= step) {
    const LossChunk chunk = list.find_chunk(c);
    const Inputs<kCapacity> inputs = {list, chunk, weights + list.kinds.group[chunk.kind] * rule.num_losses,
                                      list.num_losses[chunk.kind]};
    with_type(static_cast<Dtype>(list.dtype[chunk.kind]), [&](auto type) {
      combine(inputs, static_cast<decltype(type)*>(list.tensor(chunk.place)) + chunk.begin, chunk.size);
    });
  }
}
static_assert(kMostDecided * kMostLosses <= kThreads, "a thread a weight");

bool is_worth_one_launch(const LossRefs& losses) {
  int64_t total = 0;
  for (const TensorRef& grad : losses.grads) total += grad.numel;
  return total <= kMostAtOnce;
}

template <int kCapacity>
cudaError_t launch(const LossKinds& kinds, const Rule& rule, double* partial, double* gram, const RuleOut& result,
                   int32_t device, cudaStream_t stream) {
  const CompactLosses<kCapacity> list(kinds);
  return launch_together(&balance_losses_kernel<kCapacity>, list.num_chunks, device, stream, list, rule, partial, gram,
                         result);
}

}  // namespace

cudaError_t launch_balance_losses(const std::vector<TensorRef>& out, const LossRefs& losses, const Rule& rule,
                                  double* partial, double* gram, const RuleOut& result, int32_t device,
                                  cudaStream_t stream) {
  const bool decides = rule.num_modalities <= kMostDecided && rule.num_losses <= kMostLosses;
  if (!decides || !takes_one_launch(is_worth_one_launch(losses))) return cudaErrorCooperativeLaunchTooLarge;
  const LossKinds kinds(out, losses);
  if (CompactLosses<kSome>::holds(kinds)) return launch<kSome>(kinds, rule, partial, gram, result, device, stream);
  if (CompactLosses<kMany>::holds(kinds)) return launch<kMany>(kinds, rule, partial, gram, result, device, stream);
  return cudaErrorCooperativeLaunchTooLarge;
}

}  // namespace modgrad
