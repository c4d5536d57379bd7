// An update whose weights follow from its own gradients, in one launch: blocks measure, wait for one another,
// decide and update.
#pragma once

#include <cooperative_groups.h>

#include "cooperative.cuh"
#include "deciding.cuh"
#include "update.cuh"

namespace modgrad {

static_assert(sizeof(UpdateList<UpdateRef::kMost>) + sizeof(GroupList<kMostDecided>) + sizeof(DeviceOptions) +
                      sizeof(WeightsRule) + 64 <= 32764,
              "list, groups, rule and further arguments pass the limit");

// Calls update(chunk, c, options) on the block's chunks, with the weights that it found in the options. All
// gradients are T; those of group -1 come first in the list, and no sum is of them. Every block decides for
// itself, which is sooner than to wait for one that does, and takes its chunks in reverse then: the gradients
// that it had last are still in L2.
template <typename T, int kCapacity, typename Update>
__device__ __forceinline__ void update_at_once(const UpdateList<kCapacity>& list,
                                               const GroupList<kMostDecided>& groups, WeightsRule rule,
                                               DeviceOptions options, const Update& update) {
  __shared__ double sums[kMostDecided];
  __shared__ float weights[kMostDecided];
  const int first = static_cast<int>(blockIdx.x), step = static_cast<int>(gridDim.x);
  const int chunks = static_cast<int>(list.num_chunks());
  int c = first;
  for (; c < chunks; c += step) {
    const TensorChunk chunk = find_chunk(list, c);
    if (list.group[chunk.tensor] < 0) continue;
    const T* grad = static_cast<const T*>(list.grad[chunk.tensor]) + chunk.begin;
    const double sum = reduce<kThreads>(sum_of_squares(grad, chunk.size), Add());
    if (threadIdx.x == 0) rule.partial[c] = sum;
  }
  cooperative_groups::this_grid().sync();
  rule.rule.gram = sums;
  add_and_decide(groups, rule.partial, options.grad_scale, rule.rule, sums, weights);
  __syncthreads();
  if (first == 0 && threadIdx.x < groups.size) rule.out.weights[threadIdx.x] = weights[threadIdx.x];
  options.weights = weights;
  for (c -= step; c >= 0; c -= step) update(find_chunk(list, c), c, options);
}

// Whether one launch can do the update, and is worth it.
inline bool is_for_one_launch(const std::vector<UpdateRef>& updates, const DeviceOptions& options,
                              const std::optional<WeightsRule>& rule) {
  int64_t total = 0;
  for (const UpdateRef& u : updates) {
    total += u.numel;
    if (u.dtype != updates[0].dtype || u.state_dtype != updates[0].state_dtype) return false;
  }
  return rule.has_value() && options.noise == nullptr && rule->rule.num_modalities <= kMostDecided &&
         updates.size() <= UpdateRef::kMost && takes_one_launch(total <= kMostAtOnce);
}

// launch(T{}, S{}, list, groups), or cudaErrorCooperativeLaunchTooLarge. Updates are sorted by group. float64 goes
// in parts: it is rare, two of seven pairs of types to compile, and would spill on sm_120.
template <typename Launch>
cudaError_t launch_at_once(const std::vector<UpdateRef>& updates, const DeviceOptions& options,
                           const std::optional<WeightsRule>& rule, const Launch& launch) {
  if (!is_for_one_launch(updates, options, rule)) return cudaErrorCooperativeLaunchTooLarge;
  const auto groups = group_list<kMostDecided>(first_chunks(updates, rule->rule.num_modalities), 0);
  return for_each_list(updates, [&](const auto& list) {
    return for_each_types(list, [&](auto type, auto state) {
      if constexpr (sizeof(type) == sizeof(double))
        return cudaErrorCooperativeLaunchTooLarge;
      else
        return launch(type, state, list, groups);
    });
  });
}

}  // namespace modgrad
