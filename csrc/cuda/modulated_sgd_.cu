// SGD with the weight of each parameter's group folded in: one pass, and one before it where there is noise.
#include "modulated_sgd_.cuh"
#include "update.cuh"

namespace modgrad {
namespace {

// Four blocks: 64 registers.
template <bool kNoise, typename T, typename S, int kCapacity>
__global__ void __launch_bounds__(kThreads, 4)
    modulated_sgd_kernel(const __grid_constant__ UpdateList<kCapacity> list, const DeviceOptions options,
                         const SgdOptions o) {
  using W = wide_t<T>;
  if (is_skipped(options)) return;
  const int chunks = static_cast<int>(list.num_chunks());
  for (int c = blockIdx.x; c < chunks; c += gridDim.x) {
    const TensorChunk chunk = find_chunk(list, list.first_chunk[0] + c);
    const int t = chunk.tensor;
    if (!has_types<T, S>(list, t)) continue;
    const Weighted w = weighted(options, list.group[t], list.first_tensor + t);
    const Sgd<W> sgd = modgrad::sgd<W>(w.rate, o.momentum, o.dampening, o.weight_decay, o.is_first_step);
    const Modulation<W> m = modulation<W>(list, t, options, w.gradient, w.noise);
    const bool measured = options.squares != nullptr && list.group[t] >= 0;
    Squares squares;
    if (o.has_momentum)
      squares = ChunkUpdate<kNoise, T, S, 1>(list, chunk, m, !o.is_first_step, measured)(
          [&](W x, W& p, W(&s)[1]) {
            if (o.nesterov)
              sgd_element<true>(sgd, x, p, s[0]);
            else
              sgd_element<false>(sgd, x, p, s[0]);
          });
    else
      squares = ChunkUpdate<kNoise, T, S, 0>(list, chunk, m, false, measured)(
          [&](W x, W& p, W(&)[1]) { sgd_element(sgd, x, p); });
    if (measured) store_squares(options, list.first_chunk[0] + c, squares);
  }
}

}  // namespace

cudaError_t launch_modulated_sgd_(std::vector<UpdateRef> updates, const DeviceOptions& options, const SgdOptions& sgd,
                                  cudaStream_t stream) {
  sort_for_norms(updates, options);
  cudaError_t error = launch_spread(updates, options, stream);
  if (error != cudaSuccess) return error;
  error = for_each_list(updates, [&](const auto& list) {
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
  return error != cudaSuccess ? error : launch_norms(updates, options, stream);
}

}  // namespace modgrad
