// Mean probability of the true class per modality: one pass over the logits, then one over a number a row, in one
// launch with a barrier of all blocks, or in two.
#include <cooperative_groups.h>

#include "modality_scores.cuh"
#include "softmax.cuh"

namespace modgrad {
namespace {

// softmax(x)[target] by kRowThreads threads, all of which get it. NaN and infinities come out as in torch.
template <int kRowThreads, typename T>
__device__ __forceinline__ double probability(const T* x, int64_t num_classes, int64_t target, int thread) {
  const auto e = exponentials<kRowThreads>(x, num_classes, thread);
  return static_cast<double>(exp_difference(widen(x[target]), e.largest) / e.sum);
}

// The block's share of the rows, one warp a row, or one block a row. A target outside [0, C) makes the row NaN and
// reads nothing.
template <int kRowThreads, int kCapacity>
__device__ __forceinline__ void measure_rows(const TensorList<kCapacity>& list, const int64_t* targets,
                                             int64_t num_rows, double* probabilities) {
  constexpr int kRows = kThreads / kRowThreads;
  const int thread = static_cast<int>(threadIdx.x % kRowThreads);
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kRows + threadIdx.x / kRowThreads;
  const int64_t step = static_cast<int64_t>(gridDim.x) * kRows;
  for (int64_t row = first; row < list.size * num_rows; row += step) {
    const int m = static_cast<int>(row / num_rows);
    const int64_t b = row - m * num_rows, num_classes = list.numel[m] / num_rows, target = targets[b];
    double p = NAN;
    if (target >= 0 && target < num_classes) {
      with_type(list.dtype[m], [&](auto type) {
        using T = decltype(type);
        p = probability<kRowThreads>(static_cast<const T*>(list.in[m]) + b * num_classes, num_classes, target,
                                     thread);
      });
    }
    if (thread == 0) probabilities[list.first_tensor * num_rows + row] = p;
  }
}

// The block's share of the modalities.
__device__ __forceinline__ void write_means(const double* probabilities, int64_t num_modalities, int64_t num_rows,
                                            float* scores) {
  for (int64_t m = blockIdx.x; m < num_modalities; m += gridDim.x) {
    double sum = 0;
#pragma unroll 4
    for (int64_t b = threadIdx.x; b < num_rows; b += kThreads) sum += probabilities[m * num_rows + b];
    sum = reduce<kThreads>(sum, Add());
    if (threadIdx.x == 0) scores[m] = static_cast<float>(sum / static_cast<double>(num_rows));
  }
}

template <int kRowThreads, int kCapacity>
__global__ void __launch_bounds__(kThreads)
    score_rows_kernel(const __grid_constant__ TensorList<kCapacity> list, const int64_t* targets, int64_t num_rows,
                      double* probabilities) {
  measure_rows<kRowThreads>(list, targets, num_rows, probabilities);
}

__global__ void __launch_bounds__(kThreads)
    score_means_kernel(const double* probabilities, int64_t num_modalities, int64_t num_rows, float* scores) {
  write_means(probabilities, num_modalities, num_rows, scores);
}

// Both at once. Four blocks: 64 registers.
template <int kRowThreads>
__global__ void __launch_bounds__(kThreads, 4)
    modality_scores_kernel(const __grid_constant__ TensorList<kFewTensors> list, const int64_t* targets,
                           int64_t num_rows, double* probabilities, float* scores) {
  measure_rows<kRowThreads>(list, targets, num_rows, probabilities);
  cooperative_groups::this_grid().sync();
  write_means(probabilities, list.size, num_rows, scores);
}

}  // namespace

cudaError_t launch_modality_scores(const std::vector<TensorRef>& logits, const int64_t* targets,
                                   int64_t num_rows, double* probabilities, float* scores, int32_t device,
                                   cudaStream_t stream) {
  if (logits.empty() || num_rows == 0) return cudaSuccess;
  const bool wide = takes_blocks(logits, num_rows);
  if (is_for_one_launch(logits)) {
    const auto list = make_list<TensorList<kFewTensors>>(logits, kFewTensors, 0, 0);
    const auto kernel = wide ? &modality_scores_kernel<kThreads> : &modality_scores_kernel<kWarp>;
    const cudaError_t error = launch_together(kernel, blocks_of_rows(list.size * num_rows, wide), device, stream, list,
                                              targets, num_rows, probabilities, scores);
    if (error != cudaErrorCooperativeLaunchTooLarge) return error;
  }
  const cudaError_t error = for_each_list(logits, [&](const auto& list) {
    const unsigned blocks = num_blocks(blocks_of_rows(list.size * num_rows, wide));
    if (wide)
      score_rows_kernel<kThreads><<<blocks, kThreads, 0, stream>>>(list, targets, num_rows, probabilities);
    else
      score_rows_kernel<kWarp><<<blocks, kThreads, 0, stream>>>(list, targets, num_rows, probabilities);
    return cudaGetLastError();
  });
  if (error != cudaSuccess) return error;
  const int64_t num_modalities = static_cast<int64_t>(logits.size());
  score_means_kernel<<<num_blocks(num_modalities), kThreads, 0, stream>>>(probabilities, num_modalities, num_rows,
                                                                          scores);
  return cudaGetLastError();
}

}  // namespace modgrad
