// Adam and AdamW with the weight of each parameter's group folded in: a launch over the tensors, which counts
// the step, and one over their elements; or one for all, and the rule before them.
#include "modulated_adam_.cuh"
#include "update.cuh"
#include "update_at_once.cuh"

namespace modgrad {
namespace {

// What follows from the step of the tensor, which is counted. One thread of the grid touches it, and in another
// launch than the update's, or before a barrier of the grid, so that no block meets it half counted.
__device__ __forceinline__ Bias count_step(float* step, const AdamOptions& o) {
  const float counted = *step + 1;
  *step = counted;
  return bias(o.beta1, o.beta2, counted);
}

__device__ __forceinline__ AdamTensor adam_tensor(const Weighted& w, const AdamOptions& o, const Bias& b) {
  return {w.gradient, w.noise, adam<double>(w.rate, o.beta1, o.beta2, o.eps, o.weight_decay, o.decoupled, b)};
}

// One thread a tensor.
template <int kCapacity>
__global__ void __launch_bounds__(kThreads)
    adam_tensors_kernel(const __grid_constant__ UpdateList<kCapacity> list, const DeviceOptions options,
                        const AdamOptions o, AdamTensor* tensors) {
  const int t = static_cast<int>(blockIdx.x * kThreads + threadIdx.x);
  if (t >= list.size || is_skipped(options)) return;
  const int64_t index = list.first_tensor + t;
  tensors[index] = adam_tensor(weighted(options, list.group[t], index), o, count_step(list.step[t], o));
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

template <bool kNoise, typename T, typename S, int kCapacity>
__device__ __forceinline__ void update_chunk(const UpdateList<kCapacity>& list, const TensorChunk& chunk, int64_t c,
                                             const AdamTensor& tensor, const DeviceOptions& options, bool amsgrad) {
  using W = wide_t<T>;
  const int t = chunk.tensor;
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
  if (measured) store_squares(options, c, squares);
}

// Four blocks: 64 registers. Three, so 80, for what would spill on sm_100: float64, and noise on 8 bfloat16.
template <bool kNoise, typename T, typename S, int kCapacity>
__global__ void __launch_bounds__(kThreads, kNoise || sizeof(T) == 8 ? 3 : 4)
    modulated_adam_kernel(const __grid_constant__ UpdateList<kCapacity> list, const DeviceOptions options,
                          bool amsgrad, const AdamTensor* tensors) {
  if (is_skipped(options)) return;
  for_each_chunk<T, S>(list, [&](const TensorChunk& chunk, int64_t c) {
    update_chunk<kNoise, T, S>(list, chunk, c, tensors[list.first_tensor + chunk.tensor], options, amsgrad);
  });
}

// The last block has the fewest chunks, so it counts. A loop over the threads of the grid costs registers. Three
// blocks where float32 with amsgrad would spill on sm_100 and sm_120.
template <typename T, typename S, int kCapacity>
__global__ void __launch_bounds__(kThreads, sizeof(T) == 4 ? 3 : 4)
    adam_at_once_kernel(const __grid_constant__ UpdateList<kCapacity> list,
                        const __grid_constant__ GroupList<kMostDecided> groups, const WeightsRule rule,
                        const DeviceOptions options, const AdamOptions o, Bias* biases) {
  __shared__ AdamTensor tensor;
  if (is_skipped(options)) return;
  if (blockIdx.x + 1 == gridDim.x)
    for (int t = threadIdx.x; t < list.size; t += kThreads) biases[t] = count_step(list.step[t], o);
  update_at_once<T>(list, groups, rule, options, [&](const TensorChunk& chunk, int c, const DeviceOptions& decided) {
    const int t = chunk.tensor;
    __syncthreads();  // until all threads are done with the last chunk's
    if (threadIdx.x == 0) tensor = adam_tensor(weighted(decided, list.group[t], t), o, biases[t]);
    __syncthreads();
    update_chunk<false, T, S>(list, chunk, c, tensor, decided, o.amsgrad);
  });
}

cudaError_t launch_in_parts(const std::vector<UpdateRef>& updates, const DeviceOptions& options,
                            const std::optional<WeightsRule>& rule, const AdamOptions& adam, AdamTensor* tensors,
                            cudaStream_t stream) {
  cudaError_t error = launch_weights(updates, options, rule, stream);
  if (error == cudaSuccess) error = launch_spread(updates, options, stream);
  if (error != cudaSuccess) return error;
  return for_each_list(updates, [&](const auto& list) {
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
}

}  // namespace

cudaError_t launch_modulated_adam_(std::vector<UpdateRef> updates, const DeviceOptions& options,
                                   const std::optional<WeightsRule>& rule, const AdamOptions& adam,
                                   AdamTensor* tensors, int32_t device, cudaStream_t stream) {
  sort_for_norms(updates, options, rule);
  auto* biases = reinterpret_cast<Bias*>(tensors);  // of the same memory
  static_assert(sizeof(Bias) <= sizeof(AdamTensor));
  cudaError_t error = launch_at_once(updates, options, rule, [&](auto type, auto state, const auto& list,
                                                                 const auto& groups) {
    const auto kernel = &adam_at_once_kernel<decltype(type), decltype(state), std::decay_t<decltype(list)>::kMost>;
    return launch_together(kernel, list.num_chunks(), device, stream, list, groups, *rule, options, adam, biases);
  });
  if (error == cudaErrorCooperativeLaunchTooLarge)
    error = launch_in_parts(updates, options, rule, adam, tensors, stream);
  return error != cudaSuccess ? error : launch_norms(updates, options, stream);
}

}  // namespace modgrad
