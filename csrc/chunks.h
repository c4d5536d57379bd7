// Chunks of tensors: how many, and which tensor one belongs to.
#pragma once

#include "math.h"

namespace modgrad {

// Elements a block takes at a time. 64 KiB of float32 is some 8 us of one of 528 resident blocks at 4 TB/s,
// well over what starting a block costs. A multiple of 8: a chunk is aligned as its tensor is and splits no
// quad of normals.
constexpr int64_t kChunkElements = 16384;

MODGRAD_HD int64_t count_chunks(int64_t numel) { return (numel + kChunkElements - 1) / kChunkElements; }

// The last of `size` tensors whose first chunk is not after `chunk`: a tensor without chunks is never it.
template <typename Index>
MODGRAD_HD int find_tensor(const Index* first_chunk, int size, int64_t chunk) {
  int low = 0, high = size;
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    if (first_chunk[middle] <= chunk)
      low = middle;
    else
      high = middle;
  }
  return low;
}

}  // namespace modgrad
