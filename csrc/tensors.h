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
inline bool is_dense(torch::headeronly::IntHeaderOnlyArrayRef sizes,
                     torch::headeronly::IntHeaderOnlyArrayRef strides) {
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

inline bool is_dense(const Tensor& tensor) {
  return tensor.is_contiguous() || is_dense(tensor.sizes(), tensor.strides());
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

// Whether the two have one dtype, and an index means the same place in the memory of both.
inline bool same_layout(const Tensor& a, const Tensor& b) {
  if (a.scalar_type() != b.scalar_type() || a.dim() != b.dim()) return false;
  const auto sizes = a.sizes(), other = b.sizes(), strides = a.strides(), other_strides = b.strides();
  for (size_t d = 0; d < sizes.size(); ++d) {
    if (sizes[d] != other[d]) return false;
    if (sizes[d] > 1 && a.numel() > 0 && strides[d] != other_strides[d]) return false;
  }
  return true;
}

bool same_layout(AtenTensorHandle a, AtenTensorHandle b);  // of handles.h

// Gradients of several losses by parameter: those of parameter p are grads[order[i]] for i in
// [first[p], first[p + 1]), in the order of losses.
struct ByParameter {
  std::vector<int64_t> order, first;
};

// `grads` are floating-point, dense tensors, of any kind that same_layout() knows.
template <typename Grads>
ByParameter checked_by_parameter(const Grads& grads, const std::vector<int64_t>& tensor,
                                 const std::vector<int64_t>& loss, const std::vector<int64_t>& group,
                                 int64_t num_groups, int64_t num_losses) {
  STD_TORCH_CHECK(grads.size() > 0, "`grads` is empty, allowed: at least one tensor");
  check_group(group, group.size(), num_groups);
  const size_t num_grads = grads.size();
  const int64_t num_tensors = static_cast<int64_t>(group.size());
  STD_TORCH_CHECK(tensor.size() == num_grads && loss.size() == num_grads, "`tensor` and `loss` have ",
                  tensor.size(), " and ", loss.size(), " entries, allowed: ", num_grads);
  ByParameter by;
  by.first.resize(group.size() + 1);
  for (size_t i = 0; i < num_grads; ++i) {
    STD_TORCH_CHECK(tensor[i] >= 0 && tensor[i] < num_tensors, "`tensor[", i, "]` is ", tensor[i],
                    ", outside [0, ", num_tensors, ")");
    STD_TORCH_CHECK(loss[i] >= 0 && loss[i] < num_losses, "`loss[", i, "]` is ", loss[i], ", outside [0, ",
                    num_losses, ")");
    ++by.first[tensor[i] + 1];
  }
  std::partial_sum(by.first.begin(), by.first.end(), by.first.begin());
  by.order.resize(num_grads);
  std::iota(by.order.begin(), by.order.end(), 0);
  std::sort(by.order.begin(), by.order.end(), [&](int64_t a, int64_t b) {
    return tensor[a] != tensor[b] ? tensor[a] < tensor[b] : loss[a] < loss[b];
  });
  for (size_t i = 1; i < num_grads; ++i) {
    const int64_t a = by.order[i - 1], b = by.order[i];
    if (tensor[a] != tensor[b]) continue;
    STD_TORCH_CHECK(loss[a] != loss[b], "`grads[", a, "]` and `grads[", b,
                    "]` are of one tensor and one loss, allowed: one gradient each");
    STD_TORCH_CHECK(same_layout(grads[a], grads[b]), "`grads[", a, "]` and `grads[", b,
                    "]` are of one tensor, allowed: one dtype, shape and memory order");
  }
  return by;
}

// Every tensor of `out` is like the gradients that are written to it; `weights` is [M, num_losses].
template <typename Tensors>
void check_combination(const Tensors& out, const Tensors& grads, const std::vector<int64_t>& group,
                       const Tensor& weights, const ByParameter& by) {
  check_group(group, out.size(), weights.size(0));
  check_vector("weights", weights, ScalarType::Float, weights.size(0) * weights.size(1));
  for (size_t p = 0; p < out.size(); ++p)
    if (by.first[p] < by.first[p + 1])
      STD_TORCH_CHECK(same_layout(out[p], grads[by.order[by.first[p]]]), "`out[", p,
                      "]` differs from its gradients, allowed: one dtype, shape and memory order");
}

}  // namespace modgrad
