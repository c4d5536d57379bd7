// Cross entropy and score per modality: one pass over the logits, then one over two numbers a row. Probabilities
// and smoothing take the row a second time, from L2. With a rule the second pass ends in weights.
#include "modality_cross_entropy.cuh"
#include "softmax.cuh"

namespace modgrad {
namespace {

struct Row {
  double lse, loss, score, mass;
};

// One sample of one modality by kRowThreads threads, all of which get it.
template <int kRowThreads, typename T>
__device__ __forceinline__ Row measure(const T* x, int64_t num_classes, const Targets& targets, int64_t b,
                                       int thread) {
  using Value = wide_t<T>;
  const auto e = exponentials<kRowThreads>(x, num_classes, thread);
  const double lse = static_cast<double>(e.largest) + log(static_cast<double>(e.sum));
  double dot = 0, mass = 0, score = 0;  // dot: sum of q x, where a class without mass adds nothing
  if (targets.is_spread()) {
    const bool soft = targets.classes == nullptr;
#pragma unroll 2
    for (int64_t c = thread; c < num_classes; c += kRowThreads) {
      const Value value = widen(x[c]), q = targets.spread<Value>(b, c, num_classes);
      if (q != 0) dot += static_cast<double>(q) * static_cast<double>(value);
      mass += static_cast<double>(q);
      if (soft)
        score += static_cast<double>(targets.probabilities.at<Value>(b * num_classes + c) *
                                     (std::exp(value - e.largest) / e.sum));
    }
    dot = reduce<kRowThreads>(dot, Add());
    mass = reduce<kRowThreads>(mass, Add());
    score = reduce<kRowThreads>(score, Add());
  }
  if (targets.classes != nullptr) {
    const Value value = widen(x[targets.classes[b]]);
    const double peak = targets.peak<double>(b);
    if (peak != 0) dot += peak * static_cast<double>(value);
    mass += peak;
    score = static_cast<double>(exp_difference(value, e.largest) / e.sum);
  }
  return {lse, mass * lse - dot, score, mass};
}

// One warp a row, or one block a row. A class outside [0, C) makes the row NaN; a sample left out is not read.
// Four blocks: 64 registers. Left alone, ptxas takes fewer and spills.
template <int kRowThreads, int kCapacity>
__global__ void __launch_bounds__(kThreads, 4)
    cross_entropy_rows_kernel(const __grid_constant__ TensorList<kCapacity> list, Targets targets,
                              int64_t num_modalities, double* rows, double* lse, double* mass) {
  constexpr int kRows = kThreads / kRowThreads;
  const int thread = static_cast<int>(threadIdx.x % kRowThreads);
  const int64_t num_rows = targets.num_rows;
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kRows + threadIdx.x / kRowThreads;
  const int64_t step = static_cast<int64_t>(gridDim.x) * kRows;
  for (int64_t r = first; r < list.size * num_rows; r += step) {
    const int m = static_cast<int>(r / num_rows);
    const int64_t b = r - m * num_rows, num_classes = list.numel[m] / num_rows;
    Row row = {0, 0, 0, 0};
    if (targets.counts(b)) {
      if (targets.is_valid(b, num_classes))
        with_type(list.dtype[m], [&](auto type) {
          using T = decltype(type);
          row = measure<kRowThreads>(static_cast<const T*>(list.in[m]) + b * num_classes, num_classes, targets,
                                     b, thread);
        });
      else
        row = {NAN, NAN, NAN, NAN};
    }
    if (thread != 0) continue;
    const int64_t place = list.first_tensor * num_rows + r;
    lse[place] = row.lse;
    rows[place] = row.loss;
    rows[num_modalities * num_rows + place] = row.score;
    if (place < num_rows) mass[b] = row.mass;
  }
}

// With a rule there is one block, which has all scores when it decides, and registers enough not to spill.
template <bool kDecides>
__global__ void __launch_bounds__(kThreads, kDecides ? 1 : 4)
    cross_entropy_means_kernel(const double* rows, Targets targets, int64_t num_modalities, int64_t num_classes,
                               bool is_double, double* mass, void* losses, float* scores, const Rule rule,
                               float* weights) {
  const int64_t num_rows = targets.num_rows;
  const bool weighted = targets.classes != nullptr && targets.class_weights.data != nullptr;
  double total = 0, count = 0;
  for (int64_t b = threadIdx.x; b < num_rows; b += kThreads) {
    if (!targets.counts(b)) continue;
    count += 1;
    if (!weighted)
      total += 1;
    else
      total += targets.is_valid(b, num_classes) ? targets.class_weight<double>(targets.classes[b]) : NAN;
  }
  total = reduce<kThreads>(total, Add());
  count = reduce<kThreads>(count, Add());
  if (blockIdx.x == 0 && threadIdx.x == 0) mass[num_rows] = total;
  for (int64_t m = blockIdx.x; m < num_modalities; m += gridDim.x) {
    double loss = 0, score = 0;
#pragma unroll 2
    for (int64_t b = threadIdx.x; b < num_rows; b += kThreads) {
      loss += rows[m * num_rows + b];
      score += rows[(num_modalities + m) * num_rows + b];
    }
    loss = reduce<kThreads>(loss, Add());
    score = reduce<kThreads>(score, Add());
    if (threadIdx.x != 0) continue;
    if (is_double)
      static_cast<double*>(losses)[m] = loss / total;
    else
      static_cast<float*>(losses)[m] = static_cast<float>(loss / total);
    scores[m] = static_cast<float>(score / count);
  }
  if constexpr (kDecides) {
    __syncthreads();
    const int64_t num_joint = num_modalities - rule.num_modalities;
    for (int64_t m = threadIdx.x; m < num_joint; m += kThreads) weights[m] = 1;
    for (int64_t m = threadIdx.x; m < rule.num_modalities; m += kThreads)
      decide(rule, m, {weights + num_joint, nullptr, nullptr});
  }
}

}  // namespace

cudaError_t launch_modality_cross_entropy(const std::vector<TensorRef>& logits, const Targets& targets,
                                          double* rows, double* lse, double* mass, void* losses, float* scores,
                                          std::optional<Rule> rule, float* weights, cudaStream_t stream) {
  const int64_t num_rows = targets.num_rows, num_modalities = static_cast<int64_t>(logits.size());
  const bool wide = takes_blocks(logits, num_rows);
  const cudaError_t error = for_each_list(logits, [&](const auto& list) {
    const int64_t rows_per_block = wide ? 1 : kThreads / kWarp;
    const unsigned blocks = num_blocks((list.size * num_rows + rows_per_block - 1) / rows_per_block);
    if (wide)
      cross_entropy_rows_kernel<kThreads>
          <<<blocks, kThreads, 0, stream>>>(list, targets, num_modalities, rows, lse, mass);
    else
      cross_entropy_rows_kernel<kWarp>
          <<<blocks, kThreads, 0, stream>>>(list, targets, num_modalities, rows, lse, mass);
    return cudaGetLastError();
  });
  if (error != cudaSuccess) return error;
  const bool is_double = std::any_of(logits.begin(), logits.end(),
                                     [](const TensorRef& x) { return x.dtype == Dtype::kDouble; });
  const int64_t num_classes = logits[0].numel / num_rows;
  if (rule.has_value()) {
    rule->scores = scores + num_modalities - rule->num_modalities;
    cross_entropy_means_kernel<true><<<1, kThreads, 0, stream>>>(rows, targets, num_modalities, num_classes, is_double,
                                                                 mass, losses, scores, *rule, weights);
  } else {
    const unsigned blocks = num_blocks(num_modalities);
    cross_entropy_means_kernel<false><<<blocks, kThreads, 0, stream>>>(
        rows, targets, num_modalities, num_classes, is_double, mass, losses, scores, Rule(), weights);
  }
  return cudaGetLastError();
}

}  // namespace modgrad
