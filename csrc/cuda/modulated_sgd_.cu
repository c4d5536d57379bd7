// SGD with the weight of each parameter's group folded in: one pass, and one before it where there is noise, or a
// rule for the weights.
#include "modulated_sgd_.cuh"
#include "update.cuh"
#include "update_at_once.cuh"

namespace modgrad {
namespace {

template <bool kNoise, typename T, typename S, int kCapacity>
__device__ __forceinline__ void update_chunk(const UpdateList<kCapacity>& list, const TensorChunk& chunk, int64_t c,
                                             const DeviceOptions& options, const SgdOptions& o) {
  using W = wide_t<T>;
  const int t = chunk.tensor;
  const Weighted w = weighted(options, list.group[t], list.first_tensor + t);
  const Sgd<W> sgd = modgrad::sgd<W>(w.rate, o.momentum, o.dampening, o.weight_decay, o.is_first_step);
  const Modulation<W> m = modulation<W>(list, t, options, w.gradient, w.noise);
  const bool measured = options.squares != nullptr && list.group[t] >= 0;
  Squares squares;
  if (o.has_momentum)
    squares = ChunkUpdate<kNoise, T, S, 1>(list, chunk, m, !o.is_first_step, measured)([&](W x, W& p, W(&s)[1]) {
      if (o.nesterov)
        sgd_element<true>(sgd, x, p, s[0]);
      else
        sgd_element<false>(sgd, x, p, s[0]);
    });
  else
    squares = ChunkUpdate<kNoise, T, S, 0>(list, chunk, m, false, measured)(
        [&](W x, W& p, W(&)[1]) { sgd_element(sgd, x, p); });
  if (measured) store_squares(options, c, squares);
}

// Four blocks: 64 registers.
template <bool kNoise, typename T, typename S, int kCapacity>
__global__ void __launch_bounds__(kThreads, 4)
    modulated_sgd_kernel(const __grid_constant__ UpdateList<kCapacity> list, const DeviceOptions options,
                         const SgdOptions o) {
  if (is_skipped(options)) return;
  for_each_chunk<T, S>(list, [&](const TensorChunk& chunk, int64_t c) {
    update_chunk<kNoise, T, S>(list, chunk, c, options, o);
  });
}

template <typename T, typename S, int kCapacity>
__global__ void __launch_bounds__(kThreads, 4)
    sgd_at_once_kernel(const __grid_constant__ UpdateList<kCapacity> list,
                       const __grid_constant__ GroupList<kMostDecided> groups, const WeightsRule rule,
                       const DeviceOptions options, const SgdOptions o) {
  if (is_skipped(options)) return;
  update_at_once<T>(list, groups, rule, options, [&](const TensorChunk& chunk, int c, const DeviceOptions& decided) {
    update_chunk<false, T, S>(list, chunk, c, decided, o);
  });
}

cudaError_t launch_in_parts(const std::vector<UpdateRef>& updates, const DeviceOptions& options,
                            const std::optional<WeightsRule>& rule, const SgdOptions& sgd, cudaStream_t stream) {
  cudaError_t error = launch_weights(updates, options, rule, stream);
  if (error == cudaSuccess) error = launch_spread(updates, options, stream);
  if (error != cudaSuccess) return error;
  return for_each_list(updates, [&](const auto& list) {
    if (list.num_chunks() == 0) return cudaSuccess;
    const unsigned blocks = num_blocks(list.num_chunks());
    return for_each_types(list, [&](auto type, auto state) {
      using T = decltype(type);
      using S = decltype(state);
      if (options.noise == nullptr)
        modulated_sgd_kernel<false, T, S><<<blocks, kThreads, 0, stream>>>(list, options, sgd);
      else
        modulated_sgd_kernel<true, T, S><<<blocks, kThreads, 0, stream>>>(list, options, sgd);
      return cudaGetLastError();
    });
  });
}

}  // namespace

cudaError_t launch_modulated_sgd_(std::vector<UpdateRef> updates, const DeviceOptions& options,
                                  const std::optional<WeightsRule>& rule, const SgdOptions& sgd, int32_t device,
                                  cudaStream_t stream) {
  sort_for_norms(updates, options, rule);
  cudaError_t error = launch_at_once(updates, options, rule, [&](auto type, auto state, const auto& list,
                                                                 const auto& groups) {
    const auto kernel = &sgd_at_once_kernel<decltype(type), decltype(state), std::decay_t<decltype(list)>::kMost>;
    return launch_together(kernel, list.num_chunks(), device, stream, list, groups, *rule, options, sgd);
  });
  if (error == cudaErrorCooperativeLaunchTooLarge) error = launch_in_parts(updates, options, rule, sgd, stream);
  return error != cudaSuccess ? error : launch_norms(updates, options, stream);
}

}  // namespace modgrad
