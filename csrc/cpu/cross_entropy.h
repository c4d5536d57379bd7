// What the two directions of modality_cross_entropy share.
#pragma once

#include "../cross_entropy.h"
#include "softmax.h"

namespace modgrad {

inline void check_classes(const Targets& targets, const std::vector<Logits>& logits) {
  if (targets.classes == nullptr) return;
  int64_t fewest = logits[0].num_classes;
  for (const Logits& x : logits) fewest = std::min(fewest, x.num_classes);
  for (int64_t b = 0; b < targets.num_rows; ++b)
    STD_TORCH_CHECK(!targets.counts(b) || targets.is_valid(b, fewest), "`targets[", b, "]` is ", targets.classes[b],
                    ", outside [0, ", fewest, ")");
}

}  // namespace modgrad
