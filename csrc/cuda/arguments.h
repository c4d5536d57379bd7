// From tensors to what the launchers take.
#pragma once

#include <cuda_runtime_api.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/macros.h>

#include <limits>

#include "../tensors.h"
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
inline std::vector<TensorRef> references(const char* name, const std::vector<Tensor>& tensors,
                                         const std::vector<int64_t>& group) {
  const std::vector<int64_t> sizes = checked_sizes(name, tensors);
  const int32_t device = tensors[0].get_device_index();
  std::vector<TensorRef> out;
  out.reserve(tensors.size());
  for (size_t t = 0; t < tensors.size(); ++t) {
    check_device(name, tensors[t], device);
    STD_TORCH_CHECK(group[t] <= std::numeric_limits<int32_t>::max(), "`group[", t, "]` is ", group[t]);
    out.push_back({tensors[t].const_data_ptr(), nullptr, sizes[t], static_cast<int32_t>(group[t]),
                   dtype_of(tensors[t].scalar_type())});
  }
  return out;
}

inline std::vector<int64_t> one_group_each(size_t num_tensors) {
  std::vector<int64_t> group(num_tensors);
  std::iota(group.begin(), group.end(), 0);
  return group;
}

inline LossRefs loss_references(const std::vector<Tensor>& grads, const ByParameter& by,
                                const std::vector<int64_t>& tensor, const std::vector<int64_t>& loss,
                                const std::vector<int64_t>& group) {
  std::vector<int64_t> group_of_grad;
  for (const int64_t t : tensor) group_of_grad.push_back(group[t]);
  const std::vector<TensorRef> refs = references("grads", grads, group_of_grad);
  LossRefs sorted = {{}, {}, by.first};
  for (const int64_t i : by.order) {
    STD_TORCH_CHECK(loss[i] <= std::numeric_limits<int32_t>::max(), "`loss[", i, "]` is ", loss[i]);
    sorted.grads.push_back(refs[i]);
    sorted.loss.push_back(static_cast<int32_t>(loss[i]));
  }
  return sorted;
}

}  // namespace modgrad
