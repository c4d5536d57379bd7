// Before and after an update: the weights that it reads, the spread that its noise takes, and the norms that it
// measured.
#include "elements.cuh"
#include "group_list.cuh"
#include "group_sq_norms.cuh"
#include "rule_weights.cuh"
#include "spread.cuh"
#include "update_list.cuh"

namespace modgrad {
namespace {

// One block a group.
template <int kCapacity>
__global__ void __launch_bounds__(kThreads)
    update_norms_kernel(const __grid_constant__ GroupList<kCapacity> list, const DeviceOptions options) {
  if (options.found_inf != nullptr && *options.found_inf != 0) return;
  const int64_t end = list.first_chunk[blockIdx.x + 1];
  Squares sum;
#pragma unroll 4
  for (int64_t c = list.first_chunk[blockIdx.x] + threadIdx.x; c < end; c += kThreads) {
    sum.grad += options.squares[c].grad;
    sum.param += options.squares[c].param;
  }
  sum.grad = reduce<kThreads>(sum.grad, Add());
  sum.param = reduce<kThreads>(sum.param, Add());
  if (threadIdx.x != 0) return;
  const double scale = options.grad_scale != nullptr ? *options.grad_scale : 1;
  double* norm = options.sq_norms + list.first_group + blockIdx.x;
  norm[0] = sum.grad / (scale * scale);
  norm[options.num_groups] = sum.param;
}

}  // namespace

void sort_for_norms(std::vector<UpdateRef>& updates, const DeviceOptions& options,
                    const std::optional<WeightsRule>& rule) {
  if (options.sq_norms != nullptr || rule.has_value()) sort_by_group(updates);
}

cudaError_t launch_weights(const std::vector<UpdateRef>& updates, const DeviceOptions& options,
                           const std::optional<WeightsRule>& rule, cudaStream_t stream) {
  if (!rule.has_value()) return cudaSuccess;
  std::vector<TensorRef> grads;
  grads.reserve(updates.size());
  for (const UpdateRef& u : updates)
    if (u.group >= 0) grads.push_back({u.grad, nullptr, u.numel, u.group, u.dtype});
  const cudaError_t error = launch_squares(grads, rule->partial, stream);
  if (error != cudaSuccess) return error;
  return launch_sums_and_rule(grads, rule->rule, rule->partial, options.grad_scale, options.found_inf, rule->sums,
                              rule->out, stream);
}

cudaError_t launch_spread(const std::vector<UpdateRef>& updates, const DeviceOptions& options, cudaStream_t stream) {
  if (options.noise == nullptr) return cudaSuccess;
  std::vector<TensorRef> grads;
  grads.reserve(updates.size());
  for (const UpdateRef& u : updates) grads.push_back({u.grad, nullptr, u.numel, u.group, u.dtype});
  return launch_deviations(grads, options.noise, options.spread, options.deviation, stream);
}

cudaError_t launch_norms(const std::vector<UpdateRef>& updates, const DeviceOptions& options, cudaStream_t stream) {
  if (options.sq_norms == nullptr) return cudaSuccess;
  return for_each_group_list(updates, options.num_groups, [&](const auto& list) {
    update_norms_kernel<<<list.size, kThreads, 0, stream>>>(list, options);
    return cudaGetLastError();
  });
}

}  // namespace modgrad
