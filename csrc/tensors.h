// Checks and access for tensor lists, shared by the CPU kernels and the CUDA bindings. Users meet the
// checks of modgrad/checks.py first; these are the second line, for direct callers of torch.ops.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/Dispatch_v2.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <vector>

#define MODGRAD_DISPATCH_FLOATS(type, name, ...)                                        \
  THO_DISPATCH_V2(type, name, AT_WRAP(__VA_ARGS__), AT_EXPAND(AT_FLOATING_TYPES),       \
                  torch::headeronly::ScalarType::Half, torch::headeronly::ScalarType::BFloat16)

namespace modgrad {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Whether the elements fill one block of memory, in whatever order of dimensions.
inline bool is_dense(const Tensor& tensor) {
  if (tensor.is_contiguous()) return true;
  const auto sizes = tensor.sizes(), strides = tensor.strides();
  std::vector<int64_t> order(sizes.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return strides[a] < strides[b]; });
  int64_t expected = 1;
  for (const int64_t d : order) {
    if (sizes[d] == 1) continue;
    if (strides[d] != expected) return false;
    expected *= sizes[d];
  }
  return true;
}

inline std::vector<int64_t> checked_sizes(const char* name, const std::vector<Tensor>& tensors) {
  STD_TORCH_CHECK(!tensors.empty(), "`", name, "` is empty, allowed: at least one tensor");
  std::vector<int64_t> sizes;
  sizes.reserve(tensors.size());
  for (size_t t = 0; t < tensors.size(); ++t) {
    const ScalarType dtype = tensors[t].scalar_type();
    STD_TORCH_CHECK(dtype == ScalarType::Float || dtype == ScalarType::Double || dtype == ScalarType::Half ||
                        dtype == ScalarType::BFloat16,
                    "`", name, "[", t, "]` is not floating-point");
    STD_TORCH_CHECK(is_dense(tensors[t]), "`", name, "[", t, "]` has gaps or overlaps in memory, allowed: dense");
    sizes.push_back(tensors[t].numel());
  }
  return sizes;
}

inline void check_group(const std::vector<int64_t>& group, size_t num_tensors, int64_t num_groups) {
  STD_TORCH_CHECK(group.size() == num_tensors, "`group` has ", group.size(), " entries, allowed: ", num_tensors);
  for (size_t t = 0; t < group.size(); ++t)
    STD_TORCH_CHECK(group[t] >= 0 && group[t] < num_groups, "`group[", t, "]` is ", group[t], ", outside [0, ",
                    num_groups, ")");
}

inline void check_vector(const char* name, const Tensor& tensor, ScalarType dtype, int64_t size) {
  STD_TORCH_CHECK(tensor.numel() == size && tensor.is_contiguous() && tensor.scalar_type() == dtype, "`", name,
                  "` has ", tensor.numel(), " elements, allowed: ", size, ", contiguous, float32 (int64 for seeds)");
}

}  // namespace modgrad
