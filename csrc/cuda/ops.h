// The ops that others are made of, on what is checked. Scratch is allocated as `like` is.
#pragma once

#include "../tensors.h"
#include "tensor_list.cuh"

namespace modgrad {

Tensor group_gram(const LossRefs& losses, int64_t num_groups, int64_t num_losses, const Tensor& like);
void combine_(std::vector<TensorRef> out, const LossRefs& losses, const Tensor& weights, const Tensor& like);

}  // namespace modgrad
