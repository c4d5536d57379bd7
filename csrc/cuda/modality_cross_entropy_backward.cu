// Gradients of all modalities' logits, each with its own coefficient: one pass.
#include "modality_cross_entropy_backward.cuh"
#include "softmax.cuh"

namespace modgrad {
namespace {

// coefficient (mass softmax(x) - q) of sample b, by kRowThreads threads.
template <int kRowThreads, typename T>
__device__ __forceinline__ void gradient(const T* x, T* out, int64_t num_classes, const Targets& targets,
                                         int64_t b, double lse, double mass, double coefficient, int thread) {
  using Value = wide_t<T>;
  const Value high = static_cast<Value>(lse), low = static_cast<Value>(lse - high);
  const Value scale = static_cast<Value>(coefficient * mass), factor = static_cast<Value>(coefficient);
  const int64_t true_class = targets.true_class(b);
  const Value peak = targets.peak<Value>(b);
  const bool is_spread = targets.is_spread();
  transform<kRowThreads>(x, out, num_classes, thread, [&](int64_t c, Value value) {
    Value q = c == true_class ? peak : Value(0);
    if (is_spread) q += targets.spread<Value>(b, c, num_classes);
    return scale * std::exp((value - high) - low) - factor * q;
  });
}

// One warp a row, or one block a row. Samples left out get zeros, classes outside [0, C) NaN.
// Two blocks: 128 registers. With 80, for a third, it spills.
template <int kRowThreads, int kCapacity>
__global__ void __launch_bounds__(kThreads, 2)
    cross_entropy_backward_kernel(const __grid_constant__ TensorList<kCapacity> list, Targets targets,
                                  Upstream upstream) {
  constexpr int kRows = kThreads / kRowThreads;
  const int thread = static_cast<int>(threadIdx.x % kRowThreads);
  const int64_t num_rows = targets.num_rows;
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kRows + threadIdx.x / kRowThreads;
  const int64_t step = static_cast<int64_t>(gridDim.x) * kRows;
  for (int64_t r = first; r < list.size * num_rows; r += step) {
    const int i = static_cast<int>(r / num_rows);
    const int64_t b = r - i * num_rows, num_classes = list.numel[i] / num_rows, m = list.group[i];
    with_type(list.dtype[i], [&](auto type) {
      using T = decltype(type);
      T* out = static_cast<T*>(list.out[i]) + b * num_classes;
      if (targets.counts(b) && targets.is_valid(b, num_classes)) {
        gradient<kRowThreads>(static_cast<const T*>(list.in[i]) + b * num_classes, out, num_classes, targets, b,
                              upstream.lse[m * num_rows + b], upstream.mass[b],
                              upstream.coefficient(m, num_rows), thread);
        return;
      }
      const wide_t<T> value = targets.counts(b) ? NAN : 0;
#pragma unroll 4
      for (int64_t c = thread; c < num_classes; c += kRowThreads) narrow(value, out[c]);
    });
  }
}

}  // namespace

cudaError_t launch_modality_cross_entropy_backward(const std::vector<TensorRef>& logits, const Targets& targets,
                                                   const Upstream& upstream, cudaStream_t stream) {
  const int64_t num_rows = targets.num_rows;
  const bool wide = takes_blocks(logits, num_rows);
  return for_each_list(logits, [&](const auto& list) {
    const int64_t rows_per_block = wide ? 1 : kThreads / kWarp;
    const unsigned blocks = num_blocks((list.size * num_rows + rows_per_block - 1) / rows_per_block);
    if (wide)
      cross_entropy_backward_kernel<kThreads><<<blocks, kThreads, 0, stream>>>(list, targets, upstream);
    else
      cross_entropy_backward_kernel<kWarp><<<blocks, kThreads, 0, stream>>>(list, targets, upstream);
    return cudaGetLastError();
  });
}

}  // namespace modgrad
