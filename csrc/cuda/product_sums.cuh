// From partial sums of products to a gram.
#pragma once

#include "../same_losses.h"
#include "elements.cuh"

namespace modgrad {

// A block takes a group and pair of losses at a time. The first list sets all sums, the others add to what is there.
template <int kCapacity>
__device__ __forceinline__ void add_products(const SameLossesList<kCapacity>& list, bool first, int64_t num_groups,
                                             int64_t num_losses, int64_t num_chunks, const double* partial,
                                             double* gram) {
  const int64_t pairs = num_losses * num_losses;
  for (int64_t b = blockIdx.x; b < num_groups * pairs; b += gridDim.x) {
    const int64_t group = b / pairs, k = b % pairs / num_losses, j = b % num_losses;
    if (k > j) continue;
    double sum = 0;
    bool found = first;
    for (int i = 0; i < list.size; ++i) {
      if (list.group[i] != group) continue;
      const int row = find_loss(list.loss[i], k), column = find_loss(list.loss[i] + kTile, j);
      if (row < 0 || column < 0) continue;
      found = true;
      const double* slot = partial + (row * kTile + column) * num_chunks;
      const int64_t end = list.first_chunk[i + 1];
#pragma unroll 4
      for (int64_t c = list.first_chunk[i] + threadIdx.x; c < end; c += kThreads) sum += slot[c];
    }
    if (!found) continue;
    sum = reduce<kThreads>(sum, Add());
    if (threadIdx.x != 0) continue;
    double* matrix = gram + group * pairs;
    if (!first) sum += matrix[k * num_losses + j];
    matrix[k * num_losses + j] = sum;
    matrix[j * num_losses + k] = sum;
  }
}

}  // namespace modgrad
