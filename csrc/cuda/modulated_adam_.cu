// Adam and AdamW with the weight of each parameter's group folded in: a launch over the tensors, which counts
// the step, and one over their elements.
#include "modulated_adam_.cuh"
#include "update.cuh"

namespace modgrad {
namespace {

// One thread a tensor. The only one that touches the step, so that no block of the update meets it half counted.
template <int kCapacity>
__global__ void __launch_bounds__(kThreads)
    adam_tensors_kernel(const __grid_constant__ UpdateList<kCapacity> list, const DeviceOptions options,
                        const AdamOptions o, AdamTensor* tensors) {
  const int t = static_cast<int>(blockIdx.x * kThreads + threadIdx.x);
  if (t >= list.size || is_skipped(options)) return;
  const int64_t index = list.first_tensor + t;
  const Weighted w = weighted(options, list.group[t], index);
  const float step = *list.step[t] + 1;
  *list.step[t] = step;
  tensors[index] = {w.gradient, w.noise,
                    adam<double>(w.rate, o.beta1, o.beta2, o.eps, o.weight_decay, o.decoupled,
                                 bias(o.beta1, o.beta2, step))};
}

// For float64 the numbers stay in memory: they would take 16 of 64 registers.
template <typename W>
__device__ __forceinline__ decltype(auto) rounded(const Adam<double>& a) {
  if constexpr (sizeof(W) == sizeof(double))
    return (a);
  else
    return Adam<W>{static_cast<W>(a.step_size), static_cast<W>(a.kept),  static_cast<W>(a.weight_decay),
                   static_cast<W>(a.new1),      static_cast<W>(a.beta2), static_cast<W>(a.new2),
                   static_cast<W>(a.unbias),    static_cast<W>(a.eps)};
}

// Four blocks: 64 registers. Three, so 80, for what would spill on sm_100: float64, and noise on 8 bfloat16.
template <bool kNoise, typename T, typename S, int kCapacity>
__global__ void __launch_bounds__(kThreads, kNoise || sizeof(T) == 8 ? 3 : 4)
    modulated_adam_kernel(const __grid_constant__ UpdateList<kCapacity> list, const DeviceOptions options,
                          bool amsgrad, const AdamTensor* tensors) {
  using W = wide_t<T>;
  if (is_skipped(options)) return;
  const int chunks = static_cast<int>(list.num_chunks());
  for (int c = blockIdx.x; c < chunks; c += gridDim.x) {
    const TensorChunk chunk = find_chunk(list, list.first_chunk[0] + c);
    const int t = chunk.tensor;
    if (!has_types<T, S>(list, t)) continue;
    const AdamTensor& tensor = tensors[list.first_tensor + t];
    const Adam<W>& a = rounded<W>(tensor.adam);
    const Modulation<W> m = modulation<W>(list, t, options, tensor.gradient, tensor.noise);
    const bool measured = options.squares != nullptr && list.group[t] >= 0;
    Squares squares;
    if (amsgrad)
      squares = ChunkUpdate<kNoise, T, S, 3>(list, chunk, m, true, measured)([&](W x, W& p, W(&s)[3]) {
        s[2] = larger(s[2], adam_moments(a, x, p, s[0], s[1]));
        adam_parameter(a, p, s[0], s[2]);
      });
    else
      squares = ChunkUpdate<kNoise, T, S, 2>(list, chunk, m, true, measured)([&](W x, W& p, W(&s)[2]) {
        adam_moments(a, x, p, s[0], s[1]);
        adam_parameter(a, p, s[0], s[1]);
      });
    if (measured) store_squares(options, list.first_chunk[0] + c, squares);
  }
}

}  // namespace

cudaError_t launch_modulated_adam_(std::vector<UpdateRef> updates, const DeviceOptions& options,
                                   const AdamOptions& adam, AdamTensor* tensors, cudaStream_t stream) {
  sort_for_norms(updates, options);
  cudaError_t error = launch_spread(updates, options, stream);
  if (error != cudaSuccess) return error;
  error = for_each_list(updates, [&](const auto& list) {
    const unsigned tensor_blocks = (list.size + kThreads - 1) / kThreads;
    adam_tensors_kernel<<<tensor_blocks, kThreads, 0, stream>>>(list, options, adam, tensors);
    if (const cudaError_t error = cudaGetLastError(); error != cudaSuccess) return error;
    if (list.num_chunks() == 0) return cudaSuccess;
    const unsigned blocks = num_blocks(list.num_chunks());
    return for_each_types(list, [&](auto type, auto state) {
      using T = decltype(type);
      using S = decltype(state);
      if (options.noise == nullptr)
        modulated_adam_kernel<false, T, S><<<blocks, kThreads, 0, stream>>>(list, options, adam.amsgrad, tensors);
      else
        modulated_adam_kernel<true, T, S><<<blocks, kThreads, 0, stream>>>(list, options, adam.amsgrad, tensors);
      return cudaGetLastError();
    });
  });
  return error != cudaSuccess ? error : launch_norms(updates, options, stream);
}

}  // namespace modgrad
