// Lists of tensors as bare handles: what the dispatcher hands over, read without a copy.
#pragma once

#include <Python.h>

#include "side_by_side.h"
#include "tensors.h"

namespace modgrad {

// A list as the dispatcher hands it over: the handles are the receiver's, to be deleted.
using HandleList = std::vector<AtenTensorHandle>;

// Letting go of a tensor that Python holds takes the GIL, 80 ns a time: once for all of them, it takes 10.
inline void delete_all(const AtenTensorHandle* handles, size_t count) {
  const PyGILState_STATE gil = PyGILState_Ensure();
  for (size_t i = 0; i < count; ++i) aoti_torch_delete_tensor_object(handles[i]);
  PyGILState_Release(gil);
}

// The handles that `retain` put into a tensor on the host: a list as one argument.
inline const AtenTensorHandle* retained_handles(const char* name, const Tensor& retained) {
  static_assert(sizeof(AtenTensorHandle) == sizeof(int64_t));
  STD_TORCH_CHECK(retained.scalar_type() == ScalarType::Long && retained.dim() == 1 && retained.is_contiguous() &&
                      retained.is_cpu(),
                  "`", name, "` is no list that was retained");
  const auto* handles = static_cast<const AtenTensorHandle*>(retained.const_data_ptr());
  STD_TORCH_CHECK(std::find(handles, handles + retained.numel(), nullptr) == handles + retained.numel(), "`", name,
                  "` was released");
  return handles;
}

// Tensors of a list, for the length of a call; stable::Tensor would add a shared pointer to each.
class Handles {
 public:
  Handles(const char* name, const HandleList& owned)
      : name_(name), owned_(owned), handles_(owned_.data()), size_(owned_.size()) {}
  Handles(const char* name, const Tensor& retained)
      : name_(name), handles_(retained_handles(name, retained)), size_(static_cast<size_t>(retained.numel())) {}
  Handles(const Handles&) = delete;
  Handles& operator=(const Handles&) = delete;
  ~Handles() {
    if (!owned_.empty()) delete_all(owned_.data(), owned_.size());
  }

  const char* name() const { return name_; }
  size_t size() const { return size_; }
  AtenTensorHandle operator[](size_t i) const { return handles_[i]; }

 private:
  const char* name_;
  HandleList owned_;
  const AtenTensorHandle* handles_;
  size_t size_;
};

// Shape, strides and dtype of a tensor, borrowed from it.
struct View {
  int64_t dim;
  int64_t *sizes, *strides;
  int32_t dtype;

  explicit View(AtenTensorHandle handle) {
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_dim(handle, &dim));
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_sizes(handle, &sizes));
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_strides(handle, &strides));
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(handle, &dtype));
  }

  bool same_layout(const View& other) const {
    if (dim != other.dim || !std::equal(sizes, sizes + dim, other.sizes)) return false;
    if (std::equal(strides, strides + dim, other.strides)) return true;
    if (std::find(sizes, sizes + dim, 0) != sizes + dim) return true;
    for (int64_t d = 0; d < dim; ++d)
      if (sizes[d] > 1 && strides[d] != other.strides[d]) return false;
    return true;
  }
};

struct Device {
  int32_t type, index;

  static Device of(AtenTensorHandle handle) {
    Device device;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(handle, &device.type));
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(handle, &device.index));
    return device;
  }
  bool operator==(const Device& other) const { return type == other.type && index == other.index; }
};

inline Tensor tensor_of(AtenTensorHandle handle) {
  AtenTensorHandle own;
  TORCH_ERROR_CODE_CHECK(aoti_torch_new_tensor_handle(handle, &own));
  return Tensor(own);
}

inline void* data_of(AtenTensorHandle handle) {
  void* data;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_data_ptr(handle, &data));
  return data;
}

inline int64_t numel_of(AtenTensorHandle handle) {
  int64_t numel;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_numel(handle, &numel));
  return numel;
}

inline bool is_dense(AtenTensorHandle handle, const View& view) {
  bool contiguous;
  TORCH_ERROR_CODE_CHECK(aoti_torch_is_contiguous(handle, &contiguous));
  const auto dim = static_cast<size_t>(view.dim);
  return contiguous || is_dense({view.sizes, dim}, {view.strides, dim});
}

inline ScalarType float_type(const char* name, size_t i, int32_t dtype) {
  static const int32_t kFloat = aoti_torch_dtype_float32(), kDouble = aoti_torch_dtype_float64(),
                       kHalf = aoti_torch_dtype_float16(), kBFloat16 = aoti_torch_dtype_bfloat16();
  STD_TORCH_CHECK(dtype == kFloat || dtype == kDouble || dtype == kHalf || dtype == kBFloat16, "`", name, "[", i,
                  "]` is not floating-point");
  return dtype == kFloat    ? ScalarType::Float
         : dtype == kDouble ? ScalarType::Double
         : dtype == kHalf   ? ScalarType::Half
                            : ScalarType::BFloat16;
}

// The elements of one tensor.
struct Array {
  void* data;
  int64_t size;
  ScalarType dtype;
};

inline Array dense_array(const char* name, size_t i, AtenTensorHandle handle) {
  const View view(handle);
  const ScalarType dtype = float_type(name, i, view.dtype);
  STD_TORCH_CHECK(is_dense(handle, view), "`", name, "[", i, "]` has gaps or overlaps in memory, allowed: dense");
  return {data_of(handle), numel_of(handle), dtype};
}

inline std::vector<Array> dense_arrays(const Handles& tensors, int64_t per_thread = kTensorsPerThread) {
  std::vector<Array> out(tensors.size());
  side_by_side(static_cast<int64_t>(out.size()), per_thread,
               [&](int64_t i) { out[i] = dense_array(tensors.name(), i, tensors[i]); });
  return out;
}

inline std::vector<int64_t> sizes_of(const std::vector<Array>& arrays) {
  std::vector<int64_t> sizes;
  sizes.reserve(arrays.size());
  for (const Array& array : arrays) sizes.push_back(array.size);
  return sizes;
}

// Whether the two have one dtype, and an index means the same place in the memory of both.
inline bool same_layout(AtenTensorHandle a, AtenTensorHandle b) {
  const View x(a), y(b);
  return x.dtype == y.dtype && x.same_layout(y);
}

}  // namespace modgrad
