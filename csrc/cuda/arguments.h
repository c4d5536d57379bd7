// From tensors to what the launchers take.
#pragma once

#include <cuda_runtime_api.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/macros.h>

#include <limits>

#include "../handles.h"
#include "tensor_list.cuh"

namespace modgrad {

using torch::stable::accelerator::DeviceGuard;

inline cudaStream_t current_stream(int32_t device) {
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device, &stream));
  return static_cast<cudaStream_t>(stream);
}

// Of a tensor that is checked to be of floats.
inline Dtype dtype_of(ScalarType type) {
  return type == ScalarType::Float    ? Dtype::kFloat
         : type == ScalarType::Double ? Dtype::kDouble
         : type == ScalarType::Half   ? Dtype::kHalf
                                      : Dtype::kBFloat16;
}

inline void check_device(const char* name, const Tensor& tensor, int32_t device) {
  STD_TORCH_CHECK(tensor.is_cuda() && tensor.get_device_index() == device, "`", name,
                  "` must be on one CUDA device with all other arguments");
}

inline Tensor doubles(const Tensor& like, int64_t size) {
  return torch::stable::new_empty(like, {size}, ScalarType::Double);
}

// `in` is set, `out` is null.
inline TensorRef reference(const void* data, int64_t size, ScalarType dtype, size_t i, int64_t group) {
  STD_TORCH_CHECK(group <= std::numeric_limits<int32_t>::max(), "`group[", i, "]` is ", group);
  return {data, nullptr, size, static_cast<int32_t>(group), dtype_of(dtype)};
}

inline std::vector<TensorRef> references(const char* name, const std::vector<Tensor>& tensors,
                                         const std::vector<int64_t>& group) {
  const std::vector<int64_t> sizes = checked_sizes(name, tensors);
  const int32_t device = tensors[0].get_device_index();
  std::vector<TensorRef> out;
  out.reserve(tensors.size());
  for (size_t t = 0; t < tensors.size(); ++t) {
    check_device(name, tensors[t], device);
    out.push_back(reference(tensors[t].const_data_ptr(), sizes[t], tensors[t].scalar_type(), t, group[t]));
  }
  return out;
}

// Of long lists, the first tensor as a tensor: there is one at least, and it is on a GPU.
inline Tensor first_of(const Handles& tensors) {
  STD_TORCH_CHECK(tensors.size() > 0, "`", tensors.name(), "` is empty, allowed: at least one tensor");
  const Tensor first = tensor_of(tensors[0]);
  check_device(tensors.name(), first, first.get_device_index());
  return first;
}

// Of floats, dense, and on the device of `like`.
inline std::vector<Array> checked_arrays(const Handles& tensors, const Tensor& like) {
  const Device device = Device::of(like.get());
  for (size_t t = 0; t < tensors.size(); ++t)
    STD_TORCH_CHECK(Device::of(tensors[t]) == device, "`", tensors.name(), "[", t,
                    "]` must be on one CUDA device with all other arguments");
  return dense_arrays(tensors, kInOneThread);
}

inline std::vector<TensorRef> references(const std::vector<Array>& arrays, const std::vector<int64_t>& group) {
  std::vector<TensorRef> out;
  out.reserve(arrays.size());
  for (size_t t = 0; t < arrays.size(); ++t)
    out.push_back(reference(arrays[t].data, arrays[t].size, arrays[t].dtype, t, group[t]));
  return out;
}

// To be changed in place.
inline std::vector<TensorRef> references_in_place(const std::vector<Array>& arrays, const std::vector<int64_t>& group) {
  std::vector<TensorRef> out = references(arrays, group);
  for (size_t t = 0; t < out.size(); ++t) out[t].out = arrays[t].data;
  return out;
}

inline std::vector<int64_t> one_group_each(size_t num_tensors) {
  std::vector<int64_t> group(num_tensors);
  std::iota(group.begin(), group.end(), 0);
  return group;
}

inline LossRefs loss_references(const std::vector<Array>& grads, const ByParameter& by,
                                const std::vector<int64_t>& tensor, const std::vector<int64_t>& loss,
                                const std::vector<int64_t>& group) {
  std::vector<int64_t> group_of_grad;
  group_of_grad.reserve(tensor.size());
  for (const int64_t t : tensor) group_of_grad.push_back(group[t]);
  const std::vector<TensorRef> refs = references(grads, group_of_grad);
  LossRefs sorted = {{}, {}, by.first};
  for (const int64_t i : by.order) {
    STD_TORCH_CHECK(loss[i] <= std::numeric_limits<int32_t>::max(), "`loss[", i, "]` is ", loss[i]);
    sorted.grads.push_back(refs[i]);
    sorted.loss.push_back(static_cast<int32_t>(loss[i]));
  }
  return sorted;
}

}  // namespace modgrad
