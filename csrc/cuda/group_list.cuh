// Chunks by group, for kernels that add what was computed a chunk.
#pragma once

#include "tensor_list.cuh"

namespace modgrad {

// The chunks of group first_group + i are [first_chunk[i], first_chunk[i + 1]).
template <int kCapacity>
struct GroupList {
  int64_t first_chunk[kCapacity + 1];
  int64_t first_group;
  int32_t size;
};

// Calls launch(list) for as many lists as it takes.
template <int kCapacity, typename Launch>
cudaError_t for_each_group_list(const std::vector<int64_t>& first_chunk, Launch launch) {
  const int64_t num_groups = static_cast<int64_t>(first_chunk.size()) - 1;
  for (int64_t g = 0; g < num_groups; g += kCapacity) {
    GroupList<kCapacity> list;
    list.first_group = g;
    list.size = static_cast<int32_t>(std::min<int64_t>(kCapacity, num_groups - g));
    std::copy_n(first_chunk.begin() + g, list.size + 1, list.first_chunk);
    if (const cudaError_t error = launch(list); error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

// Calls launch(list) for the groups of tensors that are sorted by group; those of group -1 come first.
template <typename Ref, typename Launch>
cudaError_t for_each_group_list(const std::vector<Ref>& sorted, int64_t num_groups, Launch launch) {
  std::vector<int64_t> first_chunk(num_groups + 1);
  for (const Ref& tensor : sorted) first_chunk[tensor.group + 1] += count_chunks(tensor.numel);
  for (int64_t g = 0; g < num_groups; ++g) first_chunk[g + 1] += first_chunk[g];
  constexpr int kFewGroups = 64, kManyGroups = 4000;  // 32,016 bytes of arguments
  return num_groups <= kFewGroups ? for_each_group_list<kFewGroups>(first_chunk, launch)
                                  : for_each_group_list<kManyGroups>(first_chunk, launch);
}

template <typename Ref>
void sort_by_group(std::vector<Ref>& tensors) {
  std::stable_sort(tensors.begin(), tensors.end(), [](const Ref& a, const Ref& b) { return a.group < b.group; });
}

}  // namespace modgrad
