// Cross entropy and score per modality: one pass over the logits, then one over two numbers a row, in one launch with
// a barrier of all blocks, or in two. Probabilities and smoothing take the row a second time, from L2. With a rule
// the second pass ends in weights.
#include <cooperative_groups.h>

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

// What both passes write.
struct Results {
  int64_t num_modalities;
  double* rows;  // [2, M, B]: losses and scores
  double *lse, *mass;
  void* losses;
  bool is_double;
  float* scores;
};

// The block's share of the rows, one warp a row, or one block a row. A class outside [0, C) makes the row NaN; a
// sample left out is not read.
template <int kRowThreads, int kCapacity>
__device__ __forceinline__ void measure_rows(const TensorList<kCapacity>& list, const Targets& targets,
                                             const Results& out) {
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
    out.lse[place] = row.lse;
    out.rows[place] = row.loss;
    out.rows[out.num_modalities * num_rows + place] = row.score;
    if (place < num_rows) out.mass[b] = row.mass;
  }
}

// What divides the sums over the rows.
struct Totals {
  double mass = 0, count = 0;
};

// By a block, all threads of which get it. It reads nothing that another block writes.
__device__ __forceinline__ Totals add_masses(const Targets& targets, int64_t num_classes) {
  const bool weighted = targets.classes != nullptr && targets.class_weights.data != nullptr;
  Totals total;
  for (int64_t b = threadIdx.x; b < targets.num_rows; b += kThreads) {
    if (!targets.counts(b)) continue;
    total.count += 1;
    if (!weighted)
      total.mass += 1;
    else
      total.mass += targets.is_valid(b, num_classes) ? targets.class_weight<double>(targets.classes[b]) : NAN;
  }
  return {reduce<kThreads>(total.mass, Add()), reduce<kThreads>(total.count, Add())};
}

// Modalities first, first + step and so on, by a block. The one with modality 0 writes the total mass.
__device__ __forceinline__ void write_means(const Targets& targets, const Totals& total, int64_t first, int64_t step,
                                            const Results& out) {
  const int64_t num_rows = targets.num_rows;
  if (first == 0 && threadIdx.x == 0) out.mass[num_rows] = total.mass;
  for (int64_t m = first; m < out.num_modalities; m += step) {
    double loss = 0, score = 0;
#pragma unroll 2
    for (int64_t b = threadIdx.x; b < num_rows; b += kThreads) {
      loss += out.rows[m * num_rows + b];
      score += out.rows[(out.num_modalities + m) * num_rows + b];
    }
    loss = reduce<kThreads>(loss, Add());
    score = reduce<kThreads>(score, Add());
    if (threadIdx.x != 0) continue;
    if (out.is_double)
      static_cast<double*>(out.losses)[m] = loss / total.mass;
    else
      static_cast<float*>(out.losses)[m] = static_cast<float>(loss / total.mass);
    out.scores[m] = static_cast<float>(score / total.count);
  }
}

// By the block that wrote all means, where there is a rule. Not by `decide`: the code of rules that read no scores
// takes registers.
__device__ __forceinline__ void write_weights(const Rule& rule, int64_t num_modalities, float* weights) {
  __syncthreads();
  const int64_t num_joint = num_modalities - rule.num_modalities;
  for (int64_t m = threadIdx.x; m < num_joint; m += kThreads) weights[m] = 1;
  for (int64_t m = threadIdx.x; m < rule.num_modalities; m += kThreads)
    weights[num_joint + m] = scores_weight(rule, m);
}

// Four blocks: 64 registers. Left alone, ptxas takes fewer and spills.
template <int kRowThreads, int kCapacity>
__global__ void __launch_bounds__(kThreads, 4)
    cross_entropy_rows_kernel(const __grid_constant__ TensorList<kCapacity> list, const Targets targets,
                              const Results out) {
  measure_rows<kRowThreads>(list, targets, out);
}

// With a rule there is one block, which has all scores when it decides. Left alone, ptxas takes 40 registers and
// spills.
__global__ void __launch_bounds__(kThreads, 4)
    cross_entropy_means_kernel(const Targets targets, int64_t num_classes, const Results out, const Rule rule,
                               float* weights) {
  write_means(targets, add_masses(targets, num_classes), blockIdx.x, gridDim.x, out);
  if (rule.num_modalities > 0) write_weights(rule, out.num_modalities, weights);
}

// Both at once. With a rule one block forms all means, else a block each. Three blocks, 80 registers: held to 64 it
// spills, and inputs small enough for one launch seldom fill a fourth.
template <int kRowThreads>
__global__ void __launch_bounds__(kThreads, 3)
    cross_entropy_kernel(const __grid_constant__ TensorList<kFewTensors> list, const Targets targets,
                         int64_t num_classes, const Results out, const Rule rule, float* weights) {
  const bool decides = rule.num_modalities > 0, goes_on = decides ? blockIdx.x == 0 : blockIdx.x < list.size;
  Totals total;
  if (goes_on) total = add_masses(targets, num_classes);
  measure_rows<kRowThreads>(list, targets, out);
  cooperative_groups::this_grid().sync();
  if (!goes_on) return;
  write_means(targets, total, blockIdx.x, decides ? 1 : gridDim.x, out);
  if (decides) write_weights(rule, out.num_modalities, weights);
}

}  // namespace

cudaError_t launch_modality_cross_entropy(const std::vector<TensorRef>& logits, const Targets& targets,
                                          double* rows, double* lse, double* mass, void* losses, float* scores,
                                          std::optional<Rule> rule, float* weights, int32_t device,
                                          cudaStream_t stream) {
  const int64_t num_rows = targets.num_rows, num_modalities = static_cast<int64_t>(logits.size());
  const int64_t num_classes = logits[0].numel / num_rows;
  const bool wide = takes_blocks(logits, num_rows);
  const bool is_double = std::any_of(logits.begin(), logits.end(),
                                     [](const TensorRef& x) { return x.dtype == Dtype::kDouble; });
  const Results out = {num_modalities, rows, lse, mass, losses, is_double, scores};
  if (rule.has_value()) rule->scores = scores + num_modalities - rule->num_modalities;
  if (is_for_one_launch(logits)) {
    const auto list = make_list<TensorList<kFewTensors>>(logits, kFewTensors, 0, 0);
    const auto kernel = wide ? &cross_entropy_kernel<kThreads> : &cross_entropy_kernel<kWarp>;
    const cudaError_t error = launch_together(kernel, blocks_of_rows(list.size * num_rows, wide), device, stream, list,
                                              targets, num_classes, out, rule.value_or(Rule()), weights);
    if (error != cudaErrorCooperativeLaunchTooLarge) return error;
  }
  const cudaError_t error = for_each_list(logits, [&](const auto& list) {
    const unsigned blocks = num_blocks(blocks_of_rows(list.size * num_rows, wide));
    if (wide)
      cross_entropy_rows_kernel<kThreads><<<blocks, kThreads, 0, stream>>>(list, targets, out);
    else
      cross_entropy_rows_kernel<kWarp><<<blocks, kThreads, 0, stream>>>(list, targets, out);
    return cudaGetLastError();
  });
  if (error != cudaSuccess) return error;
  cross_entropy_means_kernel<<<rule.has_value() ? 1 : num_blocks(num_modalities), kThreads, 0, stream>>>(
      targets, num_classes, out, rule.value_or(Rule()), weights);
  return cudaGetLastError();
}

}  // namespace modgrad
