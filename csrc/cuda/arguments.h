// From tensors to what the launchers take.
#pragma once

#include <cuda_runtime_api.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/macros.h>

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

}  // namespace modgrad
