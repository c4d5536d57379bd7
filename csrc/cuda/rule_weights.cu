// Weights by a rule: one block, a thread a modality. Its registers are its own, 124 of them on sm_90: held to 48, as
// ptxas would, it spills.
#include "deciding.cuh"
#include "group_sq_norms.cuh"
#include "rule_weights.cuh"

namespace modgrad {
namespace {

// One block adds so many chunks in the time of a launch.
constexpr int64_t kMostAdded = 4096;

__global__ void __launch_bounds__(kThreads, 1)
    rule_weights_kernel(const Rule rule, const float* found_inf, const RuleOut out) {
  if (found_inf != nullptr && *found_inf != 0) return;
  for (int64_t m = threadIdx.x; m < rule.num_modalities; m += kThreads) decide(rule, m, out);
}

__global__ void __launch_bounds__(kThreads, 1)
    sums_and_rule_kernel(const __grid_constant__ GroupList<kMostDecided> groups, const Rule rule,
                         const double* partial, const float* grad_scale, const float* found_inf, double* sums,
                         float* weights) {
  if (found_inf != nullptr && *found_inf != 0) return;
  add_and_decide(groups, partial, grad_scale, rule, sums, weights);
}

}  // namespace

cudaError_t launch_rule_weights(const Rule& rule, const float* found_inf, const RuleOut& out, cudaStream_t stream) {
  rule_weights_kernel<<<1, kThreads, 0, stream>>>(rule, found_inf, out);
  return cudaGetLastError();
}

cudaError_t launch_sums_and_rule(const std::vector<TensorRef>& sorted, Rule rule, const double* partial,
                                 const float* grad_scale, const float* found_inf, double* sums, const RuleOut& out,
                                 cudaStream_t stream) {
  rule.gram = sums;
  if (rule.num_modalities <= kMostDecided && count_chunks(sorted) <= kMostAdded) {
    const auto groups = group_list<kMostDecided>(first_chunks(sorted, rule.num_modalities), 0);
    sums_and_rule_kernel<<<1, kThreads, 0, stream>>>(groups, rule, partial, grad_scale, found_inf, sums, out.weights);
    return cudaGetLastError();
  }
  const cudaError_t error = launch_sums(sorted, rule.num_modalities, partial, grad_scale, sums, stream);
  return error != cudaSuccess ? error : launch_rule_weights(rule, found_inf, out, stream);
}

}  // namespace modgrad
