// A list of tensors as kernels take it: by value, in the arguments of the launch. Nothing is staged on the
// device first, so a CUDA graph captures the pointers with the launch.
#pragma once

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstdint>
#include <vector>

#include "../chunks.h"

namespace modgrad {

enum class Dtype : uint8_t { kFloat, kDouble, kHalf, kBFloat16 };

template <int kCapacity>
struct TensorList;

// A dense tensor on the device of the launch.
struct TensorRef {
  template <int kCapacity>
  using List = TensorList<kCapacity>;
  const void* in;
  void* out;  // the same memory for ops in place, null for ops that only read
  int64_t numel;
  int32_t group;  // row of the weights
  Dtype dtype;
  static constexpr int kMost = 880;  // in the arguments of one launch
};

// Gradients of several losses: those of parameter p are grads [first[p], first[p + 1]), by loss.
struct LossRefs {
  std::vector<TensorRef> grads;  // group: that of the parameter
  std::vector<int32_t> loss;
  std::vector<int64_t> first;  // [P + 1]
};

// Elements [begin, begin + size) of a tensor.
struct TensorChunk {
  int tensor;
  int64_t begin, size;
};

// Capacity of a short list. Arguments of a few KiB launch like any other; 32,764 bytes is the limit from sm_70 on.
constexpr int kFewTensors = 64;

// Many times the blocks that run at once (528 on an H200, 4 a multiprocessor); the rest is looped over.
constexpr int64_t kMaxBlocks = 65536;

inline unsigned num_blocks(int64_t pieces) { return static_cast<unsigned>(std::min(pieces, kMaxBlocks)); }

// The chunks of a list of tensors, of which this may be a part.
template <int kCapacity>
struct ChunkList {
  int64_t numel[kCapacity];
  int64_t first_chunk[kCapacity + 1];  // counted over the whole list
  int64_t first_tensor;                // index in the whole list of the tensor with index 0 here
  int32_t group[kCapacity];
  int32_t size;
  Dtype dtype[kCapacity];

  MODGRAD_HD int64_t num_chunks() const { return first_chunk[size] - first_chunk[0]; }
};

template <int kCapacity>
struct TensorList : ChunkList<kCapacity> {
  const void* in[kCapacity];
  void* out[kCapacity];

  void set(int i, const TensorRef& tensor) {
    in[i] = tensor.in;
    out[i] = tensor.out;
  }
};
static_assert(sizeof(TensorList<TensorRef::kMost>) + 128 <= 32764, "list and further arguments pass the limit");

template <typename Ref>
int64_t count_chunks(const std::vector<Ref>& tensors) {
  int64_t count = 0;
  for (const Ref& tensor : tensors) count += count_chunks(tensor.numel);
  return count;
}

template <int kCapacity>
MODGRAD_HD TensorChunk find_chunk(const ChunkList<kCapacity>& list, int64_t chunk) {
  const int t = find_tensor(list.first_chunk, list.size, chunk);
  const int64_t begin = (chunk - list.first_chunk[t]) * kChunkElements, left = list.numel[t] - begin;
  return {t, begin, left < kChunkElements ? left : kChunkElements};
}

template <typename List, typename Ref>
List make_list(const std::vector<Ref>& tensors, int capacity, int64_t first_tensor, int64_t first_chunk) {
  List list;
  list.first_tensor = first_tensor;
  list.first_chunk[0] = first_chunk;
  const int64_t left = static_cast<int64_t>(tensors.size()) - first_tensor;
  list.size = static_cast<int32_t>(std::min<int64_t>(capacity, left));
  for (int i = 0; i < list.size; ++i) {
    const Ref& tensor = tensors[first_tensor + i];
    list.numel[i] = tensor.numel;
    list.first_chunk[i + 1] = list.first_chunk[i] + count_chunks(tensor.numel);
    list.group[i] = tensor.group;
    list.dtype[i] = tensor.dtype;
    list.set(i, tensor);
  }
  return list;
}

// Calls launch(list) for the smallest list that holds all tensors, or for as many large ones as it takes.
template <typename Ref, typename Launch>
cudaError_t for_each_list(const std::vector<Ref>& tensors, Launch launch) {
  using Few = typename Ref::template List<kFewTensors>;
  using Many = typename Ref::template List<Ref::kMost>;
  const int64_t size = static_cast<int64_t>(tensors.size());
  if (size <= kFewTensors) return size == 0 ? cudaSuccess : launch(make_list<Few>(tensors, kFewTensors, 0, 0));
  int64_t first_chunk = 0;
  for (int64_t first = 0; first < size; first += Ref::kMost) {
    const auto list = make_list<Many>(tensors, Ref::kMost, first, first_chunk);
    if (const cudaError_t error = launch(list); error != cudaSuccess) return error;
    first_chunk = list.first_chunk[list.size];
  }
  return cudaSuccess;
}

}  // namespace modgrad
