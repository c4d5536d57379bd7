// Gradients that the same losses have left, and where the partial sums of their products are.
#pragma once

#include "math.h"

namespace modgrad {

constexpr int kTile = 4, kSlots = kTile * kTile;  // the product of row r and column c goes to slot 4 r + c

// Tiles of products, of one group, dtype and the same losses: rows, then columns. A loss that is not there is -1. The
// chunks of entry i are [first_chunk[i], first_chunk[i + 1]).
template <int kCapacity>
struct SameLossesList {
  int64_t first_chunk[kCapacity + 1];
  int32_t loss[kCapacity][2 * kTile];
  int32_t group[kCapacity];
  int32_t size;
};

MODGRAD_HD int find_loss(const int32_t* losses, int64_t loss) {
  for (int i = 0; i < kTile; ++i)
    if (losses[i] == loss) return i;
  return -1;
}

}  // namespace modgrad
