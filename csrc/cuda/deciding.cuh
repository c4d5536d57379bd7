// From partial sums of squares to weights, by one block.
#pragma once

#include "../rules.h"
#include "group_list.cuh"
#include "partial_sums.cuh"

namespace modgrad {

// The block adds one group after the other.
constexpr int kMostDecided = 8;

// The sums of the groups go to `sums`, where the rule reads them, and its weights to `weights`. Another thread
// than the one that wrote a weight meets it after a barrier. There is one loss: the code of `decide`, which has
// the rules of several too, would be in every kernel that ends so.
__device__ __forceinline__ void add_and_decide(const GroupList<kMostDecided>& groups, const double* partial,
                                               const float* grad_scale, const Rule& rule, double* sums,
                                               float* weights) {
  for (int g = 0; g < groups.size; ++g) {
    const double sum = add_partials(partial, groups.first_chunk[g], groups.first_chunk[g + 1], grad_scale);
    if (threadIdx.x == 0) sums[g] = sum;
  }
  __syncthreads();
  if (threadIdx.x < groups.size) weights[threadIdx.x] = norms_weight(rule, threadIdx.x);
}

}  // namespace modgrad
